"""Locks of torch's extension builds: one whose build is gone makes every later build wait for ever, without a word."""

import contextlib
import os
import shlex
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from flash_launch.doctor.findings import Finding, fail, ok, warn
from flash_launch.doctor.folders import file_system, is_shared, mounts

__all__ = ["BuildLock", "LockFacts", "check_locks", "gather_locks"]

_GROUP = "folders"
_LONG_SECONDS = 3600.0


@dataclass(frozen=True)
class BuildLock:
    """One lock file."""

    path: str
    """The file."""
    age: float
    """Seconds since it was made."""
    held_by: tuple[int, ...] = ()
    """Processes of this machine that have it open."""


@dataclass(frozen=True)
class LockFacts:
    """What there is to say about the folder of torch's extensions."""

    folder: str
    """TORCH_EXTENSIONS_DIR, or ~/.cache/torch_extensions."""
    locks: tuple[BuildLock, ...] = ()
    """The lock files in it."""
    by_existence: bool = True
    """Whether this torch takes a file that is there for a lock that is held. Later ones ask the kernel."""
    shared: bool = False
    """Whether other machines see the folder, so that a build may run on one of them."""


def check_locks(facts: LockFacts) -> list[Finding]:
    """Whether a lock file is there that nobody holds any more."""
    if not facts.locks:
        return [ok(_GROUP, f"no build locks of torch extensions in {facts.folder}")]
    found = []
    harmless = 0
    for lock in facts.locks:
        if lock.held_by:
            text = f"a torch extension is being built by process {', '.join(map(str, lock.held_by))} ({lock.path})"
            found.append(warn(_GROUP, text, "let it finish: a run that needs it waits for it"))
        elif not facts.by_existence:
            harmless += 1
        elif facts.shared and lock.age < _LONG_SECONDS:
            text = f"{lock.path} is locked by a build that may run on another machine, since {_since(lock.age)}"
            found.append(warn(_GROUP, text, f"if none runs there: rm {shlex.quote(lock.path)}"))
        else:
            text = (
                f"{lock.path} was left {_since(lock.age)} ago by a build that is gone: every later one waits for ever"
            )
            found.append(fail(_GROUP, text, f"rm {shlex.quote(lock.path)}"))
    if harmless:
        text = (
            f"{harmless} lock file{'s' * (harmless != 1)} of torch extensions in {facts.folder}, which nobody holds: "
        )
        found.append(ok(_GROUP, f"{text}this torch does not mind them"))
    return found


def gather_locks(environment: Mapping[str, str], torch_folder: Path | None) -> LockFacts:
    """The facts of this machine.

    Args:
        torch_folder: the folder of the package torch, which is read and not imported; None: there is none.
    """
    cache = environment.get("XDG_CACHE_HOME") or os.path.join(environment.get("HOME", "/"), ".cache")
    folder = Path(environment.get("TORCH_EXTENSIONS_DIR") or os.path.join(cache, "torch_extensions"))
    files = sorted({*folder.glob("*/lock"), *folder.glob("*/*/lock")})
    locks = []
    now = time.time()
    for file in files:
        try:
            age = max(0.0, now - file.stat().st_mtime)
        except OSError:
            continue  # the build has just ended
        locks.append(BuildLock(str(file), age, _holders(file)))
    kind = file_system(str(folder.resolve()), mounts())
    return LockFacts(str(folder), tuple(locks), _locks_by_existence(torch_folder), is_shared(kind))


def _locks_by_existence(torch_folder: Path | None) -> bool:
    """Up to torch 2.13 at least a lock is a file that is there; 2.15 locks by flock, which ends with its process."""
    try:
        text = (torch_folder / "utils" / "cpp_extension.py").read_text(encoding="utf-8") if torch_folder else ""
    except OSError:
        return True
    return "FileLock(" not in text


def _holders(file: Path) -> tuple[int, ...]:
    """Processes that have a file open. Of other users' processes this cannot be seen, but the folder is one user's."""
    target = os.path.realpath(file)
    found = []
    for descriptors in Path("/proc").glob("[0-9]*/fd"):
        with contextlib.suppress(OSError):  # another user's, or one that has just ended
            if any(_points_at(link, target) for link in descriptors.iterdir()):
                found.append(int(descriptors.parent.name))
    return tuple(found)


def _points_at(link: Path, target: str) -> bool:
    try:
        return os.readlink(link) == target
    except OSError:  # closed in the meantime
        return False


def _since(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"
