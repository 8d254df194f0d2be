"""How the ranks of a script ended, and what comes of it: its summary.json, written by the launcher."""

import contextlib
import re
import signal
from dataclasses import replace
from pathlib import Path

from flash_launch import telling
from flash_launch.checkpoint.attempts import STOPPED
from flash_launch.executors.local import LaunchResult
from flash_launch.run_folder import RunFolder, write_json

__all__ = ["exit_codes", "record_end"]

_ENDED = (-signal.SIGTERM, -signal.SIGKILL, -signal.SIGHUP)
"""How ranks end that their agent ends, because another one did."""


def exit_codes(ends: Path) -> dict[int, int | None]:
    """Exit codes of the ranks that began, by rank; None where nobody saw the end. `ends` is an attempt's folder."""
    found: dict[int, int | None] = {}
    for begin in ends.glob("node*_rank*.begin"):
        match = re.fullmatch(r"node\d+_rank(\d+)\.begin", begin.name)
        if match is None:
            continue
        told = [telling.read(begin.with_suffix(f".{kind}")).get("exit_code") for kind in ("exit", "end", "failure")]
        code = next((one for one in told if isinstance(one, int)), None)
        ended_well = not any(begin.with_suffix(f".{kind}").exists() for kind in ("pid", "end", "failure"))
        found[int(match[1])] = 0 if code is None and ended_well else code
    return dict(sorted(found.items()))


def record_end(folder: RunFolder, attempt: int, result: LaunchResult) -> LaunchResult:
    """Write the summary of a script whose ranks have ended, and give the result as it counts.

    Ranks that end with EXIT_STOPPED have saved, and stop because they were asked to: that is no failure.
    """
    ends = folder.ends_of(attempt)
    codes = exit_codes(ends)
    saved = STOPPED in codes.values() and all(code in (STOPPED, 0, None, *_ENDED) for code in codes.values())
    if saved and result.exit_code in (0, 1) and not any(ends.glob("node*_rank*.failure")):
        result, status = replace(result, exit_code=0, verdict=None), "stopped"
    elif any(telling.read(file).get("unheeded") for file in ends.glob("node*_rank*.exit")):
        result, status = replace(result, exit_code=128 + signal.SIGTERM, verdict=None), "stopped"
    else:
        status = "finished" if result.exit_code == 0 else "stopped" if result.exit_code > 128 else "failed"
    summary = {
        "status": status,
        "saved": status == "stopped" and result.exit_code == 0,
        "exit_codes": {str(rank): code for rank, code in codes.items()},
        "world_size": len(codes),
    }
    with contextlib.suppress(OSError):  # on a full disk, the exit code and the console have to do
        write_json(folder.summary_json, summary)
    return result
