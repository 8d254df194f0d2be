"""Buffers that a forward pass changes: equal on all ranks after an epoch, and standing still where they are frozen."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from engine_cases import BUFFER_ALARMS, BUFFERS, Case

if TYPE_CHECKING:
    from conftest import Suites

pytestmark = pytest.mark.timeout(900)  # the first test of a suite waits for all of its cases

MEANS = ("c.running_mean", "c.running_var", "free.in_place", "free.by_data", "free.assigned")
CONSTANT = ("free.constant", "c.num_batches_tracked")  # torch's instance norms do not count
WORDS = {
    "frozen": "buffer b.running_mean moved while frozen",
    "differs": "their buffers differ in free.in_place",
    "shape": "of other names, shapes or types, the first of which is free.in_place (5,)",
}


@pytest.mark.parametrize("case", BUFFERS, ids=lambda case: case.name)
def test_what_differs_is_made_equal_and_what_is_frozen_stands_still(case: Case, suites: Suites) -> None:
    one, two = suites.result(case.suite, case.world_size, case.name)
    for name in one["start"]:
        still = name.startswith(("b.", "frozen.")) or name in CONSTANT
        for when in ("apart", "equal", "end"):
            assert torch.equal(one["start"][name], one[when][name]) == still, name
            assert when == "apart" or torch.equal(one[when][name], two[when][name]), name
        apart = torch.stack([one["apart"][name], two["apart"][name]])
        if name in MEANS:
            assert not torch.equal(*apart)
            torch.testing.assert_close(one["equal"][name], apart.mean(dim=0))
    assert one["equal"]["free.count"] == max(one["apart"]["free.count"], two["apart"]["free.count"])
    for name in ("free.signs", "free.queue"):  # the second as the task declares
        assert not torch.equal(one["apart"][name], two["apart"][name])
        assert torch.equal(one["equal"][name], one["apart"][name])


@pytest.mark.parametrize("case", BUFFER_ALARMS, ids=lambda case: case.name)
def test_what_cannot_be_mended_is_named_on_every_rank(case: Case, suites: Suites) -> None:
    for told in suites.result(case.suite, case.world_size, case.name):
        assert told is not None, "nothing was noticed"
        assert WORDS[case.arguments[1]] in told
