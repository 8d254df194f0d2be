"""Looks for reasons to stop or save while training runs; the ranks agree on them at the same step, and none waits."""

from __future__ import annotations

import time
from dataclasses import astuple, dataclass

from flash_launch.checkpoint.attempts import Fence
from flash_strategies.agreed_looks import AgreedLooks
from flash_strategies.agreement import ControlGroup

__all__ = ["Lookout", "Reasons"]

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
        self._looks = AgreedLooks(control)

    def due(self, step: int) -> bool:
        """Whether there is a look after this step."""
        return self._looks.due(step)

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
        found = self._looks.answer()
        return Reasons(*found) if found is not None else None

    def ask(self, step: int, own: Reasons) -> None:
        """Begin to ask all ranks what they have found; the answer is due after some steps."""
        self._looks.ask(step, astuple(own))

    def now(self, step: int, own: Reasons) -> Reasons:
        """Ask, and wait for the answer; where ranks wait for each other anyway. Looks are close together after it.

        Raises:
            RuntimeError: a rank did not come within the control group's time-out.
        """
        return Reasons(*self._looks.now(step, astuple(own)))
