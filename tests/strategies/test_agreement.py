"""Agreement on one rank, where there is nobody to disagree with; with others it is tested in tests/engines."""

from __future__ import annotations

import pytest
import torch

from flash_strategies.agreement import ControlGroup
from flash_strategies.plan import PhasePlan


def test_one_rank_agrees_with_itself() -> None:
    control = ControlGroup(0.1)
    plan = PhasePlan("frozen", 0, 0, ())
    assert (control.rank, control.world_size) == (0, 1)
    assert control.agree(plan) == plan.fingerprint()
    assert control.gather("a value", "here") == ["a value"]
    control.meet("here")
    values = torch.tensor([3, -1])
    low, high = control.min_max(values)
    assert torch.equal(low, values)
    assert torch.equal(high, values)
    assert torch.equal(control.sum(values), values)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("[Rank 0]: Ranks 1 failed to pass monitoredBarrier in 1000 ms", "rank 1 did not come within 0.1 s"),
        ("[Rank 0]: Ranks 1, 3, 7 failed to pass monitoredBarrier", "ranks 1, 3, 7 did not come within 0.1 s"),
        ("Rank 2 failed to pass monitoredBarrier in 5 ms", "rank 2 did not come within 0.1 s"),
        ("something else\nat length", "not all ranks came within 0.1 s: something else"),
    ],
)
def test_missing_ranks_are_named_from_what_torch_says(said: str, told: str) -> None:
    assert ControlGroup(0.1)._missing(RuntimeError(said)) == told
