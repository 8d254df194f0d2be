"""Learning rates are plain torch's, to the bit, at every step: every schedule, group order and way through phases."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from rate_cases import PATHS, SCHEDULES, Pair, Task, optimizer_of
from torch.optim import lr_scheduler

from flash_strategies.engines.ddp import DDPEngine

if TYPE_CHECKING:
    from conftest import Suites


@dataclass(frozen=True)
class Case:
    """One setup of the suite."""

    name: str
    world_size: int = 1
    suite: Path = Path(__file__).parent / "rate_suite.py"


def test_no_schedule_of_torch_is_left_out() -> None:
    assert set(lr_scheduler.__all__) - {"LRScheduler"} <= {name.split()[0] for name in SCHEDULES}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("order", ["head backbone", "backbone head"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_rates_are_those_of_plain_torch(name: str, order: str, path: str) -> None:
    task, schedule = Task(), SCHEDULES[name]
    for parameter in task.backbone.parameters():
        parameter.requires_grad_(False)
    optimizer = optimizer_of(task, order)
    scheduler = schedule.make(optimizer)
    engine = DDPEngine(task, optimizer, [scheduler])  # type: ignore[list-item]
    pair = Pair(schedule, order, task, engine, scheduler)

    def move(number: int, names: Sequence[str]) -> None:
        engine.rebuild(engine.plan(str(number), names, number=number, step=pair.done))

    assert pair.differences(path, optimizer.step, move) == []


@pytest.mark.timeout(300)
@pytest.mark.parametrize("case", [Case("zero2"), Case("zero3")], ids=lambda case: case.name)
def test_rates_at_zero_are_those_of_plain_torch(case: Case, suites: Suites) -> None:
    (found,) = suites.result(case.suite, case.world_size, case.name)
    assert isinstance(found, dict)
    assert {name: differences for name, differences in found.items() if differences} == {}
