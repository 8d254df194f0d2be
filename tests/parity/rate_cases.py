"""Every schedule that torch and timm have, on two param groups of different rates; and phases to run them through."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim import Optimizer, swa_utils
from torch.optim import lr_scheduler as lr

from flash_strategies.engines.base import Engine

HEAD, BACKBONE = 1e-2, 1e-3
STEPS = 5  # in each phase

PATHS = {
    "freeze_unfreeze": (("head",), ("head", "backbone")),
    "milestones": (("head",), ("head", "backbone.2"), ("head", "backbone")),
    "refreeze": (("head",), ("head", "backbone"), ("head",), ("backbone.0",), ("head", "backbone")),
}


class Task(nn.Module):
    """A backbone of three layers and a head, of different shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5), nn.Linear(5, 2))
        self.head = nn.Linear(2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.backbone(x))


class WarmUp(lr.LRScheduler):
    """A user's own: warm-up, then a cosine; with a list of one entry per group under a name of its own."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.peaks = [group["lr"] for group in optimizer.param_groups]
        super().__init__(optimizer)

    def get_lr(self) -> list[float]:
        k = self.last_epoch
        factor = (k + 1) / 3 if k < 3 else 0.5 * (1 + math.cos(math.pi * k / 30))
        return [peak * factor for peak, _ in zip(self.peaks, self.optimizer.param_groups, strict=True)]


class HeadFirst:
    """A user's own that is no LRScheduler: the groups warm up one after the other; weight decay is scheduled too."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.held = {"groups": optimizer.param_groups}
        self.done = 0
        self.bases = [group["lr"] for group in optimizer.param_groups]

    def step(self) -> None:
        self.done += 1
        for index, (group, base) in enumerate(zip(self.held["groups"], self.bases, strict=True)):
            group["lr"] = base * min(1.0, max(0.0, self.done / 4 - index))
            group["weight_decay"] = 0.01 * self.done

    def state_dict(self) -> dict[str, int]:
        return {"done": self.done}


@dataclass(frozen=True)
class Schedule:
    """How a schedule is made and stepped."""

    make: Callable[[Optimizer], object]
    arguments: Callable[[int], tuple[object, ...]] = lambda step: ()


def loss(step: int) -> tuple[float]:
    """A metric that stops improving."""
    return (max(0.2, 1 - 0.1 * step),)


def torch_schedules() -> dict[str, Schedule]:
    """torch's, by the name of their class and what is special about it."""
    makers: dict[str, Callable[[Optimizer], object]] = {
        "LambdaLR": lambda o: lr.LambdaLR(o, lambda step: 0.9**step),
        "LambdaLR of a list": lambda o: lr.LambdaLR(o, [lambda step: 0.9**step, lambda step: 1 / (1 + step)]),
        "MultiplicativeLR": lambda o: lr.MultiplicativeLR(o, [lambda step: 0.9, lambda step: 0.8]),
        "ConstantLR": lambda o: lr.ConstantLR(o, 0.5, total_iters=4),
        "StepLR": lambda o: lr.StepLR(o, 3, gamma=0.5),
        "MultiStepLR": lambda o: lr.MultiStepLR(o, [2, 7, 9], gamma=0.5),
        "LinearLR": lambda o: lr.LinearLR(o, 0.2, total_iters=6),
        "ExponentialLR": lambda o: lr.ExponentialLR(o, 0.9),
        "PolynomialLR": lambda o: lr.PolynomialLR(o, total_iters=40, power=2.0),
        "CosineAnnealingLR": lambda o: lr.CosineAnnealingLR(o, T_max=30),
        "CosineAnnealingLR with a floor": lambda o: lr.CosineAnnealingLR(o, T_max=9, eta_min=5e-4),
        "CosineAnnealingWarmRestarts": lambda o: lr.CosineAnnealingWarmRestarts(o, T_0=4, eta_min=5e-4),
        "OneCycleLR": lambda o: lr.OneCycleLR(o, [HEAD, BACKBONE], total_steps=30, final_div_factor=10),
        "CyclicLR with a common base": lambda o: lr.CyclicLR(o, 1e-4, [HEAD, BACKBONE], step_size_up=4),
        "CyclicLR of lists": lambda o: lr.CyclicLR(o, [1e-3, 1e-5], [HEAD, BACKBONE], 3, base_momentum=[0.5, 0.7]),
        "SequentialLR": lambda o: lr.SequentialLR(
            o, [lr.LinearLR(o, 0.1, total_iters=4), lr.CosineAnnealingLR(o, T_max=20, eta_min=2e-4)], milestones=[4]
        ),
        "ChainedScheduler": lambda o: lr.ChainedScheduler(
            [lr.LinearLR(o, 0.1, total_iters=4), lr.CosineAnnealingLR(o, T_max=20, eta_min=2e-4)]
        ),
        "SWALR": lambda o: swa_utils.SWALR(o, [5e-3, 2e-3], anneal_epochs=6),
        "WarmUp": WarmUp,
        "HeadFirst": HeadFirst,
    }
    plateau = Schedule(lambda o: lr.ReduceLROnPlateau(o, factor=0.5, patience=1, min_lr=[1e-3, 1e-5]), loss)
    return {**{name: Schedule(make) for name, make in makers.items()}, "ReduceLROnPlateau": plateau}


