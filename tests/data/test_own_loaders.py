"""A user's own loaders: dealt out to ranks with what they were made of, or refused with the reason."""

import itertools
import random
from collections.abc import Callable, Iterator

import pytest
import torch
from pytorch_lightning.utilities import CombinedLoader
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from flash_launch.data.distributed import map_loaders, shard_eval_loader, shard_train_loader
from flash_launch.errors import DataError


class Numbers(Dataset[int]):
    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> int:
        return index


class Stream(IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        return iter(range(4))


def trained(loader: object, world_size: int, epoch: int = 0) -> list[list[int]]:
    """What each rank sees in an epoch."""
    shares = []
    for rank in range(world_size):
        sharded = shard_train_loader(loader, rank=rank, world_size=world_size, seed=1).loader
        assert isinstance(sharded, DataLoader)
        for sampler in (sharded.sampler, sharded.batch_sampler):
            if hasattr(sampler, "set_epoch"):
                sampler.set_epoch(epoch)
        shares.append([int(number) for batch in sharded for number in batch])
    return shares


def evaluated(loader: object, world_size: int) -> list[list[int]]:
    """What each rank sees; as many batches on each."""
    loaders = [shard_eval_loader(loader, rank=rank, world_size=world_size).loader for rank in range(world_size)]
    assert len({len(part) for part in loaders}) == 1
    return [[int(number) for batch in part for number in batch] for part in loaders]


def flat(shares: list[list[int]]) -> list[int]:
    return sorted(itertools.chain(*shares))


def test_a_shuffling_loader_is_shuffled_over_all_ranks_and_anew_in_each_epoch() -> None:
    loader = DataLoader(Numbers(11), batch_size=3, shuffle=True)
    first, second = trained(loader, 2, epoch=0), trained(loader, 2, epoch=1)
    assert set(flat(first)) == set(range(11))
    assert len(flat(first)) == 12
    assert first != second
    assert trained(loader, 2, epoch=0) == first


def test_a_loader_that_does_not_shuffle_keeps_its_order() -> None:
    assert trained(DataLoader(Numbers(6), batch_size=2), 2) == [[0, 2, 4], [1, 3, 5]]
    assert trained(DataLoader(Numbers(6), batch_size=2, drop_last=True), 2) == [[0, 2], [1, 3]]


def test_the_public_attributes_are_kept() -> None:
    generator = torch.Generator()

    def collate(items: list[int]) -> torch.Tensor:
        return torch.tensor(items) + 100

    loader = DataLoader(
        Numbers(8),
        4,
        num_workers=2,
        collate_fn=collate,
        timeout=9,
        worker_init_fn=print,
        prefetch_factor=3,
        persistent_workers=True,
        generator=generator,
    )
    for sharded in (
        shard_train_loader(loader, rank=0, world_size=2, seed=0).loader,
        shard_eval_loader(loader, rank=0, world_size=2).loader,
    ):
        assert sharded is not loader
        for name in ("dataset", "num_workers", "collate_fn", "timeout", "worker_init_fn", "prefetch_factor"):
            assert getattr(sharded, name) == getattr(loader, name)
        assert sharded.generator is generator
        assert sharded.persistent_workers


SAMPLERS: dict[str, Callable[[], Sampler[int]]] = {
    "weighted": lambda: WeightedRandomSampler([1.0] * 10, 10),
    "subset": lambda: SubsetRandomSampler([1, 3, 5, 7, 9]),
    "replaced": lambda: RandomSampler(Numbers(10), replacement=True, num_samples=7),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_of_the_users_own_is_dealt_out(name: str) -> None:
    loader = DataLoader(Numbers(10), batch_size=2, sampler=SAMPLERS[name]())
    whole = trained(loader, 1)[0]
    shares = trained(loader, 2)
    assert whole == trained(loader, 1)[0]
    assert [share[: len(whole) // 2] for share in shares] == [whole[0 : len(whole) // 2 * 2 : 2], whole[1::2]]
    assert len(shares[0]) == len(shares[1])
    assert trained(loader, 2, epoch=1) != shares


def test_batches_of_the_users_own_are_dealt_out() -> None:
    loader = DataLoader(Numbers(7), batch_sampler=BatchSampler(SequentialSampler(Numbers(7)), 2, False))
    assert flat(trained(loader, 2)) == [0, 1, 2, 3, 4, 5, 6]

    class Pairs(Sampler[list[int]]):
        def __iter__(self) -> Iterator[list[int]]:
            return iter([[0, 1], [2, 3], [4, 5]])

        def __len__(self) -> int:
            return 3

    loader = DataLoader(Numbers(6), batch_sampler=Pairs())
    assert trained(loader, 2) == [[0, 1, 4, 5], [2, 3, 0, 1]]
    sharded = shard_train_loader(loader, rank=0, world_size=2, seed=0)
    sharded.samplers[0].start_at(0, 1)
    assert [batch.tolist() for batch in sharded.loader] == [[4, 5]]
    assert flat(evaluated(loader, 2)) == list(range(6))


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_evaluation_takes_each_sample_once(world_size: int) -> None:
    for loader in (
        DataLoader(Numbers(11), batch_size=4),
        DataLoader(Numbers(11), batch_size=4, shuffle=True),
        DataLoader(Numbers(11), batch_size=4, sampler=DistributedSampler(Numbers(11), 2, 0)),
        DataLoader(Numbers(22), batch_size=4, sampler=SubsetRandomSampler(range(11))),
    ):
        assert flat(evaluated(loader, world_size)) == list(range(11))


def test_evaluation_without_automatic_batches() -> None:
    loader = DataLoader(Numbers(6), batch_size=None)
    parts = [shard_eval_loader(loader, rank=rank, world_size=3).loader for rank in range(3)]
    assert [list(part) for part in parts] == [[0, 3], [1, 4], [2, 5]]
    with pytest.raises(
        DataError, match="6 batches of a validation loader with batch_size=None cannot be dealt out evenly"
    ):
        shard_eval_loader(loader, rank=0, world_size=4)


def test_drop_last_is_left_out_of_evaluation_and_told() -> None:
    sharded = shard_eval_loader(DataLoader(Numbers(5), 2, drop_last=True), rank=0, world_size=1)
    assert sharded.warnings == ("the validation loader's drop_last is left out: each sample counts",)
    assert sum(len(batch) for batch in sharded.loader) == 5


def test_what_cannot_be_dealt_out_is_left_alone_with_a_warning() -> None:
    for loader, told in (
        (DataLoader(Stream()), "Stream is an iterable data set: it is not dealt out"),
        ([torch.zeros(1)], "list is no torch DataLoader"),
    ):
        for sharded in (
            shard_train_loader(loader, rank=0, world_size=2, seed=0),
            shard_eval_loader(loader, rank=0, world_size=2),
        ):
            assert sharded.loader is loader
            assert sharded.warnings[0].startswith(told)
    assert not shard_train_loader(DataLoader(Stream()), rank=0, world_size=1, seed=0).warnings


def test_a_distributed_sampler_is_left_alone_where_it_is_right() -> None:
    loader = DataLoader(Numbers(6), sampler=DistributedSampler(Numbers(6), 2, 1))
    assert shard_train_loader(loader, rank=1, world_size=2, seed=0).loader is loader
    with pytest.raises(DataError, match="DistributedSampler is for rank 1 of 2, but this is rank 1 of 3"):
        shard_train_loader(loader, rank=1, world_size=3, seed=0)


def test_loaders_that_cannot_be_made_anew_are_refused() -> None:
    class Odd(DataLoader[int]):
        def __init__(self, root: str) -> None:
            super().__init__(Numbers(4))

    class Fine(DataLoader[int]):
        def __init__(self, dataset: Dataset[int], extra: int = 0, **options: object) -> None:
            super().__init__(dataset, **options)

    with pytest.raises(DataError, match="a loader of the class Odd cannot be made anew"):
        shard_train_loader(Odd("x"), rank=0, world_size=2, seed=0)
    assert isinstance(shard_train_loader(Fine(Numbers(4)), rank=0, world_size=2, seed=0).loader, Fine)

    class Endless(Sampler[int]):
        def __iter__(self) -> Iterator[int]:
            return itertools.repeat(0)

    with pytest.raises(DataError, match="Endless has no __len__"):
        shard_train_loader(DataLoader(Numbers(4), sampler=Endless()), rank=0, world_size=2, seed=0)
    with pytest.raises(DataError, match="SubsetRandomSampler is empty"):
        shard_eval_loader(DataLoader(Numbers(4), sampler=SubsetRandomSampler([])), rank=0, world_size=2)


def test_a_sampler_that_draws_from_python_is_seeded_and_leaves_no_trace() -> None:
    class Drawn(Sampler[int]):
        def __iter__(self) -> Iterator[int]:
            return iter(random.sample(range(8), 8))

        def __len__(self) -> int:
            return 8

    random.seed(7)
    expected = random.random()
    random.seed(7)
    loader = DataLoader(Numbers(8), sampler=Drawn())
    assert set(flat(trained(loader, 2))) == set(range(8))
    assert random.random() == expected


def test_collections_of_loaders_keep_their_form() -> None:
    def shard(loader: object):
        return shard_eval_loader(loader, rank=0, world_size=2)

    loaders = {"a": DataLoader(Numbers(4)), "b": [DataLoader(Numbers(6), drop_last=True)]}
    sharded = map_loaders(loaders, shard)
    assert [len(sharded.loader["a"]), len(sharded.loader["b"][0])] == [2, 3]
    assert len(sharded.warnings) == 1
    combined = map_loaders(CombinedLoader([DataLoader(Numbers(4))], "sequential"), shard).loader
    assert isinstance(combined, CombinedLoader)
    assert len(combined.flattened[0]) == 2
