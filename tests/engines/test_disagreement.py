"""Ranks that disagree, or do not come: each is named within seconds, nothing hangs, and nothing was changed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from engine_cases import AGREEMENT, Case

if TYPE_CHECKING:
    from conftest import Suites

pytestmark = pytest.mark.timeout(900)  # the first test of a suite waits for all of its cases

DIFFERENCES = {
    "phase": "plan.phase is 'unfrozen' here and 'another' there",
    "names": "plan.groups[1].names[0] is 'c.weight' here and 'b.weight' there",
    "lr": "plan.groups[1].options.lr is ",
    "step": "plan.step is 2 here and 3 there",
}


@pytest.mark.parametrize("case", [c for c in AGREEMENT if c.what == "disagreement"], ids=lambda case: case.name)
def test_the_rank_that_differs_is_named_on_every_rank_with_the_first_difference(case: Case, suites: Suites) -> None:
    odd = case.world_size - 1
    for rank in suites.result(case.suite, case.world_size, case.name):
        assert f"rank {odd} differs from rank 0" in rank["told"]
        assert DIFFERENCES[case.arguments[1]] in rank["told"]
        assert rank["seconds"] < 5
        assert rank["changed"] == []
        assert rank["later"] == [], "the run could not go on as if nothing had happened"


@pytest.mark.parametrize("case", [c for c in AGREEMENT if c.what == "absence"], ids=lambda case: case.name)
def test_the_rank_that_does_not_come_is_named_and_nobody_hangs(case: Case, suites: Suites) -> None:
    first, *others = suites.result(case.suite, case.world_size, case.name)
    assert f"transition to phase 'unfrozen', rank {case.world_size - 1} did not come within 1 s" in first["told"]
    for rank in others:
        assert "rank 0 did not answer within 1 s" in rank["told"]
    for rank in (first, *others):
        assert rank["seconds"] < 5
        assert rank["changed"] == []
        assert rank["later"] == [], "the run could not go on as if nothing had happened"
