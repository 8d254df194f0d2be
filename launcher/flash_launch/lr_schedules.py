"""Learning rate schedules as pure functions: optimizer step -> factor of the base learning rate.

One function serves all param groups, so a group that is added at a transition goes on where the others are.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from flash_launch.errors import ConfigError
from flash_launch.setup_keys import nearest

if TYPE_CHECKING:
    import torch

__all__ = [
    "Constant",
    "Cosine",
    "Linear",
    "OneCycle",
    "Schedule",
    "build_schedule",
    "build_scheduler",
    "schedule_names",
]

Schedule: TypeAlias = Callable[[int], float]
"""Step (counted from 0, in optimizer steps) -> factor."""

_NAMES = ("constant", "cosine", "linear", "one_cycle")


@dataclass(frozen=True)
class Constant:
    """1 after the warm-up."""

    warmup_steps: int = 0
    """Steps over which the factor rises to 1, see `_warmup`."""

    def __post_init__(self) -> None:
        """Raise ConfigError when a number makes no sense."""
        _check(None, self.warmup_steps)

    def __call__(self, step: int) -> float:
        """The factor at a step."""
        return _warmup(step, self.warmup_steps)


@dataclass(frozen=True)
class Cosine:
    """Half a cosine from 1 to `final`, without restarts: f + (1 - f) (1 + cos(pi t)) / 2.

    Equation 5 of Loshchilov and Hutter, SGDR, https://arxiv.org/abs/1608.03983; torch's CosineAnnealingLR.
    """

    total_steps: int
    """Optimizer steps of the run."""
    warmup_steps: int = 0
    """Steps over which the factor rises to 1, see `_warmup`."""
    final: float = 0.0
    """The factor after the last step."""

    def __post_init__(self) -> None:
        """Raise ConfigError when a number makes no sense."""
        _check(self.total_steps, self.warmup_steps)

    def __call__(self, step: int) -> float:
        """The factor at a step."""
        done = _progress(step, self.total_steps, self.warmup_steps)
        return _warmup(step, self.warmup_steps) * _cosine(1.0, self.final, done)


@dataclass(frozen=True)
class Linear:
    """A straight line from 1 to `final`: 1 + (f - 1) t, as torch's LinearLR."""

    total_steps: int
    """Optimizer steps of the run."""
    warmup_steps: int = 0
    """Steps over which the factor rises to 1, see `_warmup`."""
    final: float = 0.0
    """The factor after the last step."""

    def __post_init__(self) -> None:
        """Raise ConfigError when a number makes no sense."""
        _check(self.total_steps, self.warmup_steps)

    def __call__(self, step: int) -> float:
        """The factor at a step."""
        done = _progress(step, self.total_steps, self.warmup_steps)
        return _warmup(step, self.warmup_steps) * (1.0 + (self.final - 1.0) * done)


@dataclass(frozen=True)
class OneCycle:
    """Up from 1 / div_factor to 1 and down to 1 / (div_factor final_div_factor), both on cosines.

    Smith and Topin, https://arxiv.org/abs/1708.07120, as torch's OneCycleLR does it (two phases, cosine). The momentum
    does not cycle: a schedule is one factor of the learning rate and nothing else.
    """

    total_steps: int
    """Optimizer steps of the run; the last one is at the lowest rate."""
    warmup_steps: int = 0
    """Steps of the way up; 0: torch's share of 0.3."""
    div_factor: float = 25.0
    """The peak over the start."""
    final_div_factor: float = 1e4
    """The start over the end."""

    def __post_init__(self) -> None:
        """Raise ConfigError when a number makes no sense."""
        _check(self.total_steps, self.warmup_steps)

    def __call__(self, step: int) -> float:
        """The factor at a step."""
        start = 1.0 / self.div_factor
        peak = float(self.warmup_steps or 0.3 * self.total_steps) - 1.0
        last = self.total_steps - 1.0
        if step <= peak and peak > 0:
            return _cosine(start, 1.0, step / peak)
        done = min(1.0, (step - peak) / (last - peak)) if last > peak else 1.0
        return _cosine(1.0, start / self.final_div_factor, done)


def schedule_names() -> tuple[str, ...]:
    """What `--lr-schedule` takes."""
    return _NAMES


def build_schedule(name: str, *, total_steps: int | None, warmup_steps: int = 0) -> Schedule:
    """The schedule of that name over the run's optimizer steps (None: not known, which only constant can do).

    Raises:
        ConfigError: an unknown name, no total, or a warm-up that leaves no step after it.
    """
    if name == "constant":
        return Constant(warmup_steps)
    if name not in _NAMES:
        raise ConfigError(f"there is no --lr-schedule {name!r}{nearest(name, _NAMES)}. Schedules: {', '.join(_NAMES)}")
    if total_steps is None:
        raise ConfigError(f"--lr-schedule {name} needs to know how many steps the run has: give --lr-schedule constant")
    if name == "cosine":
        return Cosine(total_steps, warmup_steps)
    return Linear(total_steps, warmup_steps) if name == "linear" else OneCycle(total_steps, warmup_steps)


def build_scheduler(optimizer: torch.optim.Optimizer, schedule: Schedule) -> torch.optim.lr_scheduler.LambdaLR:
    """The schedule on an optimizer, to be stepped once per optimizer step; each group's learning rate is its base."""
    from torch.optim.lr_scheduler import LambdaLR

    # a plain function: LambdaLR stores the fields of other objects in its state, and a run that goes on for longer
    # would get back the length it had
    return LambdaLR(optimizer, lambda step: schedule(step))


def _check(total_steps: int | None, warmup_steps: int) -> None:
    if total_steps is not None and total_steps < 1:
        raise ConfigError(f"a schedule over {total_steps} optimizer steps: the run must have at least 1")
    if warmup_steps < 0:
        raise ConfigError(f"--warmup-steps is {warmup_steps}, but must be 0 or more")
    if total_steps is not None and warmup_steps >= total_steps and warmup_steps:
        raise ConfigError(f"--warmup-steps {warmup_steps} leaves nothing of the run's {total_steps} optimizer steps")


def _warmup(step: int, warmup_steps: int) -> float:
    """(step + 1) / n for the first n steps (Goyal et al., https://arxiv.org/abs/1706.02677, section 2.2).

    Above zero from the first step on, so that it moves the parameters.
    """
    return min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0


def _progress(step: int, total_steps: int, warmup_steps: int) -> float:
    """How much of the run after the warm-up is done, from 0 to 1."""
    return min(1.0, max(0, step - warmup_steps) / (total_steps - warmup_steps))


def _cosine(start: float, end: float, done: float) -> float:
    return end + (start - end) / 2.0 * (1.0 + math.cos(math.pi * done))
