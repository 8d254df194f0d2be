"""How a launch over several nodes ended, from what they left in the run folder: exit code and verdict."""

import json
import signal
from contextlib import suppress

from flash_launch.executors.local import LaunchResult
from flash_launch.run_folder import RunFolder
from flash_launch.verdict import Verdict

__all__ = ["outcome"]


def outcome(folder: RunFolder, attempt: int, nodes: int, seconds: float, verdict: Verdict | None) -> LaunchResult:
    """How an attempt ended.

    Args:
        nodes: how many there were.
        seconds: how long it took.
        verdict: who failed first, as the facts tell.
    """
    told = [_told(folder, attempt, node) for node in range(nodes)]
    if all(end is not None and end.get("exit_code") == 0 for end in told):
        return LaunchResult(0, None, seconds)
    if verdict is None:
        ended = [end.get("signal") for end in told if end is not None]
        by = next((number for number in ended if isinstance(number, int)), int(signal.SIGTERM))
        return LaunchResult(128 + by, None, seconds)
    return LaunchResult(1, verdict, seconds)


def _told(folder: RunFolder, attempt: int, node: int) -> dict[str, object] | None:
    with suppress(OSError, ValueError):
        read: object = json.loads((folder.ends_of(attempt) / f"node{node}_agent.end").read_text(encoding="utf-8"))
        return read if isinstance(read, dict) else None
    return None
