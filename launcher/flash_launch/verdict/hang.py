"""The verdict on a hang: some ranks waited until their time was up; which ranks did not come, and where are they?"""

import re
from collections.abc import Sequence

from flash_launch.verdict.causes import Cause, Role
from flash_launch.verdict.collectives import Waiting, doing, waiting_in
from flash_launch.verdict.facts import RankEnd
from flash_launch.verdict.told import Kind, Verdict

__all__ = ["hang_verdict", "listed"]

_MOST_SHOWN = 4


def hang_verdict(ends: Sequence[tuple[RankEnd, Cause]]) -> Verdict:
    """Who did not come, from all ranks' ends, of whom at least one waited in vain."""
    ranks = [end for end, _ in ends]
    if missing := [end for end in ranks if not end.started]:
        return _never_started(missing, ends)
    if finished := [end for end in ranks if end.finished]:
        return _ended_early(finished, ends)
    gave_up = {end.rank for end, cause in ends if cause.role is Role.WAITED}
    waits = {end.rank: wait for end in ranks if (wait := waiting_in(end)) is not None}
    behind = [end for end in ranks if end.rank not in waits and end.rank not in gave_up and _silent(end, ends)]
    if behind:
        # who waits in native code, as with NCCL, does not say so; but has come as far as those who gave up
        reached = [step for end in ranks if end not in behind and (step := _step(end)) is not None]
        late = [end for end in behind if reached and (step := _step(end)) is not None and step < max(reached)]
        return _behind(late or behind, ends, waits)
    steps = {end.rank: step for end in ranks if (step := _step(end)) is not None}
    if len(set(steps.values())) > 1:
        late = [end for end in ranks if steps.get(end.rank) == min(steps.values())]
        return _behind(late, ends, waits)
    if len({_place(wait) for wait in waits.values()}) > 1:
        return _apart(ranks, waits, ends)
    return _together(ranks, waits, ends)


def listed(ranks: Sequence[RankEnd]) -> str:
    """rank 1 (node 0, host), or ranks 1, 2 and 3."""
    if len(ranks) == 1:
        one = ranks[0]
        return f"rank {one.rank} (node {one.node}{f', {one.host}' if one.host else ''})"
    numbers = [str(one.rank) for one in ranks]
    hosts = {one.host for one in ranks if one.host}
    where = f" (on {', '.join(sorted(hosts))})" if 0 < len(hosts) <= _MOST_SHOWN else ""
    if len(numbers) > 2 * _MOST_SHOWN:
        return f"{len(numbers)} ranks, the first are {', '.join(numbers[:_MOST_SHOWN])}{where}"
    return f"ranks {', '.join(numbers[:-1])} and {numbers[-1]}{where}"


def _behind(behind: Sequence[RankEnd], ends: Sequence[tuple[RankEnd, Cause]], waits: dict[int, Waiting]) -> Verdict:
    late = {end.rank for end in behind}
    waiting = [end for end, cause in ends if end.rank not in late and (end.rank in waits or cause.role is Role.WAITED)]
    first = behind[0]
    where = doing(first)
    if first.stack or first.frames:
        at = [f"it is at {where}"] if where else []
    else:
        at = ["it did not answer when it was asked where it is: stopped, waiting for a disk, or its node hangs"]
    more = [f"rank {end.rank} is at {doing(end) or 'an unknown line'}" for end in behind[1:_MOST_SHOWN]]
    advice = (
        f"see why {_they(behind)} did not get there: a condition on the rank around a collective or an extra call of "
        f"one, data that hang or end early, a lock. All stacks: attempts/*/node{first.node}_rank{first.rank}.stack"
    )
    return _hang(behind, ends, f"{_who_waited(waiting, waits)}, and it did not come", [*at, *more], advice)


def _ended_early(finished: Sequence[RankEnd], ends: Sequence[tuple[RankEnd, Cause]]) -> Verdict:
    waits = {end.rank: wait for end, _ in ends if (wait := waiting_in(end)) is not None}
    waiting = [end for end, cause in ends if cause.role in (Role.WAITED, Role.LOST)]
    advice = "let all ranks take the same number of steps: data of unequal length per rank, or a return on a condition?"
    cause = f"it ended, without an error, while {_who_waited(waiting, waits)}"
    return _hang(finished, ends, cause, [], advice, verb="left the others waiting")


