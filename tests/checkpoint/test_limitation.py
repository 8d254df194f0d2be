"""Flash's own limitation, closed: its `_deepspeed` strategies load and store their parameters in the middle of a run.

Flash's guide: "finetuning with DeepSpeed doesn't yet support the loading and storing of its parameters."
"""

from __future__ import annotations

import pytest
import torch
from matrix_cases import DEEPSPEED, LIMITATION, POSITIONS, SAVING_RANKS, Case
from matrix_runs import Runs, check_end, check_loaded, runs

pytestmark = pytest.mark.timeout(1800)  # the first test of a suite waits for all of its runs

UNFREEZING = ("freeze_unfreeze_deepspeed", "unfreeze_milestones_deepspeed")

named = pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=case.name, marks=[] if case.unstopped.strategy == UNFREEZING[0] else pytest.mark.slow)
        for case in LIMITATION
    ],
)


@pytest.fixture
def made(case: Case, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return runs(case, request, tmp_path_factory)


def test_each_strategy_of_the_guide_goes_on_before_and_after_its_unfreezing() -> None:
    assert {(case.unstopped.strategy, case.position) for case in LIMITATION} == {
        (strategy, position) for strategy in DEEPSPEED for position in ("before", "after")
    }
    assert all(case.world_size != SAVING_RANKS for case in LIMITATION)


@named
def test_parameters_are_stored_in_the_middle_of_the_run_and_loaded_on_other_ranks(made: Runs) -> None:
    check_loaded(made)


@named
def test_the_end_is_that_of_the_unstopped_run(made: Runs) -> None:
    check_end(made)


@named
def test_what_trains_has_moved_on_both_sides_of_the_stop(made: Runs) -> None:
    """So that what is equal is not what nobody touched."""
    states, end = made.before[0].states, made.after[0].weights
    start, stored = states[0].weights, states[POSITIONS[made.case.position]].weights
    head, backbone = "head.weight", "backbone.0.0.weight"
    assert not torch.equal(start[head], stored[head])
    assert not torch.equal(stored[head], end[head])
    strategy, before = made.case.unstopped.strategy, made.case.position == "before"
    frozen = strategy == "freeze_deepspeed"
    assert torch.equal(start[backbone], stored[backbone]) == (frozen or (strategy in UNFREEZING and before))
    assert torch.equal(stored[backbone], end[backbone]) == frozen
