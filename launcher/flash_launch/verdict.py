"""The verdict on a failed launch: which rank failed first, and of what. A pure function of the facts that were left."""

import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["AgentEnd", "RankEnd", "Verdict", "find_verdict"]


@dataclass(frozen=True)
class RankEnd:
    """What is known of a rank that did not end well."""

    rank: int
    """Its number among all ranks."""
    node: int
    """Its node's number."""
    exit_code: int | None = None
    """What its agent saw: negative for a signal, None where the agent saw nothing."""
    time: float | None = None
    """When it failed, in seconds since 1970; only whole seconds where the rank itself could tell nothing."""
    error: str | None = None
    """The error it told of; None where it could not, as when it was killed."""
    user_fault: bool = False
    """Whether that is an error of ours, whose message stands for itself."""
    log: str = ""
    """Path of its log."""
    log_tail: str = ""
    """The log's last lines."""


@dataclass(frozen=True)
class AgentEnd:
    """How a node's agent ended."""

    node: int
    """Its node's number."""
    exit_code: int
    """Its exit code, negative for a signal."""
    ended_by_launcher: bool = False
    """Whether the launcher had told it to end before."""
    log: str = ""
    """Path of its log."""
    log_tail: str = ""
    """The log's last lines."""


@dataclass(frozen=True)
class Verdict:
    """Who failed first, and of what."""

    rank: int | None
    """The rank; None where it was an agent, and not one of its ranks."""
    node: int
    """Its node."""
    cause: str
    """The error, or how it was killed."""
    detail: str = ""
    """What else helps: the likely reason, the log's last lines."""
    log: str = ""
    """Path of the log to read."""
    user_fault: bool = False
    """Whether the cause is a message for the user that needs no log."""

    def render(self) -> str:
        """The verdict as the console shows it."""
        who = f"the agent of node {self.node}" if self.rank is None else f"rank {self.rank} (node {self.node})"
        lines = [f"{who} failed first: {self.cause}"]
        if self.detail:
            lines += [f"  {line}" for line in self.detail.splitlines()]
        if self.log and not self.user_fault:
            lines.append(f"  log: {self.log}")
        return "\n".join(lines)


# What a rank says when another one is gone. Gloo, NCCL and torch's store each have words of their own for it.
_CONSEQUENCE = re.compile(
    r"connection (was )?(likely )?(closed|reset|refused|aborted|lost)|closed by (the )?(remote )?peer|broken pipe"
    r"|socket closed|remote process (has )?(exited|failed)|nccl(remote|system)error|remote error"
    r"|failed to recv|recvvalue failed|sendbytes failed|gloo.*(timed out|timeout)"
    r"|(timed out|timeout).*(store|recv|send)|watchdog caught collective|did not come in time",
    re.IGNORECASE,
)
_HINTS = {
    signal.SIGKILL: "mostly the system, short of memory (see `dmesg`), or somebody's kill -9",
    signal.SIGSEGV: "a crash in native code",
    signal.SIGBUS: "often a full /dev/shm",
}
_TAIL_LINES = 5
_LINE_LENGTH = 160


def find_verdict(ranks: Sequence[RankEnd], agents: Sequence[AgentEnd]) -> Verdict | None:
    """Who failed first; None if nobody did.

    A rank's own failure goes before the end of an agent, and that before those who only noticed that another was gone:
    they may write earlier than the one who failed, if that one cleaned up first.
    """
    own = [end for end in ranks if not _is_consequence(end)]
    if own:
        return _of_rank(min(own, key=_when))
    broken = [end for end in agents if end.exit_code != 0 and not end.ended_by_launcher]
    # An agent that ends with a code, after ranks that only noticed, ended because of them; one that was killed did not.
    if killed := [end for end in broken if end.exit_code < 0]:
        return _of_agent(killed[0])
    if ranks:
        return _of_rank(min(ranks, key=_when))
    return _of_agent(broken[0]) if broken else None


def _is_consequence(end: RankEnd) -> bool:
    if end.error is None:
        # SIGTERM, or its own end's SIGHUP, is how an agent ends the ranks that are left
        return end.exit_code in (None, 0, -signal.SIGTERM, -signal.SIGHUP)
    return _CONSEQUENCE.search(end.error) is not None


def _when(end: RankEnd) -> tuple[float, int]:
    # Where only the agent knows, the time is cut to whole seconds and so is early. That is right for a rank that was
    # killed, and wrong for one that native code aborted because it noticed another's end.
    late = 1.0 if end.error is None and end.exit_code == -signal.SIGABRT else 0.0
    return (float("inf") if end.time is None else end.time + late, end.rank)


def _of_rank(end: RankEnd) -> Verdict:
    if end.error:
        return Verdict(end.rank, end.node, _short(end.error), "", end.log, end.user_fault)
    return Verdict(end.rank, end.node, _ending(end.exit_code), _detail(end.exit_code, end.log_tail), end.log)


def _of_agent(end: AgentEnd) -> Verdict:
    return Verdict(None, end.node, _ending(end.exit_code), _detail(end.exit_code, end.log_tail), end.log)


def _ending(exit_code: int | None) -> str:
    if exit_code is None:
        return "ended, nobody saw how"
    if exit_code >= 0:
        return f"exited with code {exit_code}"
    try:
        return f"killed by {signal.Signals(-exit_code).name}"
    except ValueError:
        return f"killed by signal {-exit_code}"


def _detail(exit_code: int | None, log_tail: str) -> str:
    hint = next((text for number, text in _HINTS.items() if exit_code == -number), "")
    # A progress bar writes one long line with carriage returns, of which only the last state counts.
    lines = [line.rpartition("\r")[2].rstrip() for line in log_tail.replace("\r\n", "\n").split("\n")]
    shown = [line if len(line) <= _LINE_LENGTH else line[: _LINE_LENGTH - 3] + "..." for line in lines if line]
    tail = ["its last words:", *(f"  {line}" for line in shown[-_TAIL_LINES:])] if shown else []
    return "\n".join([hint] * bool(hint) + tail)


def _short(error: str) -> str:
    return error if len(error) <= 2000 else error[:1997] + "..."
