"""What trains on keeps its masters and moments through a transition, bit for bit; what freezes keeps no old buffer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from engine_cases import APART, SURVIVAL, Case

if TYPE_CHECKING:
    from conftest import Suites

pytestmark = pytest.mark.timeout(900)  # the first test of a suite waits for all of its cases

TRAINING_ON = ("bcde", "bd", "d")


@pytest.mark.parametrize("case", SURVIVAL, ids=lambda case: case.name)
def test_masters_and_moments_of_what_trains_on_are_the_same_bit_for_bit(case: Case, suites: Suites) -> None:
    for rank in suites.result(case.suite, case.world_size, case.name):
        assert [one["differ"] for one in rank] == [[], [], []]
        for one, layers in zip(rank, TRAINING_ON, strict=True):
            for kind in ("master", "exp_avg", "exp_avg_sq"):
                names = {f"{kind} {layer}.{what}" for layer in layers for what in ("weight", "bias")}
                assert names <= set(one["compared"])


@pytest.mark.parametrize("case", APART, ids=lambda case: case.name)
def test_refrozen_weights_keep_no_old_buffer_alive(case: Case, suites: Suites) -> None:
    assert suites.result(case.suite, case.world_size, case.name) == [[]] * case.world_size
