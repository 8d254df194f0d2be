"""Optimizers that look at more than an element are refused at ZeRO before anything is built, and work without it."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from flash_strategies.engines.ddp import DDPEngine
from flash_strategies.engines.elementwise import require_elementwise
from flash_strategies.engines.zero3 import Zero3Engine
from flash_strategies.engines.zero12 import Zero12Engine
from flash_strategies.errors import TransitionError
from flash_strategies.plain import Finetuner


class TrustRatio(torch.optim.SGD):
    """Scales a step by the norm of the whole parameter, as LAMB and LARS do."""

    @torch.no_grad()
    def step(self, closure: object = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p -= group["lr"] * p.norm() / p.grad.norm() * p.grad


def task() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


@pytest.mark.parametrize("engine", [Zero12Engine, Zero3Engine])
@pytest.mark.parametrize("kind", [torch.optim.Adafactor, TrustRatio])
def test_what_looks_at_more_than_an_element_is_refused_at_zero_by_name(
    engine: type[Zero12Engine], kind: type[torch.optim.Optimizer]
) -> None:
    model = task()
    with pytest.raises(TransitionError, match=rf"{kind.__name__} does not treat each element.*use ddp"):
        engine(model, kind(model.parameters(), lr=1e-2))


def test_one_that_needs_a_closure_is_refused_at_zero() -> None:
    model = task()
    with pytest.raises(TransitionError, match="LBFGS must be given a closure"):
        Zero12Engine(model, torch.optim.LBFGS(model.parameters()))


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda p: torch.optim.AdamW(p, lr=1e-3, amsgrad=True),
        lambda p: torch.optim.SGD(p, lr=0.0, momentum=0.9, nesterov=True),
        lambda p: torch.optim.RMSprop(p, lr=torch.tensor(1e-2), foreach=False),
        lambda p: torch.optim.NAdam(p),
        lambda p: torch.optim.Rprop(p),
    ],
)
def test_a_trial_lets_others_pass_and_leaves_no_trace(optimizer: object) -> None:
    model = task()
    of = optimizer(list(model.parameters()))  # type: ignore[operator]
    scheduler = lr_scheduler.StepLR(of, 1)
    before = [parameter.clone() for parameter in model.parameters()]
    random = torch.get_rng_state()
    require_elementwise(of)
    assert all(map(torch.equal, before, model.parameters()))
    assert torch.equal(random, torch.get_rng_state())
    assert not of.state
    assert not getattr(of, "_opt_called", False)
    assert scheduler.last_epoch == 0


class Counting(torch.optim.SGD):
    """Keeps a number that belongs to no parameter."""

    def step(self, closure: object = None) -> None:
        super().step()
        self.state["seen"] = {"steps": self.state["seen"].get("steps", 0) + 1}


def test_state_of_no_parameter_is_kept_over_a_transition() -> None:
    model = task()
    model[0].requires_grad_(False)
    optimizer = Counting(model.parameters(), lr=0.1, momentum=0.9)
    engine = DDPEngine(model, optimizer)
    for number, names in enumerate((list(engine.parameters), ["1.weight", "1.bias"]), start=1):
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
        optimizer.step()
        engine.rebuild(engine.plan("next", names, number=number, step=number))
        assert optimizer.state["seen"] == {"steps": number}
    assert engine.state_bytes().moments == 4 * (4 * 2 + 2)


@pytest.mark.parametrize("stop", [1, 3])
def test_adafactor_trains_and_resumes_where_parameters_are_whole(stop: int, tmp_path: Path) -> None:
    def started() -> tuple[Finetuner, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = nn.Sequential(OrderedDict(backbone=nn.Linear(3, 4), head=nn.Linear(4, 1)))
        finetuner = Finetuner(model, ("freeze_unfreeze", 2))
        optimizer = torch.optim.Adafactor(model.parameters(), lr=0.1)
        finetuner.ddp(optimizer, [lr_scheduler.StepLR(optimizer, 2)])
        return finetuner, optimizer

    def epoch(number: int, finetuner: Finetuner, optimizer: torch.optim.Optimizer) -> None:
        model = finetuner.begin_epoch(number)
        model(torch.arange(6.0).reshape(2, 3)).square().sum().backward()
        finetuner.before_step()
        optimizer.step()
        optimizer.zero_grad()
        finetuner.after_step()
        finetuner.end_epoch()

    unstopped = started()
    for number in range(5):
        epoch(number, *unstopped)
        if number == stop:
            unstopped[0].save(tmp_path / "saved")
    resumed = started()
    resumed[0].load(tmp_path / "saved")
    for number in range(stop + 1, 5):
        epoch(number, *resumed)
    assert all(map(torch.equal, unstopped[0].task.parameters(), resumed[0].task.parameters()))
