"""Digests: equal to arithmetic on plain integers, additive over any cut, and changed by any one bit."""

import itertools
import random

import pytest
import torch

from flash_strategies import digest
from flash_strategies.digest import combined_digest, slice_digest

DTYPES = (torch.float32, torch.bfloat16, torch.float64, torch.int8, torch.bool)


def values(dtype: torch.dtype, count: int = 70_001) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return (torch.randn(count, generator=generator) * 100).to(dtype)


def by_hand(tensor: torch.Tensor, start: int) -> int:
    """The definition, on Python's integers."""
    data = bytes(start * tensor.element_size() % 8) + tensor.view(torch.uint8).numpy().tobytes()
    data += bytes(-len(data) % 8)
    places = [int(weight) for weight in digest._weights(tensor.device)]
    total = 0
    for index in range(len(data) // 8):
        block, place = divmod(start * tensor.element_size() // 8 + index, len(places))
        word = int.from_bytes(data[8 * index : 8 * index + 8], "little")
        total += word * places[place] * int(digest._block_weights(tensor.device, block, 1)[0])
    total %= 1 << 64
    return total - (1 << 64) if total >> 63 else total


@pytest.mark.parametrize("dtype", DTYPES)
def test_equals_the_definition(dtype: torch.dtype) -> None:
    whole = values(dtype)
    assert int(slice_digest(whole)) == by_hand(whole, 0)
    assert int(slice_digest(whole[17:400], 17)) == by_hand(whole[17:400], 17)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [70_001, 1_200_001])
def test_digests_of_slices_add_up(dtype: torch.dtype, count: int) -> None:
    whole = values(dtype, count)
    chance = random.Random(5)
    for _ in range(5):
        cuts = [0, *sorted(chance.sample(range(count), 4)), count]
        parts = [slice_digest(whole[a:b].clone(), a) for a, b in itertools.pairwise(cuts)]
        assert int(torch.stack(parts).sum()) == int(slice_digest(whole))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_one_bit_changes_it(dtype: torch.dtype) -> None:
    whole = values(dtype)
    before = int(slice_digest(whole))
    bits = whole.view(torch.int32 if dtype is torch.float32 else torch.int16)
    for place in (0, 1, 8_191, 32_768, 70_000):
        bits[place] ^= 1
        assert int(slice_digest(whole)) != before
        bits[place] ^= 1


def test_place_and_name_count() -> None:
    block = torch.arange(2 * 8_192, dtype=torch.int64)
    assert int(slice_digest(block[:2])) != int(slice_digest(block[:2].flip(0)))
    assert int(slice_digest(block)) != int(slice_digest(block.roll(8_192)))
    assert combined_digest({"a": 1}) != combined_digest({"b": 1})
    assert int(slice_digest(torch.tensor([1.0, 2.0]))) != int(slice_digest(torch.tensor([2.0, 1.0])))
    assert combined_digest({"a": 1, "b": 2}) == combined_digest({"b": 2, "a": 1}) != combined_digest({"a": 2, "b": 1})
    assert int(slice_digest(torch.empty(0))) == 0
