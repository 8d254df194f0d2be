"""Samplers: every sample, on any number of ranks, by seed and epoch alone."""

import itertools

import pytest
import torch

from flash_launch.data.sampling import EvalBatchSampler, TrainSampler, derived_seed, drawn_from, leaves_single
from flash_launch.errors import DataError


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
@pytest.mark.parametrize("size", [1, 2, 7, 12])
def test_training_sees_every_sample_and_repeats_at_most_world_size_minus_one(size: int, world_size: int) -> None:
    samplers = [TrainSampler(size, rank, world_size, seed=3) for rank in range(world_size)]
    for epoch in range(3):
        for sampler in samplers:
            sampler.set_epoch(epoch)
        shares = [list(sampler) for sampler in samplers]
        assert {len(share) for share in shares} == {len(samplers[0])}
        seen = list(itertools.chain(*shares))
        assert set(seen) == set(range(size))
        assert len(seen) - size <= world_size - 1


@pytest.mark.parametrize(
    ("size", "world_size", "batch_size"), [(9, 1, 4), (17, 2, 4), (18, 2, 4), (5, 4, 2), (1, 1, 8)]
)
def test_no_last_batch_of_one_sample_where_none_may_be(size: int, world_size: int, batch_size: int) -> None:
    for single in (True, False):
        samplers = [
            TrainSampler(size, rank, world_size, seed=1, batch_size=batch_size, single=single)
            for rank in range(world_size)
        ]
        shares = [list(sampler) for sampler in samplers]
        last = {len(share) % batch_size or batch_size for share in shares}
        assert {len(share) for share in shares} == {len(samplers[0])}
        assert set(itertools.chain(*shares)) == set(range(size))
        if leaves_single(size, world_size, batch_size):
            assert last == ({1} if single else {2})
    assert not leaves_single(9, 1, 1)
    assert not leaves_single(18, 2, 5)


def test_the_order_is_another_in_each_epoch_and_for_each_seed() -> None:
    orders = []
    for seed, epoch in itertools.product((0, 1), (0, 1)):
        sampler = TrainSampler(50, seed=seed)
        sampler.set_epoch(epoch)
        orders.append(tuple(sampler))
        assert orders[-1] == tuple(sampler)
    assert len(set(orders)) == 4
    assert list(TrainSampler(5, 1, 2, shuffle=False)) == [1, 3, 0]


def test_global_batches_do_not_depend_on_the_number_of_ranks() -> None:
    batches = {}
    for world_size in (1, 2, 4):
        shares = [list(TrainSampler(64, rank, world_size, 1)) for rank in range(world_size)]
        size = 16 // world_size
        batches[world_size] = [
            {index for share in shares for index in share[step * size : (step + 1) * size]} for step in range(4)
        ]
    assert batches[1] == batches[2] == batches[4]


def test_an_epoch_goes_on_where_it_stopped_and_the_next_is_whole() -> None:
    sampler = TrainSampler(20, 1, 2, seed=5, batch_size=4)
    sampler.set_epoch(2)
    whole = list(sampler)
    sampler.start_at(2, 1)
    assert list(sampler) == whole[4:]
    sampler.set_epoch(2)  # as Lightning does
    assert list(sampler) == whole[4:]
    assert len(sampler) == len(whole) == 10
    sampler.set_epoch(3)
    assert len(list(sampler)) == 10


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("batch_size", [1, 2, 5, 8])
def test_evaluation_sees_each_sample_once_with_as_many_batches_on_each_rank(batch_size: int, world_size: int) -> None:
    for size in range(world_size, 40):
        shares = [list(EvalBatchSampler(size, batch_size, rank, world_size)) for rank in range(world_size)]
        batches = list(itertools.chain(*shares))
        assert sorted(itertools.chain(*batches)) == list(range(size))
        assert {len(share) for share in shares} == {len(EvalBatchSampler(size, batch_size, 0, world_size))}
        sizes = {len(batch) for batch in batches}
        assert min(sizes) >= 1
        assert max(sizes) - min(sizes) <= 1
        assert max(sizes) <= max(batch_size, 2 if batch_size == 1 and size % world_size else 1)


def test_evaluation_takes_a_given_order() -> None:
    assert list(EvalBatchSampler(3, 2, order=[7, 9, 8])) == [[7], [9, 8]]


def test_too_few_samples() -> None:
    with pytest.raises(DataError, match="2 validation samples cannot be spread over 3 ranks"):
        EvalBatchSampler(2, 4, 0, 3)
    with pytest.raises(DataError, match="no sample to train on"):
        TrainSampler(0)


def test_random_numbers_go_on_as_before() -> None:
    assert derived_seed(1, 2) != derived_seed(2, 1)
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    first = torch.rand(1)
    with drawn_from(4):
        inside = torch.rand(1)
    with drawn_from(4):
        assert torch.equal(inside, torch.rand(1))
    assert torch.equal(torch.cat([first, torch.rand(1)]), expected)
