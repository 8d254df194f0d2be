"""Whether the kernel killed a process for want of memory: counts of its control groups, and the kernel's log.

Standard library only. A killed process cannot tell; its control group counts (`oom_kill`, in memory.events of cgroup v2
or memory.oom_control of v1), and the kernel's log names the pid, where it may be read and the container has no pids of
its own.
"""

import contextlib
import os
import re
from collections.abc import Iterable
from pathlib import Path

__all__ = ["counts", "kernel_says", "more_than", "own_counts"]

_MOUNTS = Path("/proc/self/mountinfo")
_KMSG = "/dev/kmsg"
_MOST_BYTES = 4 << 20


def own_counts() -> dict[str, int]:
    """Out-of-memory kills so far in this process's control groups: count by file. Empty where nothing can be read."""
    files: list[str] = []
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            number, controllers, path = line.split(":", 2)
            if number == "0" or "memory" in controllers.split(","):
                files += _files(path, v2=number == "0")
    return counts(files)


def counts(files: Iterable[str]) -> dict[str, int]:
    """The counts in some of these files, as they are now."""
    found: dict[str, int] = {}
    for file in files:
        with contextlib.suppress(OSError):
            if match := re.search(r"^oom_kill (\d+)$", Path(file).read_text(), re.MULTILINE):
                found[file] = int(match[1])
    return found


def more_than(before: object) -> int | None:
    """Kills since an `own_counts` that a process told of; None: it could not be counted."""
    if not isinstance(before, dict) or not before:
        return None
    return max((count - before[name] for name, count in counts(before).items()), default=None)


def kernel_says(pid: int) -> str:
    """The kernel's line on killing this process for want of memory; empty where there is none, or it cannot be read."""
    line = re.compile(rf"^.*(?:Killed process {pid} \(|oom-kill:.*\bpid={pid}\b).*$", re.MULTILINE)
    found = line.findall(_kernel_log())
    killed = [text for text in found if "Killed process" in text]
    return str((killed or found or [""])[-1]).rpartition(";")[2].strip()


def _files(path: str, *, v2: bool) -> list[str]:
    name = "memory.events" if v2 else "memory.oom_control"
    for line in _MOUNTS.read_text().splitlines():
        # proc(5): ID parent major:minor root mount-point options ... - type source super-options
        fields, _, rest = line.partition(" - ")
        kind, _, options = rest.split(" ", 2)
        if kind != ("cgroup2" if v2 else "cgroup") or (not v2 and "memory" not in options.split(",")):
            continue
        root, mount = fields.split()[3:5]
        inside = Path(os.path.relpath(path, root)) if root != "/" and path.startswith(root) else Path(path.lstrip("/"))
        group = Path(mount) / inside
        above = [one / name for one in (group, *group.parents) if one.is_relative_to(mount)]
        # The group of who was killed counts, whichever group above it has the limit. In version 2 those above count the
        # kills of all below them, also of other jobs; in version 1 each has its own.
        return [str(one) for one in ([next((one for one in above if one.exists()), above[0])] if v2 else above)]
    return []


def _kernel_log() -> str:
    """All that the kernel's ring buffer holds, one record a line."""
    records: list[bytes] = []
    with contextlib.suppress(OSError):
        handle = os.open(_KMSG, os.O_RDONLY | os.O_NONBLOCK)
        try:
            size = 0
            while size < _MOST_BYTES:
                try:
                    records.append(os.read(handle, 8192))  # one record each
                except BlockingIOError:
                    break
                except BrokenPipeError:
                    continue  # the record was overwritten: go on with the next
                size += len(records[-1])
        finally:
            os.close(handle)
    return b"".join(records).decode(errors="replace")
