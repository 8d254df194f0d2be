"""A checkpoint that is being written, in a thread or while training waits, and how that ended."""

from __future__ import annotations

import threading
from collections.abc import Callable
from enum import IntEnum

from flash_launch.checkpoint.attempts import Fence
from flash_launch.checkpoint.manifest import Position
from flash_launch.checkpoint.schedule import Keeping
from flash_launch.checkpoint.store import Store
from flash_launch.checkpoint.writing import Job, Written, run_job
from flash_launch.errors import FencedError
from flash_strategies.agreement import ControlGroup
from flash_strategies.errors import CheckpointError

__all__ = ["Outcome", "Writer"]


class Outcome(IntEnum):
    """How writing ended; of several ranks' outcomes the greatest counts."""

    WRITTEN = 0
    """The checkpoint is visible."""
    FAILED = 1
    """A rank could not write, and all know it."""
    LOST = 2
    """The ranks lost each other: the group that they wrote with is of no use any more."""
    FENCED = 3
    """A newer attempt owns the run."""


class Writer:
    """One rank's part in writing one checkpoint."""

    def __init__(
        self, job: Job, position: Position, store: Store, fence: Fence, keeping: Keeping, control: ControlGroup
    ) -> None:
        """Prepare; the arguments are those of `run_job`, and the position that is saved."""
        self.position = position
        self.stall = 0.0
        """Seconds that training waited."""
        self.written: Written | None = None
        self.error: BaseException | None = None
        self._thread: threading.Thread | None = None
        self._work: Callable[[], Written] = lambda: run_job(job, store, fence, keeping, control)

    def begin(self) -> None:
        """Write in a thread, which is a daemon and cannot hold up the end of a run that failed."""
        self._thread = threading.Thread(target=self.run, name="checkpoint", daemon=True)
        self._thread.start()

    def run(self) -> None:
        """Write; raises nothing."""
        try:
            self.written = self._work()
        except BaseException as error:
            self.error = error

    def wait(self, seconds: float | None) -> None:
        """Until this rank's part is done, or so many seconds have passed."""
        if self._thread is not None:
            self._thread.join(seconds)

    @property
    def busy(self) -> bool:
        """Whether this rank's part is not done yet."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def outcome(self) -> Outcome:
        """This rank's, once it is not busy any more."""
        if isinstance(self.error, FencedError):
            return Outcome.FENCED
        if isinstance(self.error, CheckpointError):
            return Outcome.FAILED
        return Outcome.LOST if self.error is not None else Outcome.WRITTEN
