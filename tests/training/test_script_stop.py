"""flash.Trainer in a script under flash-launch: stopped and resumed, bit for bit the fit that was not stopped."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from script_stop_suite import STOPS, Case

if TYPE_CHECKING:
    from conftest import Suites

CASES = [Case(2, "ddp"), *(pytest.param(Case(2, setup), marks=pytest.mark.slow) for setup in ("zero2", "lightning"))]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_stopped_fit_ends_as_the_unstopped_one(case: Case, suites: Suites) -> None:
    for found in suites.result(case.suite, case.world_size, case.name):
        assert isinstance(found, dict)
        for when, (_, steps) in STOPS.items():
            assert found[when] == (75, steps, 0, True, [], ["fit1_0002_"]), when
            code, seen, differing = found[f"over: {when}"]
            if case.setup == "lightning":  # whose checkpoint has one rank's statistics
                differing = [name for name in differing if "running_" not in name]
            assert (code, seen, differing) == (0, [], []), f"a third start after the stop at {when} has nothing to do"
