"""A schedule that is resumed while groups are frozen gives, later, the rates of a run that did not stop."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence

import pytest
import torch
from rate_cases import SCHEDULES, Task, optimizer_of

from flash_strategies.agreement import ControlGroup
from flash_strategies.checkpoint.chunks import Slice
from flash_strategies.checkpoint.engine_state import EngineState, put_back, restore_schedulers, take_out
from flash_strategies.engines.ddp import DDPEngine
from flash_strategies.transition import Transitions

RESUMABLE = ("CosineAnnealingLR with a floor", "StepLR", "CyclicLR of lists", "WarmUp", "OneCycleLR", "SequentialLR")


class Run:
    """One process, head last, the backbone frozen at first."""

    def __init__(self, name: str) -> None:
        self.task = Task()
        self.task.backbone.requires_grad_(False)
        self.optimizer = optimizer_of(self.task, "backbone head")
        self.schedule = SCHEDULES[name]
        self.scheduler = self.schedule.make(self.optimizer)
        self.transitions = Transitions(DDPEngine(self.task, self.optimizer, [self.scheduler]), ControlGroup(5.0))
        self.transitions.start("head")

    def steps(self, count: int) -> list[list[float]]:
        found = []
        for _ in range(count):
            self.optimizer.step()
            found.append([float(group["lr"]) for group in self.optimizer.param_groups])
            self.scheduler.step()  # type: ignore[attr-defined]
        return found

    def unfreeze(self, number: int) -> None:
        rates = dict.fromkeys(("backbone.0.weight", "backbone.0.bias"), 0.004)
        names = [n for n in self.transitions.engine.parameters if number > 1 or not n.startswith("backbone.1")]
        self.transitions.move(f"phase {number}", names, step=0, lr=rates)


@pytest.mark.parametrize("moved_before", [0, 1])
@pytest.mark.parametrize("name", RESUMABLE)
def test_rates_after_a_resume_are_those_of_a_run_that_did_not_stop(name: str, moved_before: int) -> None:
    unstopped, resumed = Run(name), Run(name)
    unstopped.steps(3)
    for number in range(moved_before):
        unstopped.unfreeze(number + 1)
        unstopped.steps(3)
    state = json.loads(json.dumps(take_out(unstopped.transitions).to_json()))
    buffer = io.BytesIO()
    torch.save(unstopped.scheduler.state_dict(), buffer)  # type: ignore[attr-defined]

    def read(slices: Sequence[Slice]) -> None:
        for one in slices:
            one.tensor.zero_()

    put_back(resumed.transitions, EngineState.from_json(state), read)
    buffer.seek(0)
    restore_schedulers(resumed.transitions.engine, [torch.load(buffer, weights_only=False)])
    for number in range(moved_before, 2):
        for run in (unstopped, resumed):
            run.unfreeze(number + 1)
        assert resumed.steps(4) == unstopped.steps(4)
