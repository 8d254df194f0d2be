"""Shows logs of a run, and follows them while they grow, by polling: so it works on a shared file system, too."""

import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from flash_launch.checkpoint.attempts import read_attempts
from flash_launch.cluster.job_file import read_job_file
from flash_launch.run_folder import RunFolder
from flash_launch.viewing.json_fields import integer, read_mapping, text
from flash_launch.viewing.run_state import launcher_gone

__all__ = ["Follower", "LogFile", "find_logs", "has_ended", "is_submitted", "newest_exit_code"]

_RANK = re.compile(r"node(\d+)_rank(\d+)\.log")
_AGENT = re.compile(r"node(\d+)_agent\.log")
_JOB = re.compile(r"slurm-.*\.(out|err)")
_CHUNK = 1 << 16


def find_logs(folder: RunFolder, kind: str, rank: int | None = None) -> list[tuple[str, Path]]:
    """Logs that are there, each with its name: `ranks` (all, or one), `agents` or `job` (Slurm's own output)."""
    try:
        names = os.listdir(folder.logs)
    except OSError:
        return []
    if kind == "job":
        # a run of a sweep has its output beside that of the others, as slurm-ARRAY_TASK.out
        tasks = [job.job_id for job in read_job_file(folder).jobs if "_" in job.job_id]
        shared = [folder.path.parent / "logs" / f"slurm-{task}.out" for task in tasks]
        paths = [*(folder.logs / name for name in names if _JOB.fullmatch(name)), *filter(Path.exists, shared)]
        return [(path.name, path) for path in sorted(paths, key=lambda path: path.stat().st_mtime)]
    found: list[tuple[tuple[int, ...], str, Path]] = []
    for name in names:
        path = folder.logs / name
        if kind == "ranks" and (match := _RANK.fullmatch(name)) and rank in (None, int(match[2])):
            # a rank that moved to another node has a log there, too: the older one first
            found.append(((int(match[2]), int(match[1])), f"rank {match[2]}", path))
        elif kind == "agents" and (match := _AGENT.fullmatch(name)):
            found.append(((int(match[1]),), f"node {match[1]}", path))
    return [(name, path) for _, name, path in sorted(found)]


def has_ended(folder: RunFolder) -> bool:
    """Whether the newest attempt has ended, or the summary says that the run is finished."""
    if newest_exit_code(folder) is not None:
        return True
    if text(read_mapping(folder.summary_json), "status") == "finished":
        return True
    attempts = read_attempts(folder.attempts)
    return bool(attempts) and not is_submitted(folder) and launcher_gone(attempts[-1])


def newest_exit_code(folder: RunFolder) -> int | None:
    """How the newest attempt ended; None: it has not, or told nothing."""
    attempts = read_attempts(folder.attempts)
    return integer(read_mapping(folder.ends_of(attempts[-1].number) / "end.json"), "exit_code") if attempts else None


def is_submitted(folder: RunFolder) -> bool:
    """Whether the newest attempt is of a job that was submitted, so that its launcher is Slurm; or none has begun."""
    jobs = {job.job_id for job in read_job_file(folder).jobs}
    attempts = read_attempts(folder.attempts)
    if not attempts:
        return bool(jobs)
    return text(read_mapping(folder.ends_of(attempts[-1].number) / "slurm.json"), "job_id") in jobs


@dataclass
class LogFile:
    """A log that is shown as far as it was read."""

    path: Path
    """The file."""
    prefix: bytes = b""
    """What stands before each of its lines."""
    position: int = 0
    """How far it was read."""
    inode: int = 0
    """Which file it was."""
    held: bytes = field(default=b"", repr=False)
    """The begin of a line, held back until it is whole; only where lines have prefixes."""

    def skip_to_tail(self, lines: int) -> None:
        """Go to where the last lines begin, reading backwards."""
        try:
            with self.path.open("rb") as file:
                end = at = file.seek(0, os.SEEK_END)
                tail = b""
                while at > 0 and tail.count(b"\n") <= lines:
                    at = max(at - _CHUNK, 0)
                    file.seek(at)
                    tail = file.read(end - at)
                whole = tail[:-1] if tail.endswith(b"\n") else tail
                parts = whole.split(b"\n")
                kept = len(b"\n".join(parts[-lines:])) if lines else 0
                self.position = end - (kept + (len(tail) - len(whole))) if lines else end
                self.inode = os.fstat(file.fileno()).st_ino
        except OSError:
            return

    def read(self, *, last: bool = False) -> bytes:
        """What is new, from the start where the file was cut or is another one; empty where nothing is."""
        try:
            with self.path.open("rb") as file:
                state = os.fstat(file.fileno())
                if state.st_size < self.position or (self.inode and state.st_ino != self.inode):
                    self.position, self.held = 0, b""
                self.inode = state.st_ino
                file.seek(self.position)
                new = file.read()
        except OSError:
            return b""
        self.position += len(new)
        if not self.prefix:
            return new
        whole, newline, rest = (self.held + new).rpartition(b"\n")
        self.held = b"" if last else rest
        lines = whole.split(b"\n") if newline else []
        if last and rest:
            lines.append(rest)
        # of a progress bar, which is one line with carriage returns, the last state
        return b"".join(self.prefix + line.rstrip(b"\r").rpartition(b"\r")[2] + b"\n" for line in lines)


@dataclass
class Follower:
    """Copies logs to a sink, those that are there and those that appear."""

    find: Callable[[], Sequence[tuple[str, Path]]]
    """The logs that are there now."""
    sink: BinaryIO
    """Where they are shown."""
    prefixed: bool = False
    """Whether each line begins with its log's name."""
    lines: int | None = None
    """Only so many lines of what is there already; None: all."""
    files: dict[Path, LogFile] = field(default_factory=dict)
    """What is read."""
    looked: bool = False
    """Whether it has looked at least once: what appears later is new, and shown whole."""

    def pump(self, *, last: bool = False) -> bool:
        """Show what is new; whether anything was.

        Raises:
            BrokenPipeError: nobody reads any more.
        """
        first, self.looked = not self.looked, True
        for name, path in self.find():
            if path not in self.files:
                log = LogFile(path, f"[{name}] ".encode() if self.prefixed else b"")
                if self.lines is not None and first:
                    log.skip_to_tail(self.lines)
                self.files[path] = log
        new = [log.read(last=last) for log in self.files.values()]
        for part in new:
            self.sink.write(part)
        self.sink.flush()
        return any(new)

    def follow(
        self, ended: Callable[[], bool], *, waiting: Callable[[], None] = lambda: None, poll: float = 0.5
    ) -> None:
        """Show what comes until the run has ended.

        Args:
            ended: whether it has.
            waiting: is called once, where there is nothing to show yet.
            poll: seconds between two looks.

        Raises:
            BrokenPipeError: nobody reads any more.
        """
        told = False
        while True:
            over = ended()  # asked before reading: what was written by then is shown
            self.pump(last=over)
            if over:
                return
            if not self.files and not told:
                waiting()
                told = True
            time.sleep(poll)