def timm_schedules() -> dict[str, Schedule]:
    """timm's, where it is installed; the step's number is theirs to be given."""
    try:
        from timm import scheduler as of
    except ImportError:
        return {}
    makers: dict[str, Callable[[Optimizer], object]] = {
        "timm.Cosine": lambda o: of.CosineLRScheduler(
            o, t_initial=8, lr_min=2e-4, cycle_limit=3, warmup_t=3, warmup_lr_init=1e-5, k_decay=1.5
        ),
        "timm.Cosine with noise": lambda o: of.CosineLRScheduler(o, t_initial=30, noise_range_t=2),
        "timm.MultiStep": lambda o: of.MultiStepLRScheduler(o, [2, 7], decay_rate=0.5),
        "timm.Poly": lambda o: of.PolyLRScheduler(o, t_initial=20, lr_min=2e-4),
        "timm.Step": lambda o: of.StepLRScheduler(o, decay_t=3, decay_rate=0.5, warmup_t=2),
        "timm.Tanh": lambda o: of.TanhLRScheduler(o, t_initial=20, lr_min=2e-4),
        "timm.WSD": lambda o: of.WSDLRScheduler(o, t_initial=20, decay_t=12, lr_min=2e-4, warmup_t=3),
        "timm.Plateau": lambda o: of.PlateauLRScheduler(o, decay_rate=0.5, patience_t=1, lr_min=1e-4, mode="min"),
    }
    return {
        name: Schedule(make, lambda step, name=name: (step, *(loss(step) if "Plateau" in name else ())))
        for name, make in makers.items()
    }


SCHEDULES = {**torch_schedules(), **timm_schedules()}


def optimizer_of(task: Task, order: str) -> torch.optim.SGD:
    """Head or backbone first, as users write it."""
    groups = {
        "head": {"params": list(task.head.parameters()), "lr": HEAD},
        "backbone": {"params": list(task.backbone.parameters()), "lr": BACKBONE, "weight_decay": 0.5},
    }
    return torch.optim.SGD([groups[name] for name in order.split()], lr=1.0, momentum=0.9)


@dataclass
class Pair:
    """A schedule on an engine's optimizer, and the same in plain torch."""

    schedule: Schedule
    order: str
    task: Task
    engine: Engine
    scheduler: object

    def __post_init__(self) -> None:
        self.plain = optimizer_of(Task(), self.order)
        self.plain_scheduler = self.schedule.make(self.plain)
        self.done = 0

    def differences(self, path: str, step: Callable[[], None], move: Callable[[int, Sequence[str]], None]) -> list[str]:
        """What differs, in any step of a path; in words."""
        found: list[str] = []
        for number, parts in enumerate(PATHS[path]):
            if number:
                move(number, [name for name, _ in self.task.named_parameters() if name.startswith(parts)])
            for _ in range(STEPS):
                step()
                self.plain.step()
                found += self._now(f"phase {number}, step {self.done}")
                self.done += 1
                for scheduler in (self.scheduler, self.plain_scheduler):
                    scheduler.step(*self.schedule.arguments(self.done))  # type: ignore[attr-defined]
        return found

    def _now(self, when: str) -> Iterator[str]:
        plain = dict(zip(self.order.split(), self.plain.param_groups, strict=True))
        for cohort, group in zip(self.engine.cohorts, self.engine.optimizer.param_groups, strict=True):
            wanted = plain[cohort.names[0].split(".")[0]]
            for key in ("lr", "momentum", "weight_decay"):
                if group[key] != wanted[key]:
                    yield f"{when}: {key} of {cohort.names[0]} is {group[key]}, in plain torch {wanted[key]}"