def _apart(ranks: Sequence[RankEnd], waits: dict[int, Waiting], ends: Sequence[tuple[RankEnd, Cause]]) -> Verdict:
    groups: dict[str, list[RankEnd]] = {}
    for end in ranks:
        if end.rank in waits:
            groups.setdefault(str(waits[end.rank]), []).append(end)
    lines = [f"{listed(group)} in {where}" for where, group in list(groups.items())[:_MOST_SHOWN]]
    odd = min(groups.values(), key=lambda group: (len(group), -group[0].rank))
    advice = "all ranks must call the same collectives in the same order: look for a condition on the rank around one"
    cause = "the ranks wait for each other in different collectives"
    return _hang(odd, ends, cause, lines, advice)


def _together(ranks: Sequence[RankEnd], waits: dict[int, Waiting], ends: Sequence[tuple[RankEnd, Cause]]) -> Verdict:
    waiting = [end for end in ranks if end.rank in waits] or list(ranks)
    advice = (
        "nobody is behind, so messages do not get through: see the network between the nodes (`flash-launch doctor`; "
        "NCCL_DEBUG=INFO, NCCL_SOCKET_IFNAME or GLOO_SOCKET_IFNAME), and go on with `flash-launch resume`. "
        "If it was only slow, raise --timeout"
    )
    named = _named(ends)
    cause = f"{_who_waited(waiting, waits)}, all in the same place, and the time was up"
    if named:
        cause += f" (missing were, by rank 0: {', '.join(map(str, named))})"
    return _hang(waiting, ends, cause, [], advice, transient=True, who="all ranks" if len(waiting) > 1 else "")


def _never_started(missing: Sequence[RankEnd], ends: Sequence[tuple[RankEnd, Cause]]) -> Verdict:
    waiting = [end for end, cause in ends if cause.role is Role.WAITED]
    first = missing[0]
    advice = (
        f"see the log of its agent, logs/node{first.node}_agent.log, and whether Python starts on that node: a file "
        "system that hangs, another environment, a limit on processes"
    )
    cause = f"it never told that it runs, and {listed(waiting) if waiting else 'the others'} waited in vain"
    return Verdict(
        first.rank,
        first.node,
        cause,
        kind=Kind.NEVER_STARTED,
        advice=advice,
        host=first.host,
        who=listed(missing),
        verb="never started",
        consequences=_consequences(ends, {end.rank for end in missing}),
    )


def _hang(
    culprits: Sequence[RankEnd],
    ends: Sequence[tuple[RankEnd, Cause]],
    cause: str,
    detail: Sequence[str],
    advice: str,
    *,
    verb: str = "",
    who: str = "",
    transient: bool = False,
) -> Verdict:
    first = culprits[0]
    return Verdict(
        first.rank,
        first.node,
        cause,
        "\n".join(detail),
        first.log,
        kind=Kind.HANG,
        advice=advice,
        transient=transient,
        host=first.host,
        at=str(first.progress) if first.progress is not None else "",
        who=who or listed(culprits),
        verb=verb or ("hangs" if len(culprits) == 1 and not who else "hang"),
        consequences=_consequences(ends, set() if who else {end.rank for end in culprits}),
    )


def _who_waited(waiting: Sequence[RankEnd], waits: dict[int, Waiting]) -> str:
    if not waiting:
        return "the others waited"
    first = next((end for end in waiting if end.rank in waits), waiting[0])
    where = f" in {waits[first.rank]}" if first.rank in waits else ""
    step = f" after step {first.progress.step}" if first.progress and first.progress.step is not None else ""
    return f"{listed(waiting)} waited{where}{step}"


def _silent(end: RankEnd, ends: Sequence[tuple[RankEnd, Cause]]) -> bool:
    """Whether it told of nothing and was only ended: those who lost their connection had been waiting, too."""
    return all(cause.role is Role.ENDED for other, cause in ends if other.rank == end.rank)


def _step(end: RankEnd) -> int | None:
    return end.progress.step if end.progress is not None else None


def _they(ranks: Sequence[RankEnd]) -> str:
    return "it" if len(ranks) == 1 else "they"


def _place(wait: Waiting) -> str:
    return f"{wait.collective} {wait.line}"


def _named(ends: Sequence[tuple[RankEnd, Cause]]) -> list[int]:
    """The ranks that rank 0's barrier names as missing."""
    for end, _ in ends:
        if told := re.search(r"[Rr]anks? ([\d, ]+) (?:failed to pass|did not come)", end.error or ""):
            return [int(number) for number in re.findall(r"\d+", told[1])]
    return []


def _consequences(ends: Sequence[tuple[RankEnd, Cause]], culprits: set[int]) -> tuple[str, ...]:
    return tuple(
        f"rank {end.rank} {cause.role.value}: {cause.text.splitlines()[0]}"
        for end, cause in ends
        if end.rank not in culprits and end.failed and not end.finished
    )
