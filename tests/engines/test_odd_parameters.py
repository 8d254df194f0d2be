"""Odd parameters and gradients train as in plain torch at every setup that takes them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from engine_cases import SETUPS
from engine_nets import GLOBAL_BATCH
from odd_nets import NETS, STEPS, optimizer_of
from torch import nn

from flash_strategies.engines.zero12 import Zero12Engine

if TYPE_CHECKING:
    from conftest import Suites

pytestmark = pytest.mark.timeout(900)  # the first test of a suite waits for all of its cases


@dataclass(frozen=True)
class Case:
    """A network at a setup, on two ranks."""

    net: str
    setup: str

    suite = Path(__file__).with_name("odd_suite.py")
    world_size = 2

    @property
    def name(self) -> str:
        return f"{self.net}-{self.setup}"


CASES = [
    *(Case(net, setup) for net in ("odd", "reentrant") for setup in SETUPS),
    *(Case(net, "ddp") for net in ("sparse", "complex")),
]


@cache
def reference(net: str) -> list[dict[str, torch.Tensor]]:
    """One process, plain torch: what is frozen is in no optimizer, and what took no part has gradient zero."""
    task = NETS[net]()
    optimizer = optimizer_of(net, task)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 4, 0.7)
    found, step = [], 0
    for layers in NETS[net].phases:
        for name, parameter in task.named_parameters():
            if parameter.is_floating_point() or parameter.is_complex():
                parameter.requires_grad_(name[0] in layers)
            if not parameter.requires_grad:
                optimizer.state.pop(parameter, None)
        optimizer.param_groups[0]["params"] = live = [p for p in task.parameters() if p.requires_grad]
        for _ in range(STEPS):
            generator = torch.Generator().manual_seed(step)
            inputs = torch.randn(GLOBAL_BATCH, task.widths[0], generator=generator)
            targets = torch.randn(GLOBAL_BATCH, task.widths[-1], generator=generator)
            task.even = step % 2 == 0
            for parameter in task.parameters():
                parameter.grad = None
            ((task(inputs) - targets) ** 2).mean().backward()
            for parameter in live:
                parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            optimizer.step()
            schedule.step()
            step += 1
        found.append({name: value.clone() for name, value in task.state_dict(keep_vars=False).items()})
    return found


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_equals_plain_torch_phase_by_phase(case: Case, suites: Suites) -> None:
    for rank in suites.result(case.suite, case.world_size, case.name):
        for phase, (ours, theirs) in enumerate(zip(rank, reference(case.net), strict=True)):
            assert set(ours) <= set(theirs)  # a tied weight has one name among the parameters
            for name, value in ours.items():
                assert (value.dtype, value.shape) == (theirs[name].dtype, theirs[name].shape)
                torch.testing.assert_close(
                    value, theirs[name], atol=2e-6, rtol=1e-4, msg=lambda m, n=name, p=phase: f"phase {p}, {n}: {m}"
                )


def test_a_one_by_one_kernel_lies_as_deepspeed_needs_it() -> None:
    task = nn.Conv2d(4, 4, 1).to(memory_format=torch.channels_last)
    assert task.weight.is_contiguous()  # and its last stride is 4
    Zero12Engine(task, torch.optim.SGD(task.parameters(), lr=0.1))
    assert task.weight.stride() == (4, 1, 1, 1)
