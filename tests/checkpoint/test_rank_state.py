"""A rank's own state: generators draw on as if nothing had happened; what callbacks saved is read back, or refused."""

from __future__ import annotations

import argparse
import io
import random
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
import torch

from flash_launch.checkpoint.rank_state import (
    RankState,
    _added,
    file_name,
    load_file,
    random_states,
    restore_random,
)
from flash_strategies.errors import CheckpointError

DRAWS: dict[str, Callable[[], list[float]]] = {
    "python": lambda: [random.random(), random.gauss(0, 1)],
    "numpy": lambda: [*numpy.random.rand(3).tolist(), numpy.random.normal()],
    "torch": lambda: [*torch.rand(3).tolist(), float(torch.randn(()))],
}


def seed_all(seed: int) -> None:
    random.seed(seed)
    numpy.random.seed(seed)
    torch.manual_seed(seed)


@pytest.mark.parametrize("kind", DRAWS)
def test_each_random_state_is_restored(kind: str) -> None:
    draw = DRAWS[kind]
    seed_all(2)  # another one than below, also where a test before has left it
    draw()  # an odd number of normal draws: the second one of a pair is kept
    file = io.BytesIO()
    torch.save(random_states(), file)
    expected = [draw(), draw()]
    seed_all(1)
    assert draw() != expected[0]
    file.seek(0)
    restore_random(torch.load(file, weights_only=True))
    assert [draw(), draw()] == expected


def state(**hooks: object) -> RankState:
    return RankState({}, {}, hooks, {}, {}, [], {}, [], {})


def test_arrays_and_numbers_of_numpy_and_paths_come_back(tmp_path: Path) -> None:
    mine = {
        "best": numpy.float64(0.5),
        "count": numpy.int64(3),
        "seen": numpy.arange(6, dtype="int16").reshape(2, 3),
        "none": numpy.zeros(0),
        "where": Path("a/b"),
        "args": argparse.Namespace(lr=0.1),
    }
    (tmp_path / file_name(0)).write_bytes(state(mine=mine).to_bytes())
    back = load_file(tmp_path, 0).hooks["mine"]
    assert isinstance(back, dict)
    for name in ("seen", "none"):
        numpy.testing.assert_array_equal(back.pop(name), mine.pop(name), strict=True)
    assert back == mine
    assert isinstance(back["best"], numpy.float64)


@pytest.mark.parametrize(
    ("value", "what"), [(RankState, "flash_launch.checkpoint.rank_state.RankState"), (lambda: 1, "function")]
)
def test_what_cannot_be_read_back_is_refused_by_the_name_of_who_saved_it(value: object, what: str) -> None:
    with pytest.raises(CheckpointError, match=rf"on_save_checkpoint puts under 'mine' .* safely \({what}\): a checkpo"):
        state(mine=value).to_bytes()


def logged(value: float, batch: int, samples: int, *, on_epoch: bool, reduce_fx: str = "mean") -> dict[str, object]:
    """As one rank stores it: a mean of an epoch is a sum with its weight, one of a step is that step's."""
    state = {"value": torch.tensor(value), "cumulated_batch_size": torch.tensor(samples if on_epoch else 0)}
    described = {"key": "training_step.x", "meta": {"on_epoch": on_epoch}, "reduce_fx": reduce_fx, "state": state}
    return {**described, "last_batch": batch, "samples": samples}


@pytest.mark.parametrize(
    ("on_epoch", "reduce_fx", "expected"), [(False, "mean", 1.5), (True, "mean", 4.0), (False, "max", 3.0)]
)
def test_what_ranks_logged_becomes_one_value(on_epoch: bool, reduce_fx: str, expected: float) -> None:
    """For a run that is resumed on other ranks: what is of the last step only is weighted by that step's samples."""
    ranks = [logged(value, batch, 8, on_epoch=on_epoch, reduce_fx=reduce_fx) for value, batch in ((1.0, 6), (3.0, 2))]
    found = _added(ranks)
    assert (float(found["state"]["value"]), found["last_batch"], found["samples"]) == (expected, 8, 16)  # type: ignore[index]
