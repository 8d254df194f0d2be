"""Flash's own limitation, closed: its `_deepspeed` strategies load and store their parameters in the middle of a run.

Flash's guide: "finetuning with DeepSpeed doesn't yet support the loading and storing of its parameters."
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from matrix_cases import DEEPSPEED, LIMITATION, POSITIONS, SAVING_RANKS, Case, Run
from matrix_runs import check_end, check_loaded, unstopped

if TYPE_CHECKING:
    from conftest import Suites

pytestmark = pytest.mark.timeout(1800)  # the first test of a suite waits for all of its cases

named = pytest.mark.parametrize("case", LIMITATION, ids=lambda case: case.name)


@pytest.fixture
def before(case: Case, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    return unstopped(case, request, tmp_path_factory)


@pytest.fixture
def ranks(case: Case, before: list[Run], suites: Suites) -> list[Run]:
    return suites.result(case.suite, case.world_size, case.name)


def test_each_strategy_of_the_guide_goes_on_before_and_after_its_unfreezing() -> None:
    assert {(case.unstopped.strategy, case.position) for case in LIMITATION} == {
        (strategy, position) for strategy in DEEPSPEED for position in ("before", "after")
    }
    assert all(case.world_size != SAVING_RANKS for case in LIMITATION)


@named
def test_parameters_are_stored_in_the_middle_of_the_run_and_loaded_on_other_ranks(
    case: Case, ranks: list[Run], before: list[Run]
) -> None:
    check_loaded(case, ranks, before)


@named
def test_the_end_is_that_of_the_unstopped_run(case: Case, ranks: list[Run], before: list[Run]) -> None:
    check_end(case, ranks, before)


@named
def test_what_the_strategy_says_has_moved_since(case: Case, ranks: list[Run], before: list[Run]) -> None:
    """So that equality is not that of weights that nobody touched."""
    stored = before[0].states[POSITIONS[case.position]].weights
    start, end = before[0].states[0].weights, ranks[0].weights
    unfreezes = case.unstopped.strategy.removesuffix("_deepspeed") in ("freeze_unfreeze", "unfreeze_milestones")
    trains_later = unfreezes or case.unstopped.strategy == "no_freeze_deepspeed"
    first = "backbone.0.0.weight"
    assert torch.equal(stored[first], start[first]) == (not trains_later or (unfreezes and case.position == "before"))
    assert torch.equal(end[first], stored[first]) == (not trains_later)
    assert not torch.equal(stored["head.weight"], start["head.weight"])
    assert not torch.equal(end["head.weight"], stored["head.weight"])
