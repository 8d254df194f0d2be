"""Who failed first, and of what: the verdict from all facts of an attempt. Nothing is read here."""

import signal
from collections.abc import Sequence
from dataclasses import replace

from flash_launch.verdict.causes import Cause, Role, cause_of_agent, cause_of_rank, last_words
from flash_launch.verdict.facts import AgentEnd, RankEnd, SlurmRecord
from flash_launch.verdict.hang import hang_verdict, listed
from flash_launch.verdict.slurm import slurm_verdict
from flash_launch.verdict.told import Kind, Verdict
from flash_launch.verdict.versions import mismatch, with_versions

__all__ = ["find_verdict"]

_ALSO_SHOWN = 3
_UNTOLD = (Kind.EXITED, Kind.KILLED, Kind.CONNECTION_LOST, Kind.NODE_LOST)
_DISK_NEEDED = 64 << 10


def find_verdict(
    ranks: Sequence[RankEnd],
    agents: Sequence[AgentEnd],
    slurm: SlurmRecord | None = None,
    *,
    disk_free: int | None = None,
) -> Verdict | None:
    """Who failed first; None if nobody did.

    A rank's own failure goes before the end of an agent, and that before those who only noticed that another was gone:
    they may write earlier than the one who failed, if that one cleaned up first.

    Args:
        ranks: all ranks that told of themselves, or that somebody saw or missed.
        agents: all agents.
        slurm: its record of the job.
        disk_free: bytes left where the run folder is.
    """
    found = _of_ranks_and_agents(ranks, agents)
    if slurm is not None:
        found = slurm_verdict(slurm, ranks, agents, found)
    if found is None:
        return None
    nobody_told = found.kind in _UNTOLD and not any(r.error for r in ranks)
    if nobody_told and disk_free is not None and disk_free < _DISK_NEEDED:
        advice = "make room there (`df -h`), then go on with `flash-launch resume`"
        detail = f"the disk of the run folder is full, and nothing more could be written\n{found.detail}".strip()
        found = replace(found, kind=Kind.DISK_FULL, detail=detail, advice=advice, transient=False)
    differences = mismatch(agents)
    return with_versions(found, differences) if differences else found


def _of_ranks_and_agents(ranks: Sequence[RankEnd], agents: Sequence[AgentEnd]) -> Verdict | None:
    ends = [(end, cause_of_rank(end)) for end in sorted(ranks, key=lambda end: end.rank)]
    failed = [(end, cause) for end, cause in ends if end.failed]
    own = sorted((pair for pair in failed if pair[1].role is Role.OWN), key=_when)
    if before := [pair for pair in own if not pair[0].finished]:
        return _of_rank(before, failed)
    failed = [pair for pair in failed if not pair[0].finished]
    only_ended = all(cause.role is Role.ENDED for _, cause in failed)
    if agents and only_ended and all(end.ended_by_launcher or end.exit_code == 0 for end in agents):
        return None  # the launch was ended, by a signal
    broken = [end for end in agents if end.exit_code != 0 and not end.ended_by_launcher]
    # An agent that ends with a code, after ranks that only noticed, ended because of them; one that was killed did not.
    if killed := [end for end in broken if end.exit_code is not None and end.exit_code < 0]:
        return _of_agent(killed[0], ends)
    if failed and (lost := [end for end in broken if end.exit_code is None and end.started]):
        return _lost(lost, ranks, ends)
    if ill := [end for end in broken if _failed_by_itself(end)]:  # who has not begun yet had no time to
        return _of_agent(ill[0], ends)
    if absent := [end for end in agents if not end.started]:
        return _absent(absent, agents, ends)
    if any(cause.role is Role.WAITED for _, cause in failed):
        return hang_verdict(ends)
    if failed:
        return _noticed_only(ends)
    if own:  # nothing but a crash after its last line, on the way out
        return _of_rank(own, ())
    if broken:
        seen = [end for end in broken if end.exit_code is not None]
        missing = [end for end in ranks if not end.started]
        return _of_agent((seen or broken)[0], ends) if not missing or not seen else _no_rank(seen[0], ends)
    return None


def _failed_by_itself(end: AgentEnd) -> bool:
    """Whether an agent told what it failed of, and that is no other node."""
    cause = cause_of_agent(end)
    told = cause.kind not in (Kind.RENDEZVOUS, Kind.EXITED, Kind.KILLED, Kind.NODE_LOST)
    return end.exit_code is not None and cause.role is Role.OWN and told


def _when(pair: tuple[RankEnd, Cause]) -> tuple[float, int]:
    end, _ = pair
    # Where only the agent knows, the time is cut to whole seconds and so is early. That is right for a rank that was
    # killed, and wrong for one that native code aborted because it noticed another's end.
    late = 1.0 if end.error is None and end.exit_code == -signal.SIGABRT else 0.0
    return (float("inf") if end.time is None else end.time + late, end.rank)


