"""Learning-rate schedulers through transitions: as if all param groups had always been there."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim import lr_scheduler as lr

from flash_strategies.engines.ddp import DDPEngine
from flash_strategies.schedulers import flattened, park, per_group_lists, reindex

HEAD_LR, BACKBONE_LR = 0.3, 0.02
Schedule = Callable[[Optimizer], lr.LRScheduler | lr.ReduceLROnPlateau]


class Task(nn.Module):
    """A backbone of three layers and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
        self.head = nn.Linear(2, 1)


def optimizer_of(task: Task) -> torch.optim.SGD:
    groups = [
        {"params": task.head.parameters(), "lr": HEAD_LR},
        {"params": task.backbone.parameters(), "lr": BACKBONE_LR, "weight_decay": 0.5},
    ]
    return torch.optim.SGD(groups, lr=1.0, momentum=0.9)


SCHEDULES: dict[str, Schedule] = {
    "lambda": lambda o: lr.LambdaLR(o, lambda step: 0.9**step),
    "lambda_per_group": lambda o: lr.LambdaLR(o, [lambda step: 0.9**step, lambda step: 1 / (1 + step)]),
    "multiplicative": lambda o: lr.MultiplicativeLR(o, lambda step: 0.9),
    "constant": lambda o: lr.ConstantLR(o, 0.5, total_iters=4),
    "step": lambda o: lr.StepLR(o, 3, gamma=0.5),
    "multi_step": lambda o: lr.MultiStepLR(o, [2, 5, 9], gamma=0.5),
    "linear": lambda o: lr.LinearLR(o, 0.2, total_iters=6),
    "exponential": lambda o: lr.ExponentialLR(o, 0.9),
    "polynomial": lambda o: lr.PolynomialLR(o, total_iters=40, power=2.0),
    "cosine": lambda o: lr.CosineAnnealingLR(o, T_max=30),
    "warm_restarts": lambda o: lr.CosineAnnealingWarmRestarts(o, T_0=5),
    "one_cycle": lambda o: lr.OneCycleLR(o, [HEAD_LR, BACKBONE_LR], total_steps=30),
    "cyclic": lambda o: lr.CyclicLR(o, [HEAD_LR / 9, BACKBONE_LR / 9], [HEAD_LR, BACKBONE_LR], step_size_up=4),
    "sequential": lambda o: lr.SequentialLR(
        o, [lr.LinearLR(o, 0.1, total_iters=4), lr.CosineAnnealingLR(o, T_max=20)], milestones=[4]
    ),
    "chained": lambda o: lr.ChainedScheduler([lr.LinearLR(o, 0.1, total_iters=4), lr.ExponentialLR(o, 0.9)]),
    "plateau": lambda o: lr.ReduceLROnPlateau(o, factor=0.5, patience=1),
}
PHASES = (
    ("head",),
    ("head", "backbone.2"),
    ("head", "backbone"),
    ("head",),
    ("head", "backbone"),
    ("backbone.0",),
    ("",),
)


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_parameter_sees_the_schedule_without_a_jump(name: str) -> None:
    task, undisturbed = Task(), Task()
    for parameter in task.backbone.parameters():
        parameter.requires_grad_(False)
    optimizer, expected = optimizer_of(task), optimizer_of(undisturbed)
    schedule, expected_schedule = SCHEDULES[name](optimizer), SCHEDULES[name](expected)
    engine = DDPEngine(task, optimizer, [schedule])
    for number, parts in enumerate(PHASES):
        wanted = [n for n, _ in task.named_parameters() if n.startswith(parts)]
        if number:
            engine.rebuild(engine.plan(str(number), wanted, number=number, step=3 * number))
        for _ in range(3):
            head_rate, backbone_rate = (group["lr"] for group in expected.param_groups)
            for cohort, group in zip(engine.cohorts, optimizer.param_groups, strict=True):
                for parameter in cohort.names:
                    right = head_rate if parameter.startswith("head") else backbone_rate
                    assert group["lr"] == pytest.approx(right, rel=1e-6), f"{parameter} in phase {number}"
                    assert group["weight_decay"] == (0.0 if parameter.startswith("head") else 0.5)
                if "momentum" in expected.param_groups[0]:
                    assert group["momentum"] == pytest.approx(expected.param_groups[0]["momentum"])
            optimizer.step()
            expected.step()
            arguments = (1.0,) if isinstance(schedule, lr.ReduceLROnPlateau) else ()
            schedule.step(*arguments)
            expected_schedule.step(*arguments)


def test_entries_follow_their_groups_by_name_and_not_by_length() -> None:
    task = Task()
    optimizer = optimizer_of(task)
    # OneCycleLR has a list of two phases as well as lists of two groups
    schedule = lr.OneCycleLR(optimizer, [HEAD_LR, BACKBONE_LR], total_steps=10, cycle_momentum=False)
    phases = schedule._schedule_phases
    assert len(phases) == 2
    lists = per_group_lists(schedule, 2)
    assert set(lists) == {"base_lrs", "_last_lr"}
    optimizer.param_groups.append({**optimizer.param_groups[0], "params": []})
    bases = list(schedule.base_lrs)
    reindex([schedule], optimizer, 2, [1, 0, 0])
    assert schedule.base_lrs == [bases[1], bases[0], bases[0]]
    assert len(schedule.get_last_lr()) == 3
    assert schedule._schedule_phases is phases


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
def test_schedulers_within_schedulers_are_found() -> None:
    optimizer = optimizer_of(Task())
    inner = [lr.LinearLR(optimizer, 0.5), lr.StepLR(optimizer, 2), lr.ExponentialLR(optimizer, 0.9)]
    chained = lr.ChainedScheduler(inner[:2])
    outer = lr.SequentialLR(optimizer, [chained, inner[2]], milestones=[3])
    assert flattened([outer]) == [outer, chained, *inner]


def test_parked_entries_come_back() -> None:
    optimizer = optimizer_of(Task())
    schedule = lr.LambdaLR(optimizer, [lambda step: 1.0, lambda step: 0.5])
    optimizer.step()
    entries, functions = park([schedule], 2, 1), list(schedule.lr_lambdas)
    del optimizer.param_groups[1]
    reindex([schedule], optimizer, 2, [0])
    assert schedule.lr_lambdas == functions[:1]
    optimizer.param_groups.append({"params": [], "lr": 0.0})
    reindex([schedule], optimizer, 1, [0, entries])
    assert schedule.lr_lambdas == functions
    assert schedule.base_lrs == [HEAD_LR, BACKBONE_LR]


@pytest.mark.parametrize("kind", ["one_cycle", "lambda"])
def test_a_rate_of_its_own_goes_on_in_the_schedules_shape(kind: str) -> None:
    task = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    task[0].requires_grad_(False)
    optimizer = torch.optim.SGD(task.parameters(), lr=0.1)
    if kind == "one_cycle":
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=20, cycle_momentum=False)
    else:
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (step + 1))
    engine = DDPEngine(task, optimizer, [scheduler])
    for _ in range(3):
        optimizer.step()
        scheduler.step()
    rates = dict.fromkeys(("0.weight", "0.bias"), 0.004)
    engine.rebuild(engine.plan("all", list(engine.parameters), number=1, step=3, lr=rates))
    old, new = optimizer.param_groups
    share = 0.004 / old["lr"]
    assert new["lr"] == 0.004
    for _ in range(10):
        optimizer.step()
        scheduler.step()
        assert new["lr"] == pytest.approx(old["lr"] * share, rel=1e-9)
