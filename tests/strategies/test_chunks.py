"""Slices on disk: the ranks' shares cover each element once, holes between them are told, copies are copies."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from flash_strategies.checkpoint.chunks import Slice, read_chunks, share, staged, write_chunks
from flash_strategies.errors import CheckpointError


@pytest.mark.parametrize("world_size", [1, 2, 3, 7, 40])
def test_shares_hold_each_element_once_and_are_as_large(world_size: int) -> None:
    sizes = {"a": 5, "b": 1, "c": 0, "d": 17}
    slices = [Slice(key, 3, torch.arange(size), size + 3) for key, size in sizes.items()]
    shares = [list(share(slices, rank, world_size)) for rank in range(world_size)]
    found: dict[str, list[int]] = {key: [] for key in sizes}
    for one in (one for part in shares for one in part):
        assert one.whole == sizes[one.key] + 3
        assert one.tensor.tolist() == list(range(one.start - 3, one.start - 3 + one.tensor.numel()))
        found[one.key] += one.tensor.tolist()
    assert found == {key: list(range(size)) for key, size in sizes.items()}
    counts = [sum(one.tensor.numel() for one in part) for part in shares]
    assert max(counts) - min(counts) <= 1


def test_a_hole_between_the_ranks_slices_is_told(tmp_path: Path) -> None:
    write_chunks(tmp_path, [Slice("a", 10, torch.arange(10.0, 20.0), 20)])
    values = torch.zeros(5)
    read_chunks(tmp_path, [Slice("a", 12, values, 20)])
    assert values.tolist() == [12.0, 13.0, 14.0, 15.0, 16.0]
    with pytest.raises(CheckpointError, match=r"a has 8 of the 15 elements from 3 on.*another rank is missing"):
        read_chunks(tmp_path, [Slice("a", 3, torch.zeros(15), 20)])


def test_staged_slices_stay_as_they_were() -> None:
    weights = torch.zeros(4)
    (copy,) = staged([Slice("a", 0, weights, 4), Slice("b", 0, torch.zeros(0), 4)])
    weights += 1
    assert copy.tensor.tolist() == [0.0] * 4
