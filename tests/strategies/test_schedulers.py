"""Schedulers keep seeing all param groups, wherever they hold the optimizer; rates that are set by hand."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim import lr_scheduler as lr

from flash_strategies.engines.ddp import DDPEngine
from flash_strategies.errors import TransitionError

HEAD_LR, BACKBONE_LR = 0.3, 0.02


class Task(nn.Module):
    """A backbone of two layers and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        self.head = nn.Linear(2, 1)
        self.backbone.requires_grad_(False)


def optimizer_of(task: Task, **options: object) -> torch.optim.SGD:
    groups = [
        {"params": task.backbone.parameters(), "lr": BACKBONE_LR},
        {"params": task.head.parameters(), "lr": HEAD_LR},
    ]
    return torch.optim.SGD(groups, momentum=0.9, **options)


def moved(engine: DDPEngine, *parts: str, **options: object) -> list[dict[str, object]]:
    names = [name for name in engine.parameters if name.startswith(parts)]
    engine.rebuild(engine.plan("next", names, number=1, step=0, **options))
    return engine.optimizer.param_groups


def rates(engine: DDPEngine) -> list[float]:
    return [float(group["lr"]) for group in engine.optimizer.param_groups]


# ---- where schedulers hold the optimizer


class Holding:
    """A scheduler of no known class that halves all rates; `held` gives the optimizer's groups from what it keeps."""

    def __init__(self, kept: object, held: Callable[[object], list[dict[str, object]]]) -> None:
        self.kept, self.held = kept, held

    def step(self) -> None:
        for group in self.held(self.kept):
            group["lr"] *= 0.5

    def state_dict(self) -> dict[str, object]:
        return {}


class Slotted(Holding):
    """Without a `__dict__` of its own where it holds the optimizer."""

    __slots__ = ("place",)

    def __init__(self, place: Optimizer) -> None:
        super().__init__(None, lambda kept: self.place.param_groups)
        self.place = place


