"""flash.Trainer in a script under flash-launch: stopped and resumed, bit for bit the fit that was not stopped."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from script_stop_suite import STOPS, Case

if TYPE_CHECKING:
    from conftest import Suites

CASES = [Case(2, "ddp"), pytest.param(Case(2, "zero2"), marks=pytest.mark.slow)]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_stopped_fit_ends_as_the_unstopped_one(case: Case, suites: Suites) -> None:
    for found in suites.result(case.suite, case.world_size, case.name):
        assert isinstance(found, dict)
        for when, (_, steps) in STOPS.items():
            assert found[when] == (75, steps, 0, True, [], ["fit1_0002_"]), when
            assert found[f"over: {when}"] == (0, [], []), f"a third start after the stop at {when} has nothing to do"
