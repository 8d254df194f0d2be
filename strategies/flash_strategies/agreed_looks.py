"""Ranks agree on numbers at the same optimizer steps, without waiting for each other in each one.

At agreed steps an all-reduce of what each rank has found is begun, and it is read at the next such step, when it has
long arrived. Each rank adds how long its steps take, and from the slowest all choose how many steps come in between.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch

from flash_strategies.agreement import ControlGroup

_LOOK_SECONDS = 0.2
"""From look to look; what was found is acted on two looks after it, at most."""
_MOST_STEPS = 16
"""From look to look, for steps that become slower all of a sudden."""
_UNKNOWN = 10**12
"""Microseconds of a step before one was timed: looks are close together."""


class AgreedLooks:
    """One rank's; all ranks call each method at the same optimizer steps."""

    def __init__(self, control: ControlGroup) -> None:
        """Look at nothing yet."""
        self._control = control
        self._asked: Callable[[], torch.Tensor] | None = None
        self._asked_step, self._asked_at = 0, 0.0
        self._next_step, self._interval = 0, 1

    def due(self, step: int) -> bool:
        """Whether there is a look after this step."""
        return step >= self._next_step

    def answer(self) -> list[int] | None:
        """The greatest of each number that any rank had found when they were asked; None: they were not.

        Raises:
            RuntimeError: a rank did not come within the control group's time-out.
        """
        if self._asked is None:
            return None
        *found, microseconds = self._asked().tolist()
        self._asked = None
        self._interval = min(max(int(_LOOK_SECONDS * 1e6 / max(microseconds, 1)), 1), _MOST_STEPS)
        return found

    def ask(self, step: int, found: Sequence[int]) -> None:
        """Begin to ask all ranks what they have found; the answer is due after some steps."""
        now = time.monotonic()
        steps = step - self._asked_step
        microseconds = int((now - self._asked_at) * 1e6 / steps) if self._asked_at and steps > 0 else _UNKNOWN
        self._asked = self._control.begin_max(torch.tensor([*found, microseconds]))
        self._asked_step, self._asked_at, self._next_step = step, now, step + self._interval

    def now(self, step: int, found: Sequence[int]) -> list[int]:
        """Ask, and wait for the answer; where ranks wait for each other anyway. Looks are close together after it.

        Raises:
            RuntimeError: a rank did not come within the control group's time-out.
        """
        self._asked, self._asked_at = None, 0.0
        self._asked_step, self._next_step, self._interval = step, step + 1, 1
        answer: list[int] = self._control.min_max(torch.tensor(found))[1].tolist()
        return answer
