"""Rates of phases on two ranks at every setup: what they are, that ranks are equal, equal plain torch, and resume."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from rates_suite import EPOCHS, HEAD, SHARES, Case, reference

if TYPE_CHECKING:
    from conftest import Suites

CASES = [
    *(Case(setup) for setup in ("ddp", "zero2", "zero3")),
    pytest.param(Case("zero1"), marks=pytest.mark.slow),
]
# fp32, fourteen steps of AdamW: the sum over two halves of a batch is rounded in another order than over the whole
TOLERANCE = 3e-6

every_setup = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def found(case: Case, suites: Suites) -> list[dict[str, object]]:
    return suites.result(case.suite, case.world_size, case.name)  # type: ignore[return-value]


@every_setup
def test_rates_are_those_of_the_phases(case: Case, suites: Suites) -> None:
    for end in found(case, suites):
        assert len(end["rates"]) == EPOCHS
        for epoch, rates in enumerate(end["rates"]):
            wanted = {"head": HEAD[epoch]} | {
                layer: HEAD[epoch] * shares[epoch] for layer, shares in SHARES.items() if shares[epoch] is not None
            }
            assert rates == {
                f"{layer}.{part}": pytest.approx(lr, rel=1e-12)
                for layer, lr in wanted.items()
                for part in ("weight", "bias")
            }, epoch
        assert end["rates"][3]["backbone.0.weight"] == 4e-4  # as it was given, to the last bit
        assert end["reported"] == [(pytest.approx(0.3 * HEAD[1]),), (4e-4,), (), (HEAD[6],)]


@every_setup
def test_ranks_are_equal_and_equal_plain_torch(case: Case, suites: Suites) -> None:
    first, second = (end["weights"] for end in found(case, suites))
    for name, expected in reference().items():
        assert torch.equal(first[name], second[name]), name
        assert torch.allclose(first[name], expected, rtol=0, atol=TOLERANCE), name


@every_setup
def test_a_resumed_loop_is_the_unstopped_one_bit_for_bit(case: Case, suites: Suites) -> None:
    for end in found(case, suites):
        assert end["differs"] == dict.fromkeys((0, 1, 2, 3, 5), ([], True))
