"""What the tests of the matrix share: the unstopped runs, made once per session, and how runs are compared."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from matrix_cases import POSITIONS, SAVING_RANKS, Case, Run, State

from conftest import Suites

# As in tests/parity: on other ranks and setups sums are taken in another order, which fp32 rounds differently, and Adam
# makes of a relative error of a gradient one of (relative error * learning rate) of a weight. Measured over the whole
# matrix: MEASURED. A step too many or too few is 1e-3.
ATOL, RTOL = 2e-6, 1e-5


class Unstopped(Suites):
    """Runs the unstopped runs that the session's cases go on with, in one start of their ranks."""

    def _asked_for(self, suite: Path, world_size: int) -> list[str]:
        cases = [getattr(item, "callspec", None) and item.callspec.params.get("case") for item in self._session.items]
        return list(dict.fromkeys(case.unstopped.name for case in cases if isinstance(case, Case)))


_UNSTOPPED = pytest.StashKey[Unstopped]()


def unstopped(case: Case, request: pytest.FixtureRequest, folders: pytest.TempPathFactory) -> list[Run]:
    """The run that a case goes on with, rank by rank."""
    runs = request.session.stash.setdefault(_UNSTOPPED, Unstopped(request.session, folders))
    return runs.result(case.suite, SAVING_RANKS, case.unstopped.name)


def whole(states: Sequence[State]) -> dict[tuple[str, str], torch.Tensor]:
    """Masters and moments put together from all ranks' chunks; elements that no rank holds are NaN."""
    found: dict[tuple[str, str], torch.Tensor] = {}
    for state in states:
        for kind, name, start, elements in state.chunks:
            flat = found.setdefault((kind, name), torch.full((state.weights[name].numel(),), float("nan")))
            flat[start : start + elements.numel()] = elements
    return {key: flat.view_as(states[0].weights[key[1]]) for key, flat in found.items()}


def check_loaded(case: Case, ranks: list[Run], before: list[Run]) -> None:
    """All that was stored is there on every rank, bit for bit: weights, moments, step counts, learning rates."""
    stored, loaded = ([run.states[POSITIONS[case.position]] for run in runs] for runs in (before, ranks))
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
    assert set(masters) == (set() if case.setup == "ddp" else set(stored[0].trainable))
    for name, master in masters.items():
        assert torch.equal(master, stored[0].weights[name]), name


def check_end(case: Case, ranks: list[Run], before: list[Run]) -> None:
    """The end is that of the unstopped run, within rounding, and all ranks have come to the same."""
    now, then = ranks[0], before[0]
    digests = now.summary["parameter_digest"]
    assert isinstance(digests, dict)
    assert len(digests) == case.world_size
    assert len(set(digests.values())) == 1
    for key in ("status", "steps", "epochs"):
        assert now.summary[key] == then.summary[key]
    assert phases(now) == phases(then)
    assert now.weights.keys() == then.weights.keys()
    for name, weight in then.weights.items():
        # what does not depend on how a batch is dealt out; integers exactly
        torch.testing.assert_close(
            now.weights[name], weight, atol=ATOL, rtol=RTOL, msg=lambda message, name=name: f"{name}: {message}"
        )
    assert [coordinates(row) for row in now.rows] == [coordinates(row) for row in rows_after(case, then)]
    for row, expected in zip(now.rows, rows_after(case, then), strict=True):
        for key in ("lr", "train_loss_epoch", "val_loss"):
            assert (key in row) == (key in expected)
            if key in row:
                assert row[key] == pytest.approx(expected[key], rel=RTOL)


def check_identical(case: Case, ranks: list[Run], before: list[Run]) -> None:
    """The end is that of the unstopped run, bit for bit, and so are all steps on the way."""
    now, then = ranks[0], before[0]
    assert now.weights.keys() == then.weights.keys()
    for name, weight in then.weights.items():
        assert torch.equal(now.weights[name], weight), name
    for key in ("parameter_digest", "metrics"):
        assert now.summary[key] == then.summary[key]
    assert [timeless(row) for row in now.rows] == [timeless(row) for row in rows_after(case, then)]


def phases(run: Run) -> list[dict[str, object]]:
    """What summary.json says of the phases, but for what is measured."""
    found = run.summary["phases"]
    assert isinstance(found, list)
    return [{key: phase[key] for key in ("name", "first_epoch", "trainable", "frozen", "steps")} for phase in found]


def rows_after(case: Case, run: Run) -> list[dict[str, object]]:
    """The rows of metrics.jsonl that a run writes which goes on at the case's position."""
    step = POSITIONS[case.position]
    # at the end of an epoch its own row is written already
    return [row for row in run.rows if isinstance(row["step"], int) and row["step"] > step]


def coordinates(row: dict[str, object]) -> tuple[object, ...]:
    """Which row it is."""
    return tuple(row.get(key) for key in ("kind", "step", "epoch", "phase"))


def timeless(row: dict[str, object]) -> dict[str, object]:
    """A row but for how long the step took."""
    return {key: value for key, value in row.items() if key not in ("step_seconds", "examples_per_s")}
