"""The proof of a transition itself: a rebuild that changes a weight is stopped, be the weight frozen or not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from flash_strategies.agreement import ControlGroup
from flash_strategies.engines.ddp import DDPEngine
from flash_strategies.errors import ProofError
from flash_strategies.plan import PhasePlan
from flash_strategies.transition import Transitions


class Careless(DDPEngine):
    """Changes one weight while it is rebuilt."""

    changes = ""

    def _rebuild(self, plan: PhasePlan) -> None:
        super()._rebuild(plan)
        if self.changes:
            with torch.no_grad():
                self.parameters[self.changes][0] += 1


def transitions(changes: str) -> Transitions:
    """The head trains, the backbone does not yet."""
    task = nn.ModuleDict({"embedding": nn.Linear(2, 2), "backbone": nn.Linear(2, 2), "head": nn.Linear(2, 1)})
    for name in ("embedding", "backbone"):
        task[name].requires_grad_(False)
    engine = Careless(task, torch.optim.SGD(task.parameters(), lr=0.1))
    found = Transitions(engine, ControlGroup())
    found.start("frozen")
    engine.changes = changes
    return found


def move(through: Transitions) -> None:
    names = [name for name in through.engine.parameters if not name.startswith("embedding")]
    through.move("unfrozen", names, step=0)


def test_a_transition_that_changes_nothing_passes() -> None:
    move(transitions(""))


@pytest.mark.parametrize("changed", ["head.weight", "backbone.weight"])
def test_a_transition_that_changes_a_weight_that_trains_is_stopped(changed: str) -> None:
    through = transitions(changed)
    through._frozen = {}  # so that only the comparison of before and after can notice
    with pytest.raises(ProofError, match=f"the transition to phase 'unfrozen' changed the weights of .*{changed}"):
        move(through)


def test_a_transition_that_changes_a_frozen_weight_is_stopped() -> None:
    with pytest.raises(ProofError, match=r"embedding\.weight moved while frozen"):
        move(transitions("embedding.weight"))


def test_a_first_step_without_a_rate_is_not_the_one_that_is_proved() -> None:
    through = transitions("")
    optimizer = through.engine.optimizer
    move(through)
    for rate, lazy in ((0.0, False), (0.1, True)):
        for group in optimizer.param_groups:
            group["lr"] = rate
        for name in through.trainable:
            through.engine.parameters[name].grad = torch.ones_like(through.engine.parameters[name])
        if lazy:  # the optimizer passes over it
            held = through.engine.parameters["backbone.weight"].detach().clone()
        through.before_step()
        optimizer.step()
        if not lazy:
            through.after_step()
            assert set(through.watched) == {"backbone.weight", "backbone.bias"}
    with torch.no_grad():
        through.engine.parameters["backbone.weight"].copy_(held)
    with pytest.raises(ProofError, match=r"backbone\.weight did not move although unfrozen"):
        through.after_step()
