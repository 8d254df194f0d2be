"""Training on ranks equals training in one process: every strategy, at every setup, on 1, 2 and 4 ranks."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

import pytest
import torch
from parity_cases import CASES, EPOCHS, Case, Run, trains
from parity_reference import Epoch, factor, rate, run, steps_per_epoch

if TYPE_CHECKING:
    from conftest import Suites

pytestmark = pytest.mark.timeout(900)  # the first test of a suite waits for all of its cases

# Sums over the batch are taken in another order (per rank, then over ranks), which fp32 rounds differently: 2**-24 =
# 6e-8 relative per operation. Adam divides by the root of the second moment, so that a relative error of a gradient
# becomes an error of (relative error * learning rate) of a weight, whatever the gradient's size. Measured over all
# cases, after 12 steps: 6e-7 in weights of order 1, 1.2e-7 in running statistics, 1.2e-7 in moments of order 0.1. The
# bounds leave room for other builds of the kernels; a step too many or too few is 1e-4 to 1e-2.
ATOL, RTOL = 2e-6, 1e-5
# Moments carry the relative error of gradients, of the largest where sums cancel.
MOMENT_RTOL = 1e-4

FP32 = [case for case in CASES if not case.bf16]


def named(cases: list[Case]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", cases, ids=lambda case: case.name)


@pytest.fixture
def ranks(case: Case, suites: Suites) -> list[Run]:
    return suites.result(case.suite, case.world_size, case.name)


@cache
def _reference(case: Case) -> list[Epoch]:
    return run(case)


def reference(case: Case) -> list[Epoch]:
    # neither the setup nor, without batch norms, the number of ranks makes a difference to it
    return _reference(replace(case, setup="", world_size=case.world_size if case.net == "conv" else 1))


def whole(ranks: list[Run], epoch: int, shapes: dict[str, torch.Tensor]) -> dict[tuple[str, str], torch.Tensor]:
    """Masters and moments put together from all ranks' chunks; elements that no rank holds are NaN."""
    found: dict[tuple[str, str], torch.Tensor] = {}
    for rank in ranks:
        for kind, name, start, elements in rank.chunks[epoch]:
            flat = found.setdefault((kind, name), torch.full((shapes[name].numel(),), float("nan")))
            flat[start : start + elements.numel()] = elements
    return {key: flat.view_as(shapes[key[1]]) for key, flat in found.items()}


@named(CASES)
def test_ranks_are_bit_identical_after_every_step(case: Case, ranks: list[Run]) -> None:
    assert [len(rank.steps) for rank in ranks] == [EPOCHS * steps_per_epoch(case)] * case.world_size
    for steps in zip(*(rank.steps for rank in ranks), strict=True):
        for step in steps[1:]:
            assert step.weights == steps[0].weights


@named(FP32)
def test_weights_equal_the_reference(case: Case, ranks: list[Run]) -> None:
    for epoch, expected in enumerate(reference(case)):
        for name, weight in expected.weights.items():
            torch.testing.assert_close(
                ranks[0].weights[epoch + 1][name],
                weight,
                atol=ATOL,
                rtol=RTOL,
                msg=lambda m, n=name, e=epoch: f"epoch {e}, {n}: {m}",
            )


@named(FP32)
def test_running_statistics_equal_the_reference_on_every_rank(case: Case, ranks: list[Run]) -> None:
    if case.net != "conv":
        assert ranks[0].buffers == [{}] * EPOCHS
    for epoch, expected in enumerate(reference(case)):
        for rank in ranks:
            torch.testing.assert_close(rank.buffers[epoch], expected.buffers, atol=ATOL, rtol=RTOL)
            for name, value in rank.buffers[epoch].items():
                assert torch.equal(value, ranks[0].buffers[epoch][name])


@named(FP32)
def test_masters_moments_and_steps_equal_the_reference(case: Case, ranks: list[Run]) -> None:
    for epoch, expected in enumerate(reference(case)):
        state = whole(ranks, epoch, expected.weights)
        masters = {name: state.pop(("master", name)) for kind, name in list(state) if kind == "master"}
        assert set(masters) == (set() if case.setup == "ddp" else trains(case, epoch))
        assert set(state) == set(expected.moments)
        for name, master in masters.items():
            assert torch.equal(master, ranks[0].weights[epoch + 1][name])
        for key, moment in expected.moments.items():
            scale = float(moment.abs().max())
            torch.testing.assert_close(
                state[key],
                moment,
                atol=MOMENT_RTOL * scale,
                rtol=MOMENT_RTOL,
                msg=lambda m, k=key, e=epoch: f"epoch {e}, {k}: {m}",
            )
        for rank in ranks:
            assert rank.counts[epoch] == expected.steps


@named(CASES)
def test_what_trains_moves_at_once_and_what_is_frozen_never(case: Case, ranks: list[Run]) -> None:
    moved: dict[int, list[set[str]]] = defaultdict(list)
    before = None
    for step in ranks[0].steps:
        if before is not None:
            moved[step.epoch].append({name for name, now in step.weights.items() if now != before[name]})
        before = step.weights
    for epoch in range(EPOCHS):
        frozen = set(ranks[0].weights[0]) - trains(case, epoch)
        start, end = ranks[0].weights[epoch], ranks[0].weights[epoch + 1]
        for name in frozen:
            assert torch.equal(start[name], end[name]), f"{name} moved while frozen in epoch {epoch}"
        if epoch and not case.bf16:
            # weight decay moves also what has no gradient
            assert moved[epoch][0] == trains(case, epoch)
        for rank in ranks:
            held = {name for _, name, _, _ in rank.chunks[epoch]}
            assert not held & frozen
            assert held == (trains(case, epoch) & held)
            for step in rank.steps:
                if step.epoch == epoch:
                    assert not frozen & set(step.gradients)


@named(FP32)
def test_learning_rates_follow_the_schedule_through_transitions(case: Case, ranks: list[Run]) -> None:
    for rank in ranks:
        for number, step in enumerate(rank.steps):
            expected = {name: rate(case, name) * factor(case, number) for name in trains(case, step.epoch)}
            assert step.rates == pytest.approx(expected, rel=1e-9)
