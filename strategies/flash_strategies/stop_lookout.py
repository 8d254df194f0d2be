"""Ranks agree on a stop at the same optimizer step, without waiting for each other in each one.

At agreed steps an all-reduce of what each rank was asked is begun, and it is read at the next such step, when it has
long arrived. How many steps come in between follows from the slowest rank's.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from flash_strategies.agreement import ControlGroup
from flash_strategies.run_session import stop_requested

_LOOK_SECONDS = 0.2
_MOST_STEPS = 16
_UNKNOWN = 10**12
"""Microseconds of a step before one was timed: looks are close together."""


class StopLookout:
    """One rank's; all ranks call each method at the same optimizer steps."""

    def __init__(self, control: ControlGroup) -> None:
        """Look at nothing yet."""
        self._control = control
        self._asked: Callable[[], torch.Tensor] | None = None
        self._asked_step, self._asked_at = 0, 0.0
        self._next_step = 0

    def agreed(self, step: int) -> bool:
        """After an optimizer step: whether all ranks stop here; they learn it a look after the last was asked.

        Raises:
            RuntimeError: a rank did not come within the control group's time-out.
        """
        if self._control.world_size == 1:
            return stop_requested()
        if step < self._next_step:
            return False
        stop, interval = 0, 1
        if self._asked is not None:
            stop, microseconds = self._asked().tolist()
            interval = min(max(int(_LOOK_SECONDS * 1e6 / max(microseconds, 1)), 1), _MOST_STEPS)
        self._ask(step)
        self._next_step = step + interval
        return bool(stop)

    def now(self) -> bool:
        """Whether any rank is asked to stop; waits for the answer. Where ranks wait for each other anyway."""
        if self._asked is not None:
            self._asked()
        self._asked, self._asked_at, self._next_step = None, 0.0, 0
        return bool(self._control.min_max(torch.tensor([int(stop_requested())]))[1])

    def _ask(self, step: int) -> None:
        now = time.monotonic()
        steps = step - self._asked_step
        microseconds = int((now - self._asked_at) * 1e6 / steps) if self._asked_at and steps > 0 else _UNKNOWN
        self._asked = self._control.begin_max(torch.tensor([int(stop_requested()), microseconds]))
        self._asked_step, self._asked_at = step, now
