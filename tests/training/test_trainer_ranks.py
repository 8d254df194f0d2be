"""The invariants through Flash's Trainer, at each way of holding the model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from trainer_suite import EPOCHS, SAVED, STEPS, Case

if TYPE_CHECKING:
    from conftest import Suites

CASES = [
    *(Case(2, setup) for setup in ("ddp", "zero2", "deepspeed_stage_3")),
    *(pytest.param(Case(2, setup), marks=pytest.mark.slow) for setup in ("auto", "zero1", "deepspeed_stage_2")),
    pytest.param(Case(1, "auto"), marks=pytest.mark.slow),
    pytest.param(Case(1, "zero2"), marks=pytest.mark.slow),
]
KINDS = {"zero1": "DeepSpeed", "zero2": "DeepSpeed", "deepspeed_stage_2": "DeepSpeed", "deepspeed_stage_3": "DeepSpeed"}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_invariants(case: Case, suites: Suites) -> None:
    ranks: list[dict[str, object]] = suites.result(case.suite, case.world_size, case.name)  # type: ignore[assignment]
    for found in ranks:
        assert found["digests"] == ranks[0]["digests"]  # 1: after every step
        kind = KINDS.get(case.setup, "DDP")
        assert found["strategy"] == ("SingleDeviceStrategy" if case.name == "1-auto" else f"Finetuning{kind}Strategy")
        assert found["error"] < 2e-6  # 2
        assert found["noop"] == 0  # 3
        assert found["frozen moved"] == []  # 4
        assert found["refrozen"] == 0
        assert found["held"] == [True] * EPOCHS
        assert found["unmoved"] == []  # 5
        assert found["resumed"] == (EPOCHS * STEPS - SAVED + 1, 0.0)  # 6
        assert found["again begins"] == 0  # a second finetune() is a first one with these weights
        assert found["again"] == 0
        assert found["predicted"] == [[0, 1], [2, 3], [4]]
        assert found["losses"] == ranks[0]["losses"]
