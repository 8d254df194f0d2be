"""What the tests of the matrix share: the unstopped runs, made once per session, and how runs are compared."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, cast

import pytest
import torch
from matrix_cases import POSITIONS, SAVING_RANKS, SUITE, Case, Run, State

from conftest import Suites

# As in tests/parity: on other ranks and setups sums are taken in another order, which fp32 rounds differently. Measured
# over the whole matrix: 7e-8 in weights of order 0.1 to 1. A step too many, another batch, learning rate or step count
# make hundreds to thousands of times the bound.
ATOL, RTOL = 2e-6, 1e-5
CASES_PER_START = 25
"""A start of ranks has a time limit."""


class Runs(NamedTuple):
    """What is compared."""

    case: Case
    before: list[Run]
    """The unstopped run, rank by rank."""
    after: list[Run]
    """The run that went on from it."""


class Matrix(Suites):
    """Runs what the session's tests ask for; on the ranks that save, the unstopped runs first."""

    def _asked_for(self, suite: Path, world_size: int) -> list[str]:
        asked = [getattr(getattr(item, "callspec", None), "params", {}).get("case") for item in self._session.items]
        cases = [case for case in asked if isinstance(case, Case)]
        unstopped = [case.unstopped.name for case in cases] if world_size == SAVING_RANKS else []
        return list(dict.fromkeys([*unstopped, *(case.name for case in cases if case.world_size == world_size)]))

    def _run(self, suite: Path, world_size: int, cases: list[str]) -> dict[str, list[object] | str]:
        done: dict[str, list[object] | str] = {}
        for first in range(0, len(cases), CASES_PER_START):
            done |= super()._run(suite, world_size, cases[first : first + CASES_PER_START])
        return done


_MATRIX = pytest.StashKey[Matrix]()


def runs(case: Case, request: pytest.FixtureRequest, folders: pytest.TempPathFactory) -> Runs:
    """A case's runs; all that the session's tests ask for are made once."""
    matrix = request.session.stash.setdefault(_MATRIX, Matrix(request.session, folders))
    before = matrix.result(SUITE, SAVING_RANKS, case.unstopped.name)
    after = matrix.result(SUITE, case.world_size, case.name)
    return Runs(case, cast(list[Run], before), cast(list[Run], after))


def whole(states: Sequence[State]) -> dict[tuple[str, str], torch.Tensor]:
    """Masters and moments put together from all ranks' chunks; elements that no rank holds are NaN."""
    found: dict[tuple[str, str], torch.Tensor] = {}
    for state in states:
        for kind, name, start, elements in state.chunks:
            flat = found.setdefault((kind, name), torch.full((state.weights[name].numel(),), float("nan")))
            flat[start : start + elements.numel()] = elements
    return {key: flat.view_as(states[0].weights[key[1]]) for key, flat in found.items()}


def check_loaded(runs: Runs) -> None:
    """All that was stored is there on every rank, bit for bit: weights, moments, step counts, learning rates."""
    step = POSITIONS[runs.case.position]
    stored, loaded = ([rank.states[step] for rank in ranks] for ranks in (runs.before, runs.after))
    for state in loaded:
        assert state.weights.keys() == stored[0].weights.keys()
        for name, weight in stored[0].weights.items():
            assert torch.equal(state.weights[name], weight), name
        assert state.trainable == stored[0].trainable
        assert state.counts == stored[0].counts
        assert state.rates == stored[0].rates
    moments = {key: moment for key, moment in whole(stored).items() if key[0] != "master"}
    assert moments.keys() == {(kind, name) for kind in ("exp_avg", "exp_avg_sq") for name in stored[0].trainable}
    found = whole(loaded)
    masters = {name: found.pop((kind, name)) for kind, name in list(found) if kind == "master"}
    assert found.keys() == moments.keys()
    for key, moment in moments.items():
        assert torch.equal(found[key], moment), key
    assert set(masters) == (set() if runs.case.setup == "ddp" else set(stored[0].trainable))
    for name, master in masters.items():
        assert torch.equal(master, stored[0].weights[name]), name


def check_end(runs: Runs) -> None:
    """The end is that of the unstopped run, within rounding, and all ranks have come to the same."""
    now, then = runs.after[0], runs.before[0]
    digests = now.summary["parameter_digest"]
    assert isinstance(digests, dict)
    assert len(digests) == runs.case.world_size
    assert len(set(digests.values())) == 1, digests
    for key in ("status", "steps", "epochs"):
        assert now.summary[key] == then.summary[key], key
    assert phases(now) == phases(then), phases(now)
    assert now.weights.keys() == then.weights.keys()
    for name, weight in then.weights.items():
        apart = difference(now.weights[name], weight)
        assert apart <= 1, f"{name} is {apart:.3g} times the bound away"
    expected = rows_after(runs)
    assert [coordinates(row) for row in now.rows] == [coordinates(row) for row in expected]
    for row, before in zip(now.rows, expected, strict=True):
        # other values are those of one rank's part of a batch
        shared = ("lr",) if row["kind"] == "step" else ("train_loss_epoch", "val_loss")
        for key in shared:
            assert row[key] == pytest.approx(before[key], rel=RTOL), (row, before)


def check_identical(runs: Runs) -> None:
    """The end is that of the unstopped run, bit for bit, and so is each step on the way."""
    now, then = runs.after[0], runs.before[0]
    assert now.weights.keys() == then.weights.keys()
    for name, weight in then.weights.items():
        assert torch.equal(now.weights[name], weight), name
    for key in ("parameter_digest", "metrics"):
        assert now.summary[key] == then.summary[key], (key, now.summary[key], then.summary[key])
    for row, before in zip(now.rows, rows_after(runs), strict=True):
        assert timeless(row) == timeless(before), (row, before)


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    """The largest difference, in units of its bound; buffers of integers must be equal."""
    if not other.is_floating_point():
        return 0.0 if torch.equal(one, other) else math.inf
    return float(((one - other).abs() / (ATOL + RTOL * other.abs())).max())


def phases(run: Run) -> list[dict[str, object]]:
    """What summary.json says of the phases, but for what is measured."""
    found = run.summary["phases"]
    assert isinstance(found, list)
    return [{key: phase[key] for key in ("name", "first_epoch", "trainable", "frozen", "steps")} for phase in found]


def rows_after(runs: Runs) -> list[dict[str, object]]:
    """The rows of metrics.jsonl that the unstopped run wrote after the position; at an epoch's end that epoch's is."""
    step = POSITIONS[runs.case.position]
    return [row for row in runs.before[0].rows if isinstance(row["step"], int) and row["step"] > step]


def coordinates(row: dict[str, object]) -> tuple[object, ...]:
    """Which row it is."""
    return tuple(row.get(key) for key in ("kind", "step", "epoch", "phase"))


def timeless(row: dict[str, object]) -> dict[str, object]:
    """A row but for how long the step took."""
    return {key: value for key, value in row.items() if key not in ("step_seconds", "examples_per_s", "memory_bytes")}
