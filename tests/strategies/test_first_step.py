"""The first step of a phase: what a loss scaler skips is none, gradients count as the optimizer sees them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import pytest
import torch
from torch import nn

from flash_strategies import Finetuner
from flash_strategies.errors import ProofError


class Task(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Linear(6, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.backbone(inputs)))


class Wrapper(torch.optim.Optimizer):
    """As Lookahead and SAM are often written: without Optimizer's constructor, so that no hook is called."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        self.inner = inner
        self._optimizer_step_pre_hooks, self._optimizer_step_post_hooks = OrderedDict(), OrderedDict()
        self.defaults, self.param_groups, self.state = inner.defaults, inner.param_groups, inner.state

    def step(self, closure: None = None) -> None:
        self.inner.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.inner.zero_grad(set_to_none)


Between = Callable[[Task], object]


class Loop:
    """A loop in fp16's manner on one process, in the first step of the phase that trains the backbone."""

    def __init__(self, optimizer_of: Callable[[nn.Module], torch.optim.Optimizer] | None = None) -> None:
        self.task = Task()
        self.finetuner = Finetuner(self.task, ("freeze_unfreeze", 1), max_epochs=3)
        sgd = torch.optim.SGD(self.task.parameters(), lr=1e-2)
        self.optimizer = optimizer_of(self.task) if optimizer_of else sgd
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20)
        self.finetuner.ddp(self.optimizer)
        self.finetuner.begin_epoch(0)
        self.step()
        self.finetuner.begin_epoch(1)

    def step(self, between: Between = lambda task: None, *, overflow: bool = False) -> None:
        """One step; `between` stands between `before_step` and the optimizer."""
        inputs = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
        hook = self.task.head.weight.register_hook(lambda gradient: gradient * (float("inf") if overflow else 1.0))
        self.scaler.scale(self.task(inputs).square().mean()).backward()
        hook.remove()
        self.finetuner.before_step()
        between(self.task)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.finetuner.after_step()
        self.optimizer.zero_grad()

    @property
    def watched(self) -> tuple[str, ...]:
        return self.finetuner.transitions.watched


def test_a_step_that_the_loss_scaler_skips_is_no_first_step() -> None:
    loop = Loop()
    before = loop.task.backbone.weight.clone()
    loop.step(overflow=True)  # in a parameter that is not watched
    assert torch.equal(loop.task.backbone.weight, before)
    assert loop.watched == ("backbone.weight", "backbone.bias")
    loop.step()
    assert not torch.equal(loop.task.backbone.weight, before)
    assert loop.watched == ()


def test_a_fused_optimizer_that_skips_by_itself_makes_no_first_step() -> None:
    loop = Loop(lambda task: torch.optim.SGD(task.parameters(), lr=1e-2, fused=True))
    loop.step(overflow=True)
    assert loop.watched == ("backbone.weight", "backbone.bias")
    loop.step()
    assert loop.watched == ()


@pytest.mark.parametrize(
    "between",
    [
        pytest.param(lambda task: nn.utils.clip_grad_norm_(task.parameters(), 1e-9), id="clipped"),
        pytest.param(lambda task: task.backbone.weight.grad.zero_(), id="masked"),
        pytest.param(lambda task: setattr(task.backbone.weight, "grad", None), id="taken away"),
    ],
)
def test_a_gradient_that_shrinks_before_the_step_raises_no_alarm(between: Between) -> None:
    loop = Loop()
    before = loop.task.backbone.weight.clone()
    loop.step(between)
    assert torch.equal(loop.task.backbone.weight, before)
    assert loop.watched == ()


def test_a_gradient_of_an_earlier_step_that_did_not_count_is_forgotten() -> None:
    loop = Loop()
    for group in loop.optimizer.param_groups:
        group["lr"] = 0.0
    loop.step()
    assert loop.watched == ("backbone.weight", "backbone.bias")
    for group in loop.optimizer.param_groups:
        group["lr"] = 1e-2
    loop.step(lambda task: task.backbone.weight.grad.zero_())
    assert loop.watched == ()


@pytest.mark.parametrize("wrapped", [False, True])
def test_what_does_not_move_is_named_also_with_a_scaled_loss(wrapped: bool) -> None:
    class Skips(torch.optim.SGD):
        """Passes over the backbone's weight."""

        def step(self, closure: None = None) -> None:
            parameters = [p for group in self.param_groups for p in group["params"] if p.shape == (8, 6)]
            kept = [p.clone() for p in parameters]
            super().step()
            with torch.no_grad():
                for parameter, value in zip(parameters, kept, strict=True):
                    parameter.copy_(value)

    def optimizer_of(task: nn.Module) -> torch.optim.Optimizer:
        skips = Skips(task.parameters(), lr=1e-2)
        return Wrapper(skips) if wrapped else skips

    loop = Loop(optimizer_of)
    with pytest.raises(ProofError, match=r"parameter backbone\.weight did not move although unfrozen"):
        loop.step()
