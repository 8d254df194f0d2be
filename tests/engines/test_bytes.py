"""What freezing saves, counted from live tensors and collectives: nothing a rank holds or sends is of frozen weights.

The model has twenty equal layers of 4,096 weights; one trains, so that 95 % are frozen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from engine_cases import BYTES, Case

if TYPE_CHECKING:
    from conftest import Suites

pytestmark = pytest.mark.timeout(900)  # the first test of a suite waits for all of its cases

LAYER, LAYERS = 64 * 64, 20
# DeepSpeed pads flat buffers to the world size and to alignment, and sums a norm and flags: a few numbers
PADDING = 64
SCALARS = 32
# The operands of the last exchange of digests (minimum and maximum) may live on until gloo's thread lets go of them.
OPERANDS = 2 * 8 * LAYERS


@pytest.mark.parametrize("state", ["frozen", "all", "refrozen"])
@pytest.mark.parametrize("case", BYTES, ids=lambda case: case.name)
def test_held_and_sent_bytes_are_those_of_what_trains(case: Case, state: str, suites: Suites) -> None:
    setup, precision = case.arguments
    weight = 2 if precision == "bf16" else 4  # bytes of a weight and of its gradient
    trainable = LAYER * (LAYERS if state == "all" else 1)
    share = -(-trainable // case.world_size)
    masters, moments, gradients, bucket = {
        "ddp": (0, 2 * trainable * weight, trainable * weight, 0),
        # after a step, stages 1 and 2 have freed their gradients; all stages have one bucket for reducing them
        "zero1": (4 * share, 8 * share, 0, LAYER * weight),
        "zero2": (4 * share, 8 * share, 0, LAYER * weight),
        "zero3": (4 * share, 8 * share, weight * share, LAYER * weight),
    }[setup]
    for rank in suites.result(case.suite, case.world_size, case.name):
        found = rank[state]
        # what the library tells
        for told, expected in (("masters", masters), ("moments", moments), ("gradients", gradients)):
            assert expected <= found[told] <= expected + PADDING * 8 * LAYERS * bool(expected), told
        # what is alive in the process beside the weights; DDP in torch keeps a step count per parameter
        told = found["masters"] + found["moments"] + found["gradients"]
        rest = found["live"] - told - bucket
        assert 0 <= rest <= SCALARS + OPERANDS + 4 * LAYERS * (state == "all")
        # what is sent
        wire = dict(found["wire"])
        most = trainable * weight + PADDING * weight * LAYERS
        if setup == "ddp":
            assert wire == {"allreduce_": trainable * weight}
        elif setup == "zero3":
            # gradients; the weights themselves are gathered in each pass, frozen or not: that is what stage 3 is
            assert trainable * weight <= wire.pop("_reduce_scatter_base_") <= most
            assert LAYERS * LAYER * weight <= wire.pop("_allgather_base_")
            assert sum(wire.values()) <= SCALARS
        else:
            assert trainable * weight <= wire.pop("_allgather_base_") <= most
            assert trainable * weight <= sum(wire.values()) <= most + SCALARS


@pytest.mark.parametrize("case", BYTES, ids=lambda case: case.name)
def test_95_percent_frozen_costs_5_percent(case: Case, suites: Suites) -> None:
    for rank in suites.result(case.suite, case.world_size, case.name):
        for kind in ("masters", "moments", "gradients"):
            assert rank["frozen"][kind] <= 0.052 * rank["all"][kind]
            assert rank["refrozen"][kind] == rank["frozen"][kind]
        assert rank["refrozen"]["wire"] == rank["frozen"]["wire"]
        assert abs(rank["refrozen"]["live"] - rank["frozen"]["live"]) <= OPERANDS
