"""What ranks and agents tell of themselves: files of an attempt's folder, written so that a full disk cannot stop them.

Standard library only, and light: it is there before torch is. `nodeI_agent` or `nodeI_rankR`, and one of these endings:
    .begin     host, pid, time, where its part of the log begins; an agent adds versions and the ranks it starts
    .pid       it runs, or died
    .progress  a rank's epoch, step and doing, at most a second old (progress.py)
    .failure   its own words of how it failed
    .stack     what all its threads were at when its agent asked (SIGUSR2)
    .end       how it ended, seen by who started it
"""

import contextlib
import json
import os
import signal
import time
from pathlib import Path

from flash_launch.processes import command_line

__all__ = [
    "ENDS",
    "LOGS",
    "NODE",
    "PARENT",
    "STACK_SIGNAL",
    "ask_for_stacks",
    "keep_spare",
    "own_path",
    "read",
    "stopped_by_hand",
    "tell_stop_by_hand",
    "write",
]

PARENT = "FLASH_LAUNCH_PARENT"
LOGS = "FLASH_LAUNCH_LOGS"
NODE = "FLASH_LAUNCH_NODE"
ENDS = "FLASH_LAUNCH_ENDS"
STACK_SIGNAL = signal.SIGUSR2
"""Makes a rank write the Python stacks of all its threads to its .stack file, wherever it hangs."""
_BY_HAND = "stopped_by_hand.json"
_SPARE_BYTES = 4096
_STACK_SECONDS = 0.2


def own_path(kind: str) -> Path:
    """The path of what this process, a rank or an agent, tells of itself."""
    node = os.environ.get("GROUP_RANK") or os.environ.get(NODE, "0")
    name = f"node{node}_rank{os.environ['RANK']}" if "RANK" in os.environ else f"node{node}_agent"
    return Path(os.environ[ENDS]) / f"{name}.{kind}"


def write(path: Path, obj: object, *, spare: Path | None = None) -> None:
    """Write an object as JSON, whole or not at all.

    Nothing that goes wrong here may hide the error that is being told, or stop a rank that is well.

    Args:
        spare: what `keep_spare` kept; it becomes the file where the disk has no room for another.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(obj), encoding="utf-8")
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            if spare is not None:
                _write_into_spare(spare, path, obj)


def read(path: Path) -> dict[str, object]:
    """What was written there; empty if nothing was, or nothing that can be read."""
    with contextlib.suppress(OSError, ValueError):
        told = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(told, dict):
            return told
    return {}


def keep_spare() -> None:
    """Keep a block of the disk for this process's last words, which may be that the disk is full."""
    with contextlib.suppress(OSError):
        own_path("spare").write_bytes(b" " * _SPARE_BYTES)


def tell_stop_by_hand(by: str) -> None:
    """Note that a person asked this attempt to stop, so that nothing starts it again by itself."""
    write(Path(os.environ[ENDS]) / _BY_HAND, {"by": by, "time": time.time()})


def stopped_by_hand(ends: Path) -> bool:
    """Whether a person asked an attempt to stop, by what it left in this folder."""
    return (ends / _BY_HAND).exists()


def ask_for_stacks(ends: Path, node: int | str) -> None:
    """Ask the ranks of this machine's node that still run for their stacks, and give them a moment to write them."""
    asked = False
    for file in ends.glob(f"node{node}_rank*.pid"):
        with contextlib.suppress(OSError, ValueError):
            pid = int(file.read_text())
            # a pid of another process would be killed by it; a rank takes it once its .begin is there
            if file.with_suffix(".begin").exists() and "rank_guard" in command_line(pid):
                os.kill(pid, STACK_SIGNAL)
                asked = True
    if asked:
        time.sleep(_STACK_SECONDS)


def _write_into_spare(spare: Path, path: Path, obj: object) -> None:
    data = json.dumps(obj).encode()
    if len(data) > _SPARE_BYTES and isinstance(obj, dict):  # what failed counts more than where
        short = {key: value for key, value in obj.items() if key not in ("frames", "causes")}
        data = json.dumps({**short, "error": str(obj.get("error", ""))[-_SPARE_BYTES // 4 :]}).encode()
    if len(data) <= _SPARE_BYTES:
        with spare.open("r+b") as file:  # in place: no new block is needed
            file.write(data.ljust(_SPARE_BYTES))
        spare.replace(path)