def _of_rank(own: Sequence[tuple[RankEnd, Cause]], failed: Sequence[tuple[RankEnd, Cause]]) -> Verdict:
    end, cause = own[0]
    verdict = _rank_verdict(end, cause)
    others = own[1:]
    same = [other for other, its in others if its.text == cause.text]
    also = [f"{listed(same)} failed with the same error, on {'its' if len(same) == 1 else 'their'} own"] if same else []
    different = [(other, its) for other, its in others if its.text != cause.text]
    for other, its in different[:_ALSO_SHOWN]:
        after = f", {other.time - end.time:.1f} s later" if other.time and end.time else ""
        also.append(f"{listed([other])} failed, too{after}: {its.text.splitlines()[0]}")
    if len(different) > _ALSO_SHOWN:
        also.append(f"and so did {len(different) - _ALSO_SHOWN} more")
    return replace(verdict, also=tuple(also), consequences=_noticed(failed))


def _rank_verdict(end: RankEnd, cause: Cause) -> Verdict:
    return Verdict(
        end.rank,
        end.node,
        cause.text,
        cause.detail,
        end.log,
        end.user_fault,
        cause.kind,
        cause.advice,
        cause.transient,
        end.host,
        str(end.progress) if end.progress is not None else "",
    )


def _of_agent(end: AgentEnd, ends: Sequence[tuple[RankEnd, Cause]]) -> Verdict:
    cause = cause_of_agent(end)
    return Verdict(
        None,
        end.node,
        cause.text
        if cause.kind is not Kind.RENDEZVOUS
        else f"it did not meet the others at {end.address}: {cause.text}",
        cause.detail,
        end.log,
        kind=cause.kind,
        advice=cause.advice,
        transient=cause.transient,
        host=end.host,
        consequences=_noticed(ends),
    )


def _no_rank(end: AgentEnd, ends: Sequence[tuple[RankEnd, Cause]]) -> Verdict:
    """An agent failed before its ranks told that they run."""
    verdict = _of_agent(end, ends)
    if verdict.kind is not Kind.EXITED:
        return verdict
    return replace(
        verdict,
        kind=Kind.NEVER_STARTED,
        cause=f"{verdict.cause} before its ranks ran",
        advice="its log says why: mostly an environment on that node that cannot start Python or torch",
    )


def _lost(lost: Sequence[AgentEnd], ranks: Sequence[RankEnd], ends: Sequence[tuple[RankEnd, Cause]]) -> Verdict:
    gone = lost[0]
    theirs = [end for end in ranks if end.node == gone.node]
    at = next((str(end.progress) for end in theirs if end.progress is not None), "")
    numbers = ", ".join(str(end.rank) for end in theirs)
    return Verdict(
        None,
        gone.node,
        f"neither its agent nor its ranks ({numbers or 'none known'}) told of an end, and the others lost their "
        "connection to it",
        kind=Kind.NODE_LOST,
        advice="the node is off, rebooted or cut off the network: go on with `flash-launch resume` on other nodes",
        transient=True,
        host=gone.host,
        at=at,
        log=gone.log,
        who=f"node {gone.node}{f' ({gone.host})' if gone.host else ''}",
        verb="was lost",
        consequences=_noticed(ends),
    )


def _absent(absent: Sequence[AgentEnd], agents: Sequence[AgentEnd], ends: Sequence[tuple[RankEnd, Cause]]) -> Verdict:
    """A node whose agent never began."""
    first = absent[0]
    address = next((end.address for end in agents if end.address), "")
    numbers = ", ".join(str(end.node) for end in absent)
    return Verdict(
        None,
        first.node,
        f"its agent never told that it runs, and the others waited for it{f' at {address}' if address else ''} in vain",
        "\n".join(last_words(first.log_tail)),
        first.log,
        kind=Kind.NEVER_STARTED,
        advice="see whether the node is up, sees the run folder, and can start Python there (`flash-launch doctor`)",
        transient=True,
        host=first.host,
        who=f"node{'s' * (len(absent) > 1)} {numbers}{f' ({first.host})' if first.host else ''}",
        verb="never started",
        consequences=_noticed(ends),
    )


def _noticed_only(ends: Sequence[tuple[RankEnd, Cause]]) -> Verdict:
    """Nobody has a failure of its own: the first that noticed is better than nothing."""
    if any(end.finished for end, _ in ends):
        return hang_verdict(ends)
    failed = [pair for pair in ends if pair[0].failed and not pair[0].finished]
    lost = [pair for pair in failed if pair[1].role is Role.LOST]
    end, cause = min(failed, key=_when)
    verdict = _rank_verdict(end, cause)
    rest = _noticed([pair for pair in failed if pair[0].rank != end.rank])
    if lost and cause.role is Role.ENDED:  # nobody had failed yet, so nobody here did it
        by = "somebody outside of the run ended it: a kill, or a limit of the machine. Go on with `flash-launch resume`"
        return replace(verdict, cause=f"{cause.text}, from outside", advice=by, transient=True, consequences=rest)
    if not lost:
        return replace(verdict, consequences=rest)
    return replace(
        verdict,
        detail="no rank told of a failure of its own: the connection broke, or a rank was gone without a word",
        advice="go on with `flash-launch resume`; if it happens again, see the network between the nodes",
        verb="was the first to lose its connection",
        consequences=rest,
    )


def _noticed(ends: Sequence[tuple[RankEnd, Cause]]) -> tuple[str, ...]:
    return tuple(
        f"{listed([end])} {cause.role.value}: {cause.text.splitlines()[0] if cause.text else ''}"
        for end, cause in ends
        if end.failed and cause.role is not Role.OWN
    )
