"""Fifty transitions in one process leave nothing behind: hooks, engines and the bytes of live tensors stay constant."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from engine_cases import LEAKS, Case

if TYPE_CHECKING:
    from conftest import Suites

pytestmark = pytest.mark.timeout(900)  # the first test of a suite waits for all of its cases

# The operands of the last exchange of digests (eleven integers) may live on until gloo's thread lets go of them.
OPERANDS, OPERAND_BYTES = 2, 176


@pytest.mark.parametrize("case", LEAKS, ids=lambda case: case.name)
def test_nothing_grows(case: Case, suites: Suites) -> None:
    setup = case.arguments[0]
    for rank in suites.result(case.suite, case.world_size, case.name):
        assert len(rank) == 12
        second = rank[1]
        for later in rank[2:]:
            for what in second.keys() - {"tensors", "bytes"}:
                assert later[what] == second[what], what
            assert abs(later["tensors"] - second["tensors"]) <= OPERANDS
            assert abs(later["bytes"] - second["bytes"]) <= OPERAND_BYTES
        assert second["AveragingDDP"] == (setup == "ddp")
        assert second["DeepSpeedEngine"] == (setup != "ddp")
        assert second["DeepSpeedZeroOptimizer"] == (setup in ("zero1", "zero2"))
        assert second["DeepSpeedZeroOptimizer_Stage3"] == (setup == "zero3")
