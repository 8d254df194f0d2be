"""The raw engines, without Lightning, equal torch's AdamW in one process: setups, and flash-launch's own templates."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import pytest
import torch
from engine_cases import PHASES, REFERENCE, STEPS, UNUSED, Case
from engine_nets import GLOBAL_BATCH, Chain, adamw, one_cycle
from torch import nn

if TYPE_CHECKING:
    from conftest import Suites

pytestmark = pytest.mark.timeout(900)  # the first test of a suite waits for all of its cases


@cache
def reference() -> list[dict[str, torch.Tensor]]:
    task = Chain()
    live: set[str] = set()
    optimizer = adamw(task)
    schedule = one_cycle(torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=1e-2))
    found = []
    step = 0
    for layers in PHASES:
        now = {name for name, _ in task.named_parameters() if name[0] in layers}
        for name, parameter in task.named_parameters():
            parameter.requires_grad_(name in now)
            parameter.grad = None
            if name in live - now:
                optimizer.state.pop(parameter)
        live = now
        optimizer.param_groups[0]["params"] = [p for p in task.parameters() if p.requires_grad]
        for _ in range(STEPS):
            generator = torch.Generator().manual_seed(step)
            inputs = torch.randn(GLOBAL_BATCH, 7, generator=generator)
            targets = torch.randn(GLOBAL_BATCH, 3, generator=generator)
            task.even = step % 2 == 0
            for parameter in optimizer.param_groups[0]["params"]:
                parameter.grad = torch.zeros_like(parameter)
            ((task(inputs) - targets) ** 2).mean().backward()
            optimizer.param_groups[0]["lr"] = schedule.get_last_lr()[0]
            optimizer.step()
            schedule.optimizer.step()
            schedule.step()
            step += 1
        found.append({name: p.detach().clone() for name, p in task.named_parameters()})
    return found


@pytest.mark.parametrize("case", REFERENCE, ids=lambda case: case.name)
def test_equals_torch_phase_by_phase(case: Case, suites: Suites) -> None:
    for rank in suites.result(case.suite, case.world_size, case.name):
        for phase, (ours, theirs) in enumerate(zip(rank, reference(), strict=True)):
            for name, weight in theirs.items():
                # rounding of sums in another order, see tests/parity/test_parity.py
                torch.testing.assert_close(
                    ours[name], weight, atol=2e-6, rtol=1e-4, msg=lambda m, n=name, p=phase: f"phase {p}, {n}: {m}"
                )


@pytest.mark.parametrize("case", UNUSED, ids=lambda case: case.name)
def test_a_parameter_that_took_no_part_is_stepped_with_gradient_zero(case: Case, suites: Suites) -> None:
    ranks = suites.result(case.suite, case.world_size, case.name)
    for phase in range(2):
        moments = {key: pair for rank in ranks for key, pair in rank[phase].items()}
        assert {key.split()[0] for key in moments} == {"exp_avg", "exp_avg_sq"}
        for key, (before, after) in moments.items():
            assert before.abs().max() > 0
            decay = {"exp_avg": 0.9, "exp_avg_sq": 0.999}[key.split()[0]]
            tolerance = 1e-2 if before.dtype == torch.bfloat16 else 1e-6  # ddp in bf16 has its moments in bf16
            torch.testing.assert_close(after, before * decay, rtol=tolerance, atol=0, msg=lambda m, k=key: f"{k}: {m}")
