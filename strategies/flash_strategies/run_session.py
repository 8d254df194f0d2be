"""What code that runs under flash-launch may ask: which run and attempt it belongs to, and whether it shall stop.

Standard library only: it is there before torch is. Any script needs three things to stop and to resume: save
below `current_session().checkpoints`, look at `stop_requested()` between two steps, and end with `EXIT_STOPPED` once it
has saved. Without flash-launch, `current_session()` is None and nobody asks for a stop.
"""

import os
import threading
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "ATTEMPT",
    "EXIT_STOPPED",
    "RUN",
    "RunSession",
    "current_session",
    "looks_for_stops",
    "note_stop",
    "stop_requested",
]

RUN = "FLASH_LAUNCH_RUN"
"""Environment variable of every rank: the absolute path of the run folder, which all attempts and nodes share."""
ATTEMPT = "FLASH_LAUNCH_ATTEMPT"
"""Environment variable of every rank: the number of this start of the run, 1 for the first."""
EXIT_STOPPED = 75
"""Exit code of a rank that was asked to stop, has saved and can resume: sysexits.h's EX_TEMPFAIL, "try again"."""

_stop = threading.Event()
_looked = threading.Event()


@dataclass(frozen=True)
class RunSession:
    """The run that this process is a rank of."""

    folder: Path
    """The run folder, absolute."""
    attempt: int
    """The number of this start of the run, 1 for the first."""

    @property
    def checkpoints(self) -> Path:
        """Folder for what the next attempt resumes from; `flash-launch script` makes it."""
        return self.folder / "checkpoints"

    @property
    def superseded(self) -> bool:
        """Whether a newer start of the run has begun: this one must write no more checkpoints."""
        numbers = [int(path.stem) for path in (self.folder / "attempts").glob("*.json") if path.stem.isdecimal()]
        return max(numbers, default=0) > self.attempt


def current_session() -> RunSession | None:
    """The run that this process is a rank of; None where flash-launch did not start it."""
    folder = os.environ.get(RUN)
    return RunSession(Path(folder), int(os.environ.get(ATTEMPT, "1"))) if folder else None


def note_stop(*_: object) -> None:
    """Note, as a signal handler, that this rank is asked to save and stop."""
    _stop.set()


def stop_requested() -> bool:
    """Whether this rank was asked to save and stop.

    Ranks are asked one after the other: before they act on it they must agree, for example by an all-reduce of it, or
    one would leave a step that the others wait in.
    """
    _looked.set()
    return _stop.is_set()


def looks_for_stops() -> bool:
    """Whether this program has ever asked `stop_requested`; one that never does will not stop by itself."""
    return _looked.is_set()
