"""The invariants of DESIGN.md through `lightning.pytorch` and LightningCLI: ddp and zero2 on two ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

import flash_strategies.lightning  # noqa: F401 - before the suite, which imports Lightning under its other name

# isort: split
from lightning_names_suite import EPOCHS, REFROZEN, STEPS, Case, trains

if TYPE_CHECKING:
    from conftest import Suites

cases = pytest.mark.parametrize("case", [Case("ddp"), Case("zero2")], ids=lambda case: case.name)


@cases
def test_the_name_that_was_imported_first_is_built_upon(case: Case, suites: Suites) -> None:
    assert all(found["one"] for found in suites.result(case.suite, case.world_size, case.name))


@cases
def test_ranks_are_equal_after_every_step(case: Case, suites: Suites) -> None:
    first, second = (found["weights"] for found in suites.result(case.suite, case.world_size, case.name))
    assert len(first) == len(second) == 1 + EPOCHS * STEPS
    for one, other in zip(first, second, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


@cases
def test_the_fit_equals_plain_torch_on_the_whole_batch(case: Case, suites: Suites) -> None:
    assert max(found["apart"] for found in suites.result(case.suite, case.world_size, case.name)) < 1e-6


@cases
def test_what_trains_moves_at_every_step_and_nothing_else(case: Case, suites: Suites) -> None:
    """The first step after an unfreeze included."""
    for found in suites.result(case.suite, case.world_size, case.name):
        for step, unmoved in enumerate(found["unmoved"]):
            names = found["weights"][0]
            assert unmoved == {name for name in names if not trains(name, step // STEPS)}, step


@cases
def test_frozen_parameters_have_no_gradient(case: Case, suites: Suites) -> None:
    for found in suites.result(case.suite, case.world_size, case.name):
        for step, names in enumerate(found["gradients"]):
            assert all(trains(name, step // STEPS) for name in names), step


@cases
def test_a_transition_that_changes_nothing_changes_no_bit(case: Case, suites: Suites) -> None:
    assert all(found["noop"] for found in suites.result(case.suite, case.world_size, case.name))


@cases
def test_a_resumed_fit_ends_as_the_whole_one(case: Case, suites: Suites) -> None:
    steps = 1 + (EPOCHS - REFROZEN + 1) * STEPS
    for found in suites.result(case.suite, case.world_size, case.name):
        assert found["resumed"] == (steps, True)
