"""Collects the facts that an attempt left about its ends: what ranks and agents told, the tails of logs, the disk."""

import os
import re
import shutil
import signal
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from flash_launch import telling
from flash_launch.run_folder import RunFolder, write_json
from flash_launch.verdict import AgentEnd, AttemptFacts, Progress, RankEnd, SlurmRecord, Verdict, find_verdict

__all__ = ["attempt_facts", "attempt_verdict", "write_slurm_record"]

_TAIL_BYTES = 65536
_STACK_BYTES = 1 << 20
_Told = Mapping[str, object]
_NOTHING: _Told = {}
_SLURM_RECORD = "slurm_end.json"


def attempt_verdict(folder: RunFolder, attempt: int, slurm: SlurmRecord | None = None) -> Verdict | None:
    """Who failed first in an attempt that has ended, and of what; None if nobody did.

    Args:
        folder: the run folder.
        attempt: the attempt's number.
        slurm: its record of the job; None: what `write_slurm_record` kept, if anything.
    """
    facts = attempt_facts(folder, attempt, slurm)
    return find_verdict(facts.ranks, facts.agents, facts.slurm, disk_free=facts.disk_free)


def attempt_facts(folder: RunFolder, attempt: int, slurm: SlurmRecord | None = None) -> AttemptFacts:
    """All that is known of how an attempt ended; reads files only."""
    ends = folder.ends_of(attempt)
    told = _read_all(ends)
    slurm = slurm or _read_slurm_record(ends)
    begins = {node: parts.get("begin", _NOTHING) for (node, rank), parts in told.items() if rank is None}
    nodes = max(
        [_int(begin.get("nodes")) or 0 for begin in begins.values()] + [node + 1 for node, _ in told], default=0
    )
    agents = tuple(
        _agent_end(folder, node, told.get((node, None), {}), _host(ends, node, told, slurm)) for node in range(nodes)
    )
    seen = {(node, rank) for node, rank in told if rank is not None}
    # what the agent's begin promised, and what torchrun told at its end
    expected = {
        (node, rank)
        for node, begin in begins.items()
        for rank in (_int(one) for one in _list(begin.get("ranks")))
        if rank is not None
    }
    codes = _codes_by_torchrun(told)
    ranks = tuple(
        _rank_end(folder, node, rank, told.get((node, rank), {}), codes.get((node, rank)), told.get((node, None), {}))
        for node, rank in sorted(seen | expected | set(codes), key=lambda one: one[1])
    )
    try:
        free = shutil.disk_usage(folder.path).free
    except OSError:
        free = None
    return AttemptFacts(ranks, agents, slurm, free)


def write_slurm_record(folder: RunFolder, attempt: int, record: SlurmRecord) -> None:
    """Keep Slurm's record of an attempt, which it forgets after a while, for `flash-launch why`."""
    folder.ends_of(attempt).mkdir(parents=True, exist_ok=True)
    write_json(folder.ends_of(attempt) / _SLURM_RECORD, asdict(record))


def _read_slurm_record(ends: Path) -> SlurmRecord | None:
    told = telling.read(ends / _SLURM_RECORD)
    if not isinstance(told.get("state"), str):
        return None
    texts = {key: value for key, value in told.items() if isinstance(value, str) and key in SlurmRecord.__annotations__}
    return SlurmRecord(**texts, nodes=tuple(str(node) for node in _list(told.get("nodes"))))


def _read_all(ends: Path) -> dict[tuple[int, int | None], dict[str, _Told]]:
    """What was told: kind -> content, by node and rank (None: its agent)."""
    found: dict[tuple[int, int | None], dict[str, _Told]] = {}
    try:
        names = sorted(os.listdir(ends))
    except OSError:
        return {}
    for name in names:
        match = re.fullmatch(r"node(\d+)(?:_(?:agent|rank(\d+))\.(begin|pid|progress|failure|end|stack)|\.json)", name)
        if match is None:
            continue
        parts = found.setdefault((int(match[1]), int(match[2]) if match[2] else None), {})
        kind = match[3] or "node"
        parts[kind] = {"text": _tail(ends / name, 0, _STACK_BYTES)} if kind == "stack" else telling.read(ends / name)
    return found