PLACES: dict[str, Callable[[Optimizer], Holding]] = {
    "another name": lambda o: Holding(o, lambda kept: kept.param_groups),
    "a list": lambda o: Holding([None, o], lambda kept: kept[1].param_groups),
    "a tuple in a dict": lambda o: Holding({"a": (1, o)}, lambda kept: kept["a"][1].param_groups),
    "a weak reference": lambda o: Holding(weakref.ref(o), lambda kept: kept().param_groups),
    "a slot": Slotted,
    "its groups": lambda o: Holding(o.param_groups, lambda kept: kept),
    "each group": lambda o: Holding(list(o.param_groups), lambda kept: kept),
    "another scheduler": lambda o: Holding(
        Holding(o, lambda kept: kept.param_groups), lambda kept: kept.kept.param_groups
    ),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_scheduler_reaches_frozen_groups_wherever_it_holds_the_optimizer(place: str) -> None:
    task = Task()
    optimizer = optimizer_of(task)
    scheduler = PLACES[place](optimizer)
    engine = DDPEngine(task, optimizer, [scheduler])
    scheduler.step()
    moved(engine, "head", "backbone")
    scheduler.step()
    optimizer.step()
    assert rates(engine) == [BACKBONE_LR / 4, HEAD_LR / 4]


def test_a_scheduler_without_the_optimizer_is_refused_by_name() -> None:
    task = Task()
    optimizer = optimizer_of(task)
    other = torch.optim.SGD(task.parameters(), lr=0.1)
    for scheduler in (lr.StepLR(other, 1), Holding(lambda: optimizer, lambda kept: kept().param_groups)):
        with pytest.raises(
            TransitionError, match=rf"not found in the learning-rate schedule {type(scheduler).__name__}"
        ):
            DDPEngine(task, optimizer, [scheduler])


def test_an_optimizer_around_an_optimizer_steps_live_groups() -> None:
    """SAM and Lookahead share the list of groups of the optimizer inside of them."""
    task = Task()
    inside = optimizer_of(task)
    outside = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    outside.param_groups = inside.param_groups
    scheduler = lr.ExponentialLR(inside, 0.5)
    engine = DDPEngine(task, outside, [scheduler])
    assert inside.param_groups is outside.param_groups
    assert [len(group["params"]) for group in inside.param_groups] == [2]
    inside.step()
    scheduler.step()
    moved(engine, "head", "backbone")
    assert rates(engine) == [BACKBONE_LR / 2, HEAD_LR / 2]


def test_the_view_is_the_optimizer_to_who_asks(recwarn: pytest.WarningsRecorder) -> None:
    task = Task()
    optimizer = optimizer_of(task)
    scheduler = lr.StepLR(optimizer, 1)
    DDPEngine(task, optimizer, [scheduler])
    view = scheduler.optimizer
    assert view in [optimizer]  # Lightning's LearningRateMonitor asks so
    assert type(view).__name__ == "SGD"
    assert view.state is optimizer.state
    assert type(copy.deepcopy(view)) is torch.optim.SGD
    optimizer.step()
    scheduler.step()
    assert not recwarn.list  # torch's, of a scheduler that steps before the optimizer


def test_torchs_warning_of_the_wrong_order_still_comes() -> None:
    task = Task()
    optimizer = optimizer_of(task)
    scheduler = lr.StepLR(optimizer, 1)
    DDPEngine(task, optimizer, [scheduler])
    with pytest.warns(UserWarning, match=r"before `optimizer.step\(\)`"):
        scheduler.step()


# ---- set by hand


def test_rates_set_by_hand_hold_and_are_what_a_schedule_begins_from() -> None:
    task = Task()
    optimizer = optimizer_of(task)
    captured = list(optimizer.param_groups)
    scheduler = lr.ExponentialLR(optimizer, 0.5)
    engine = DDPEngine(task, optimizer, [scheduler])
    moved(engine, "head", "backbone.1")
    for group in optimizer.param_groups:
        group["lr"] = 0.8
    optimizer.step()
    assert rates(engine) == [0.8, 0.8]
    scheduler.step()
    assert rates(engine) == [0.4, 0.4]
    assert [group["lr"] for group in moved(engine, "head", "backbone")] == [0.4, 0.4, 0.4]
    captured[1]["momentum"] = 0.1  # who kept the groups from before reaches the live ones
    optimizer.step()
    assert [group["momentum"] for group in optimizer.param_groups] == [0.9, 0.9, 0.1]


def test_a_rate_set_by_hand_after_a_schedule_stepped_wins() -> None:
    task = Task()
    optimizer = optimizer_of(task)
    scheduler = Holding(optimizer, lambda kept: kept.param_groups)
    engine = DDPEngine(task, optimizer, [scheduler])
    scheduler.step()
    optimizer.param_groups[0]["lr"] = 0.7
    optimizer.step()
    assert rates(engine) == [0.7]
    scheduler.step()
    optimizer.step()
    assert rates(engine) == [0.35]


def test_a_rate_set_by_hand_for_one_of_two_cohorts_is_that_ones() -> None:
    task = Task()
    optimizer = optimizer_of(task)
    scheduler = lr.ExponentialLR(optimizer, 0.5)
    engine = DDPEngine(task, optimizer, [scheduler])
    for older in (0, 1):
        moved(engine, "head")
        moved(engine, "head", "backbone.0")
        moved(engine, "head", "backbone")
        before = rates(engine)
        optimizer.param_groups[older]["lr"] = 0.6
        expected = [0.6 if index == older else rate for index, rate in enumerate(before)]
        optimizer.step()
        assert rates(engine) == expected
        scheduler.step()
        assert rates(engine) == pytest.approx([rate / 2 for rate in expected], rel=1e-12)


# ---- rates of one's own


@pytest.mark.parametrize("kind", ["one_cycle", "lambda", "plateau"])
def test_a_rate_of_its_own_keeps_its_share_of_its_homes(kind: str) -> None:
    task = Task()
    optimizer = torch.optim.SGD(task.parameters(), lr=0.1)
    scheduler = {
        "one_cycle": lambda: lr.OneCycleLR(optimizer, 0.1, total_steps=20, cycle_momentum=False),
        "lambda": lambda: lr.LambdaLR(optimizer, lambda step: 1 / (step + 1)),
        "plateau": lambda: lr.ReduceLROnPlateau(optimizer, patience=0, factor=0.7),
    }[kind]()
    arguments = (1.0,) if kind == "plateau" else ()
    engine = DDPEngine(task, optimizer, [scheduler])
    for _ in range(3):
        optimizer.step()
        scheduler.step(*arguments)
    old, new = moved(engine, "head", "backbone", lr=dict.fromkeys(engine.parameters, 0.004))
    share = 0.004 / old["lr"]
    assert new["lr"] == 0.004
    for _ in range(10):
        optimizer.step()
        scheduler.step(*arguments)
        assert new["lr"] == pytest.approx(old["lr"] * share, rel=1e-9)


def test_a_rate_of_its_own_while_its_homes_is_zero_holds_until_the_schedule_leaves_zero() -> None:
    task = Task()
    optimizer = torch.optim.SGD(task.parameters(), lr=0.1)
    scheduler = lr.LambdaLR(optimizer, lambda step: 0.0 if step < 3 else 0.5)
    engine = DDPEngine(task, optimizer, [scheduler])
    moved(engine, "head", "backbone", lr=dict.fromkeys(engine.parameters, 0.4))
    found = []
    for _ in range(4):
        found.append(rates(engine))
        optimizer.step()
        scheduler.step()
    assert found == [[0.0, 0.4]] * 3 + [[0.05, 0.2]]


# ---- options that are no floats


def test_tensor_rates_stay_tensors_that_schedules_write_to() -> None:
    task = Task()
    optimizer = torch.optim.SGD(
        [
            {"params": task.backbone.parameters(), "lr": torch.tensor(0.5)},
            {"params": task.head.parameters(), "lr": torch.tensor(2.0)},
        ],
        lr=1.0,
    )
    scheduler = lr.ExponentialLR(optimizer, 0.5)
    engine = DDPEngine(task, optimizer, [scheduler])
    own = dict.fromkeys(("backbone.1.weight", "backbone.1.bias"), 0.125)
    groups = moved(engine, "head", "backbone", lr=own)
    assert rates(engine) == [0.5, 0.125, 2.0]
    optimizer.step()
    scheduler.step()
    optimizer.step()
    assert rates(engine) == [0.25, 0.0625, 1.0]
    assert all(isinstance(group["lr"], torch.Tensor) for group in groups)


def test_names_that_torch_keeps_in_groups_follow_the_parameters() -> None:
    task = Task()
    optimizer = torch.optim.SGD(list(task.named_parameters()), lr=0.1)
    engine = DDPEngine(task, optimizer)
    assert optimizer.param_groups[0]["param_names"] == ["head.weight", "head.bias"]
    moved(engine, "head", "backbone.1")
    assert [group["param_names"] for group in optimizer.param_groups] == [
        ["head.weight", "head.bias"],
        ["backbone.1.weight", "backbone.1.bias"],
    ]
    optimizer.load_state_dict(optimizer.state_dict())
