"""The proof at run time: what is wrong is found and named on every rank, and what is right raises no alarm."""

from __future__ import annotations

from importlib import metadata
from typing import TYPE_CHECKING

import pytest
from engine_cases import ALARMS, CALM, LINKED, SCALE, Case
from packaging.version import Version

if TYPE_CHECKING:
    from conftest import Suites

pytestmark = pytest.mark.timeout(900)  # the first test of a suite waits for all of its cases

MOVED_WHILE_FROZEN = "parameter a.weight moved while frozen"
WORDS = {
    "frozen_one": "parameter a.weight on rank 1 differs from rank 0's",
    "frozen_all": MOVED_WHILE_FROZEN,
    "ulp": "parameter d.bias on rank 1 differs from rank 0's",
    "stuck": "after the first step of phase 'train cd', parameter c.weight did not move although unfrozen",
    "copy": "the whole copy of parameter a.weight on rank 1 differs from the slices",
    "lr": "lr of param group 0 is",
    "start": "rank 1 differs from rank 0 ('here' is rank 0, 'there' rank 1): plan.phase is 'start' here",
}


@pytest.mark.parametrize("case", ALARMS, ids=lambda case: case.name)
def test_what_is_wrong_is_named_on_every_rank(case: Case, suites: Suites) -> None:
    setup, how = case.arguments
    # at stage 3 a slice has no copy that it could differ from, but it has a past
    words = MOVED_WHILE_FROZEN if setup == "zero3" and how == "frozen_one" else WORDS[how]
    for told in suites.result(case.suite, case.world_size, case.name):
        assert told is not None, "nothing was noticed"
        assert words in told


CD, ED = {"c.weight", "c.bias", "d.weight", "d.bias"}, {"e.weight", "e.bias", "d.weight", "d.bias"}
# which parameters moved in the first step after the transition, and after five
MOVED = {
    "zero_gradients": ({"d.weight", "d.bias"}, CD),  # d has moments already
    "warm_up": (set(), CD),
    "unused": ({"d.weight", "d.bias"}, ED),
    "tiny_bf16": (set(), set()),
    "shrinks": (set(), set()),
    "overflow": (set(), CD),
}


@pytest.mark.parametrize("case", CALM, ids=lambda case: case.name)
def test_what_is_right_raises_no_alarm(case: Case, suites: Suites) -> None:
    if case.arguments == ("zero3", "overflow") and Version(metadata.version("deepspeed")) < Version("0.19"):
        pytest.skip("before 0.19, DeepSpeed looks for an overflow at stage 3 in fp16 only, which needs a GPU")
    for rank in suites.result(case.suite, case.world_size, case.name):
        moved, later = set(rank["moved"]), set(rank["moved_later"])
        if case.arguments[1] == "ones_bf16":  # the bias moves, the weight cannot
            assert "c.bias" in moved
            assert "c.weight" not in later
        else:
            assert (moved, later) == MOVED[case.arguments[1]]


@pytest.mark.parametrize("case", LINKED, ids=lambda case: case.name)
def test_deepspeeds_own_functions_find_the_moments_of_what_was_unfrozen(case: Case, suites: Suites) -> None:
    (found,) = suites.result(case.suite, case.world_size, case.name)
    assert set(found) == CD


@pytest.mark.parametrize("case", SCALE, ids=lambda case: case.name)
def test_the_loss_scale_comes_over_a_transition_and_back_from_a_checkpoint(case: Case, suites: Suites) -> None:
    assert suites.result(case.suite, case.world_size, case.name) == [[512.0, 512.0, 512.0]]