def _codes_by_torchrun(told: Mapping[tuple[int, int | None], Mapping[str, _Told]]) -> dict[tuple[int, int], _Told]:
    """How torchrun says that ranks ended, which is what is left where the agent's own watch saw nothing."""
    found: dict[tuple[int, int], _Told] = {}
    for (node, rank), parts in told.items():
        for one in _list(parts.get("failure", _NOTHING).get("ranks")) if rank is None else ():
            if isinstance(one, dict) and isinstance(number := one.get("rank"), int):
                found[node, number] = one
    return found


def _rank_end(
    folder: RunFolder,
    node: int,
    rank: int,
    parts: Mapping[str, _Told],
    by_torchrun: _Told | None,
    agent: Mapping[str, _Told],
) -> RankEnd:
    log = folder.rank_log(node, rank)
    failure, begin = parts.get("failure", _NOTHING), parts.get("begin", _NOTHING)
    seen = parts.get("end") or by_torchrun or _NOTHING
    first = failure or seen  # a rank's own time is when it raised, its agent's when it was gone
    error = failure.get("error")
    agent_end = agent.get("end", _NOTHING)
    told_time = _float(agent_end.get("told_time"))
    code, time = _int((seen or failure).get("exit_code")), _float(first.get("time"))
    by_launcher = told_time is not None and time is not None and time > told_time and code == -signal.SIGKILL
    return RankEnd(
        rank,
        node,
        exit_code=code,
        time=time,
        error=error if isinstance(error, str) and error else None,
        user_fault=failure.get("user_fault") is True,
        log=str(log),
        log_tail=_tail(log, _int(begin.get("log_start")) or 0, _TAIL_BYTES) if begin or failure or seen else "",
        host=_text(begin.get("host")) or _text(agent.get("begin", _NOTHING).get("host")),
        error_type=_text(failure.get("type")),
        causes=tuple(str(one) for one in _list(failure.get("causes"))),
        frames=tuple(str(one) for one in _list(failure.get("frames"))),
        stack=_text(parts.get("stack", _NOTHING).get("text")),
        progress=_progress(parts.get("progress", _NOTHING)),
        started=bool(parts) or code not in (None, -signal.SIGTERM, -signal.SIGKILL, -signal.SIGHUP),
        finished="begin" in parts and not {"pid", "failure", "end"} & set(parts),
        ended=not failure and (seen.get("ended") is True or by_launcher),
        oom_kills=_int(seen.get("oom_kills")),
        kernel=_text(seen.get("kernel")),
    )


def _agent_end(folder: RunFolder, node: int, parts: Mapping[str, _Told], host: str) -> AgentEnd:
    log = folder.agent_log(node)
    begin, end, failure = (parts.get(kind, _NOTHING) for kind in ("begin", "end", "failure"))
    error = failure.get("error") if not _list(failure.get("ranks")) else None
    versions = begin.get("versions")
    start = _int(end.get("log_start")) if begin.get("log_start") is None else _int(begin.get("log_start"))
    return AgentEnd(
        node,
        _int(end.get("exit_code")),
        end.get("told_to_end") is True,
        str(log),
        _tail(log, start or 0, _TAIL_BYTES) if begin or end else "",
        host=host,
        error=_text(error) or _text(end.get("error")) or None,
        started=bool(begin or end),
        address=_text(begin.get("address")),
        python=_text(begin.get("python")),
        versions={str(key): str(value) for key, value in versions.items()} if isinstance(versions, dict) else {},
        oom_kills=_int(end.get("oom_kills")),
    )


def _host(
    ends: Path,
    node: int,
    told: Mapping[tuple[int, int | None], Mapping[str, _Told]],
    slurm: SlurmRecord | None,
) -> str:
    parts = told.get((node, None), {})
    own = _text(parts.get("node", _NOTHING).get("host")) or _text(parts.get("begin", _NOTHING).get("host"))
    names = list(slurm.nodes) if slurm is not None else []
    names = names or [str(one) for one in _list(telling.read(ends / "slurm.json").get("nodes"))]
    return own or (names[node] if node < len(names) else "")


def _progress(told: _Told) -> Progress | None:
    where = told.get("where")
    if not isinstance(where, str):
        return None
    return Progress(where, _int(told.get("epoch")), _int(told.get("step")), _float(told.get("time")))


def _tail(log: Path, start: int, size: int) -> str:
    try:
        with log.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(min(start, end), end - size))
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def _list(value: object) -> list[object]:
    return list(value) if isinstance(value, list) else []


def _int(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _float(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
