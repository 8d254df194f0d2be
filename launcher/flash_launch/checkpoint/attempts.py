"""Attempts of a run: every start and restart has a number, and the highest one owns the run folder.

A requeued job may start while ranks of the old one still live. The newer attempt wins: an older one that looks finds
the newer one's file and stops. What an older attempt publishes nevertheless, in the moment between its look and its
last write, is told by the lineage: a checkpoint counts only if no later attempt began from an earlier step.
"""

import json
import os
import re
import secrets
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from flash_launch.errors import FencedError
from flash_launch.processes import process_began
from flash_strategies.run_session import EXIT_STOPPED

__all__ = ["STOPPED", "Attempt", "Fence", "FenceWatch", "begin", "launcher_runs", "read_attempts"]

STOPPED = EXIT_STOPPED
"""Exit code of an attempt that was asked to stop, has saved, and can go on."""
_CLOCKS_DIFFER = 10.0
"""Seconds: the clock since boot is cut to whole ones, and the wall clock may have been set."""


@dataclass(frozen=True)
class Attempt:
    """One start of a run."""

    number: int
    """1, 2, ..."""
    run: str
    """The run's own name, random, the same for all attempts."""
    began: float
    """When, in seconds since 1970."""
    host: str
    """Where the launcher ran."""
    pid: int
    """The launcher's process there."""
    resumed_from: str | None = None
    """Name of the checkpoint it went on from; None: from the start."""
    resumed_step: int = 0
    """Optimizer steps done in that checkpoint."""
    config: dict[str, object] = field(default_factory=dict, compare=False)
    """The options of this attempt."""


def read_attempts(folder: Path) -> list[Attempt]:
    """All attempts so far, in order; of a file that cannot be read, that it is there."""
    found: list[Attempt] = []
    for number, path in _files(folder):
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            found.append(Attempt(**values))
        except (OSError, ValueError, TypeError):
            found.append(Attempt(number, "", 0.0, "?", 0))
    return found


def begin(
    folder: Path, *, resumed_from: str | None = None, resumed_step: int = 0, config: Mapping[str, object] | None = None
) -> Attempt:
    """Take the next number; from then on, older attempts are fenced off.

    Raises:
        OSError: the folder cannot be written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    before = read_attempts(folder)
    run = next((one.run for one in reversed(before) if one.run), secrets.token_hex(8))
    number = before[-1].number + 1 if before else 1
    while True:
        attempt = Attempt(
            number, run, time.time(), socket.gethostname(), os.getpid(), resumed_from, resumed_step, dict(config or {})
        )
        temporary = folder / f".{number:04}.{secrets.token_hex(8)}.tmp"  # containers may share name and pid
        temporary.write_text(json.dumps(asdict(attempt), indent=2) + "\n", encoding="utf-8")
        try:
            os.link(temporary, folder / f"{number:04}.json")  # whole or not at all, and never over another's
            return attempt
        except FileExistsError:
            number += 1
        finally:
            temporary.unlink(missing_ok=True)


def in_lineage(attempts: Sequence[Attempt], attempt: int, step: int) -> bool:
    """Whether a checkpoint of an attempt at a step is part of what the latest attempt goes on with."""
    return all(step <= later.resumed_step for later in attempts if later.number > attempt)


@dataclass(frozen=True)
class Fence:
    """Stands around one attempt: no older one gets past."""

    folder: Path
    """The run's folder of attempts."""
    number: int
    """The attempt."""

    def newer(self) -> int | None:
        """The number of a newer attempt, if there is one."""
        numbers = [number for number, _ in _files(self.folder)]
        return max(numbers) if numbers and max(numbers) > self.number else None

    def check(self) -> None:
        """Go on only if this is the newest attempt.

        Raises:
            FencedError: another one has begun since.
        """
        if (newer := self.newer()) is None:
            return
        other = next((one for one in read_attempts(self.folder) if one.number == newer), None)
        where = f" on {other.host}, process {other.pid}" if other is not None and other.pid else ""
        raise FencedError(
            f"attempt {self.number} of this run was superseded by attempt {newer}{where}: this one stops and writes "
            "nothing more. That is as it should be after a requeue; if you started the second one by mistake, stop it "
            "and `flash-launch resume` the run"
        )


class FenceWatch:
    """Says when the ranks of a launch that another one superseded must be ended: a while after they could notice it."""

    _LOOK_SECONDS = 2.0
    _GRACE_SECONDS = 20.0

    def __init__(self, fence: Fence) -> None:
        """Look at nothing yet."""
        self._fence = fence
        self._looked = time.monotonic()
        self._seen: float | None = None

    def ended(self) -> bool:
        """Whether it is time; may be asked many times a second."""
        now = time.monotonic()
        if self._seen is None and now - self._looked > self._LOOK_SECONDS:
            self._looked = now
            self._seen = now if self._fence.newer() is not None else None
        return self._seen is not None and now - self._seen > self._GRACE_SECONDS


def _files(folder: Path) -> list[tuple[int, Path]]:
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    return sorted((int(name[:-5]), folder / name) for name in names if re.fullmatch(r"\d{4,}\.json", name))


def launcher_runs(attempt: Attempt, began: Callable[[int], float | None] = process_began) -> bool:
    """Whether the process that began an attempt on this machine runs; not another one that got its number since."""
    at = began(attempt.pid)
    return at is not None and at <= attempt.began + _CLOCKS_DIFFER
