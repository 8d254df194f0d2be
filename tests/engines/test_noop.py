"""A transition that changes nothing changes no bit of what follows: every setup, also with offload, fp32 and bf16."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from engine_cases import NOOP, PHASES, Case

if TYPE_CHECKING:
    from conftest import Suites

pytestmark = pytest.mark.timeout(900)  # the first test of a suite waits for all of its cases


@pytest.mark.parametrize("case", NOOP, ids=lambda case: case.name)
def test_noop_transitions_change_no_bit(case: Case, suites: Suites) -> None:
    for rank in suites.result(case.suite, case.world_size, case.name):
        assert rank == [[]] * len(PHASES)
