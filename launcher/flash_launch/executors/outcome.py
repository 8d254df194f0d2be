"""How a launch over several nodes ended, from what they left in the run folder: exit code and verdict."""

import signal

from flash_launch import telling
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
    told = [telling.read(folder.ends_of(attempt) / f"node{node}_agent.end") for node in range(nodes)]
    if all(end.get("exit_code") == 0 for end in told):
        return LaunchResult(0, None, seconds)
    if verdict is None:
        ended = [end.get("signal") for end in told]
        by = next((number for number in ended if isinstance(number, int)), int(signal.SIGTERM))
        return LaunchResult(128 + by, None, seconds)
    return LaunchResult(1, verdict, seconds)
