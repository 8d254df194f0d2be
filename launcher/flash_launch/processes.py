"""What the system says of processes, with or without /proc: cores this one may use, when another began, its command."""

import contextlib
import os
import subprocess
import time
from pathlib import Path

__all__ = ["command_line", "process_began", "usable_cores"]

_PROC = Path("/proc")
"""Linux has it, other systems have only ps."""
_PS_SECONDS = 10


def usable_cores() -> int:
    """Cores that this process may use: those of its affinity mask, where the system has one."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS
        return os.cpu_count() or 1


def process_began(pid: int) -> float | None:
    """When a process of this machine began, in seconds since 1970; None if there is none, or only its remains."""
    if not _has_proc():
        words = _ps(pid, "stat", "etime").split()
        return None if len(words) != 2 or words[0][0] in "ZX" else time.time() - _seconds(words[1])
    try:
        fields = (_PROC / f"{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        lines = (_PROC / "stat").read_text(encoding="utf-8").splitlines()
        boot = next(line for line in lines if line.startswith("btime "))
    except (OSError, StopIteration):
        return None
    if fields[0] in "ZXx":
        return None
    return int(boot.split()[1]) + int(fields[19]) / os.sysconf("SC_CLK_TCK")


def command_line(pid: int) -> str:
    """The words of a process's command line; empty if there is none."""
    if not _has_proc():
        return _ps(pid, "command").strip()
    with contextlib.suppress(OSError):
        return (_PROC / f"{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    return ""


def _has_proc() -> bool:
    return (_PROC / "self").exists()


def _ps(pid: int, *fields: str) -> str:
    """What ps says of a process, by the names of POSIX; empty if there is none."""
    argv = ["ps", "-ww", *(word for field in fields for word in ("-o", f"{field}=")), "-p", str(pid)]
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, timeout=_PS_SECONDS, check=False, env={**os.environ, "LC_ALL": "C"}
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout


def _seconds(elapsed: str) -> int:
    """Of ps's [[days-]hours:]minutes:seconds."""
    days, _, clock = elapsed.rpartition("-")
    total = 0
    for part in clock.split(":"):
        total = total * 60 + int(part)
    return total + 86_400 * int(days or 0)
