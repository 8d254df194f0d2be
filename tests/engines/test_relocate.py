"""Slices of ZeRO-1/2 state that change hands when a group shrinks: 40 random layouts of odd sizes on 2 and 3 ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from engine_cases import RELOCATE, Case

if TYPE_CHECKING:
    from conftest import Suites

pytestmark = pytest.mark.timeout(900)  # the first test of a suite waits for all of its cases


@pytest.mark.parametrize("case", RELOCATE, ids=lambda case: case.name)
def test_every_rank_ends_with_its_part_of_the_new_layout(case: Case, suites: Suites) -> None:
    assert suites.result(case.suite, case.world_size, case.name) == [40] * case.world_size
