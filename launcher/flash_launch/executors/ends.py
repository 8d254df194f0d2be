"""Collects the facts that a launch left about its ends, from what rank_guard wrote and from the tails of logs."""

import json
import os
import re
from pathlib import Path
from typing import TypedDict

from flash_launch.run_folder import RunFolder
from flash_launch.verdict import AgentEnd, RankEnd

__all__ = ["agent_end", "rank_ends"]

_TAIL_BYTES = 8192


class _Told(TypedDict, total=False):
    """What a .failure or .end file may hold."""

    rank: int
    time: float
    error: str
    user_fault: bool
    exit_code: int
    ranks: list["_Told"]


def rank_ends(folder: RunFolder) -> list[RankEnd]:
    """How the ranks ended that did not end well."""
    failures: dict[tuple[int, int], _Told] = {}
    codes: dict[tuple[int, int], _Told] = {}
    for path in sorted(folder.ends.glob("node*")):
        match = re.fullmatch(r"node(\d+)_(?:agent|rank(\d+))\.(failure|end)", path.name)
        told = _read(path) if match else None
        if match is None or told is None:
            continue
        node = int(match[1])
        if match[2] is None:
            for one in told.get("ranks", []):
                codes.setdefault((node, one["rank"]), one)
        elif match[3] == "failure":
            failures[node, int(match[2])] = told
        else:
            codes[node, int(match[2])] = told
    return [
        _rank_end(folder, node, rank, failures.get((node, rank)), codes.get((node, rank)))
        for node, rank in sorted({*failures, *codes})
    ]


def agent_end(node: int, exit_code: int, told_to_end: bool, log: Path, log_start: int) -> AgentEnd:
    """How an agent ended, with the tail of what it wrote from `log_start` on."""
    return AgentEnd(node, exit_code, told_to_end, str(log), _tail(log, log_start))


def _rank_end(folder: RunFolder, node: int, rank: int, failure: _Told | None, seen: _Told | None) -> RankEnd:
    log = folder.rank_log(node, rank)
    told: _Told = failure or {}
    first: _Told = failure or seen or {}  # a rank's own time is when it raised, its agent's when it was gone
    return RankEnd(
        rank,
        node,
        exit_code=(seen or told).get("exit_code"),
        time=first.get("time"),
        error=told.get("error") or None,
        user_fault=told.get("user_fault", False),
        log=str(log),
        log_tail=_tail(log),
    )


def _read(path: Path) -> _Told | None:
    try:
        told: _Told = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # the machine may have been short of memory or disk: the other facts have to do
    return told


def _tail(log: Path, start: int = 0) -> str:
    try:
        with log.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(start, end - _TAIL_BYTES))
            return file.read().decode(errors="replace")
    except OSError:
        return ""
