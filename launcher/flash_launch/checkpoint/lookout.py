"""Looks for reasons to stop or to save while training runs; the ranks agree on them at the same step, and none waits.

At agreed steps an all-reduce of what each rank has found is started, and it is read at the next such step, when it has
long arrived. Each rank adds how long its steps take, and from the slowest all choose how many steps come in between.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import astuple, dataclass

import torch

from flash_launch.checkpoint.attempts import Fence
from flash_strategies.agreement import ControlGroup

__all__ = ["Lookout", "Reasons"]

_LOOK_SECONDS = 0.2
"""From look to look; a reason is acted on two looks after it was found, at most."""
_MOST_STEPS = 16
"""From look to look, for steps that become slower all of a sudden."""
_UNKNOWN = 10**12
"""Microseconds of a step before one was timed: looks are close together."""
_FENCE_SECONDS = 5.0


@dataclass(frozen=True)
class Reasons:
    """What one rank has found or, after an agreement, any rank has: the greatest of their numbers."""

    stop: int = 0
    """1: somebody asks the run to stop."""
    save: int = 0
    """1: a checkpoint is due by the clock."""
    fenced: int = 0
    """1: a newer attempt owns the run."""
    writing: int = 0
    """1: a checkpoint is still being written."""
    outcome: int = 0
    """Of a checkpoint that was being written, see writer.Outcome."""


class Lookout:
    """One rank's; all ranks call each method at the same optimizer steps."""

    def __init__(self, control: ControlGroup, fence: Fence) -> None:
        """Look at nothing yet.

        Args:
            control: the ranks that agree.
            fence: of this attempt; rank 0 looks at it.
        """
        self._control, self._fence = control, fence
        self._fence_looked = time.monotonic()
        self._fenced = False
        self._asked: Callable[[], torch.Tensor] | None = None
        self._asked_step, self._asked_at = 0, 0.0
        self._next_step, self._interval = 0, 1

    def due(self, step: int) -> bool:
        """Whether there is a look after this step."""
        return step >= self._next_step

    def fenced(self) -> bool:
        """Whether a newer attempt owns the run, as far as rank 0 has looked; it does so every few seconds."""
        now = time.monotonic()
        if self._control.rank == 0 and not self._fenced and now - self._fence_looked > _FENCE_SECONDS:
            self._fence_looked = now
            self._fenced = self._fence.newer() is not None
        return self._fenced

    def answer(self) -> Reasons | None:
        """What all ranks together had found when they were asked; None: they were not.

        Raises:
            RuntimeError: a rank did not come within the control group's time-out.
        """
        if self._asked is None:
            return None
        *found, microseconds = self._asked().tolist()
        self._asked = None
        self._interval = min(max(int(_LOOK_SECONDS * 1e6 / max(microseconds, 1)), 1), _MOST_STEPS)
        return Reasons(*found)

    def ask(self, step: int, own: Reasons) -> None:
        """Begin to ask all ranks what they have found; the answer is due after some steps."""
        now = time.monotonic()
        steps = step - self._asked_step
        microseconds = int((now - self._asked_at) * 1e6 / steps) if self._asked_at and steps > 0 else _UNKNOWN
        self._asked = self._control.begin_max(torch.tensor([*astuple(own), microseconds]))
        self._asked_step, self._asked_at, self._next_step = step, now, step + self._interval

    def now(self, step: int, own: Reasons) -> Reasons:
        """Ask, and wait for the answer; where ranks wait for each other anyway. Looks are close together after it.

        Raises:
            RuntimeError: a rank did not come within the control group's time-out.
        """
        self._asked, self._asked_at = None, 0.0
        self._asked_step, self._next_step, self._interval = step, step + 1, 1
        return Reasons(*self._control.min_max(torch.tensor(astuple(own)))[1].tolist())
