"""What Slurm's record of a job adds to a verdict: time limits, lost nodes, pre-emption, memory limits, cancellation."""

import signal
from collections.abc import Sequence
from dataclasses import replace

from flash_launch.verdict.facts import AgentEnd, RankEnd, SlurmRecord
from flash_launch.verdict.told import Kind, Verdict

__all__ = ["slurm_verdict"]

_BY_SIGNAL = (Kind.KILLED, Kind.CONNECTION_LOST, Kind.HANG, Kind.NODE_LOST, Kind.EXITED, Kind.NEVER_STARTED)
"""Verdicts that Slurm's ending of the job looks like from inside."""


def slurm_verdict(
    slurm: SlurmRecord, ranks: Sequence[RankEnd], agents: Sequence[AgentEnd], found: Verdict | None
) -> Verdict | None:
    """The verdict with Slurm's record; a failure of a rank's own stands, however the job ended after it.

    Args:
        found: the verdict without it.
    """
    if found is not None and found.kind not in _BY_SIGNAL:
        return found
    state = slurm.state.split()[0].rstrip("+") if slurm.state else ""
    job = f"Slurm's job {slurm.job_id}" if slurm.job_id else "the Slurm job"
    at = next((str(end.progress) for end in ranks if end.progress is not None), "")
    if state in ("TIMEOUT", "DEADLINE"):
        return _of_job(job, _limit(slurm, state), Kind.TIME_LIMIT, _TIME_ADVICE, at, transient=True)
    if state == "PREEMPTED":
        advice = "it goes on with `flash-launch resume`, or by itself where it was submitted with requeue"
        return _of_job(job, "another job of higher priority took its nodes", Kind.PREEMPTED, advice, at, transient=True)
    if state in ("NODE_FAIL", "BOOT_FAIL"):
        return _node_failed(job, slurm, ranks, agents, at)
    if state == "OUT_OF_MEMORY":
        return _out_of_memory(job, ranks, found, at)
    if state == "CANCELLED" and (found is None or found.kind is not Kind.EXITED):
        by = slurm.state.partition(" by ")[2]
        why = f" ({slurm.reason})" if slurm.reason not in ("", "None") else ""
        advice = "go on with `flash-launch resume`"
        return _of_job(job, f"somebody cancelled it{f', user {by}' if by else ''}{why}", Kind.INTERRUPTED, advice, at)
    return found


_TIME_ADVICE = (
    "go on with `flash-launch resume`, or submit with a longer --slurm.time; a run that is warned in time saves and "
    "requeues itself, see --slurm.* in `flash-launch submit --help`"
)


def _of_job(job: str, cause: str, kind: Kind, advice: str, at: str, *, transient: bool = False) -> Verdict:
    return Verdict(None, None, cause, kind=kind, advice=advice, transient=transient, at=at, who=job, verb="was ended")


def _limit(slurm: SlurmRecord, state: str) -> str:
    if state == "DEADLINE":
        return "its deadline passed"
    return f"its time limit{f' of {slurm.time_limit}' if slurm.time_limit else ''} was up"


def _node_failed(
    job: str, slurm: SlurmRecord, ranks: Sequence[RankEnd], agents: Sequence[AgentEnd], at: str
) -> Verdict:
    silent = [end for end in agents if end.exit_code is None]
    host = slurm.failed_node or next((end.host for end in silent if end.host), "")
    node = next((end.node for end in agents if end.host == host), silent[0].node if silent else None)
    where = f"node {node}{f' ({host})' if host else ''}" if node is not None else host or "a node"
    theirs = ", ".join(str(end.rank) for end in ranks if end.node == node)
    return Verdict(
        None,
        node,
        f"Slurm says {slurm.state} of the job{f'; ranks {theirs} were there' if theirs else ''}",
        kind=Kind.NODE_LOST,
        advice="the job is requeued, or go on with `flash-launch resume`; --slurm.exclude keeps it off that node",
        transient=True,
        host=host,
        at=at,
        who=where,
        verb="was lost",
    )


def _out_of_memory(job: str, ranks: Sequence[RankEnd], found: Verdict | None, at: str) -> Verdict:
    advice = "ask for more by --slurm.mem, or lower --batch-size, the number of data workers or of ranks per node"
    killed = [end for end in ranks if end.exit_code == -signal.SIGKILL and not end.ended]
    if not killed or found is None or found.rank is None:
        return _of_job(job, "it went over its memory (OUT_OF_MEMORY)", Kind.OOM_KILLED, advice, at)
    cause = "killed by the system, which was out of memory (SIGKILL; Slurm says OUT_OF_MEMORY)"
    return replace(found, kind=Kind.OOM_KILLED, cause=cause, detail="", advice=advice)
