"""What a rank or an agent ended of, taken for itself: its own failure, or only that it noticed another's end."""

import re
import signal
from dataclasses import dataclass
from enum import Enum

from flash_launch.verdict.collectives import waiting_in
from flash_launch.verdict.facts import AgentEnd, RankEnd
from flash_launch.verdict.known_errors import Known, between_ranks, known, lost_peer, unreachable, waited
from flash_launch.verdict.told import Kind

__all__ = ["Cause", "Role", "cause_of_agent", "cause_of_rank", "crash_frames", "last_words", "signal_name"]


class Role(Enum):
    """What an end says about who is to blame."""

    OWN = "a failure of its own"
    WAITED = "waited for another, in vain"
    LOST = "noticed that another was gone"
    ENDED = "was told to end"


@dataclass(frozen=True)
class Cause:
    """Of what one of them ended."""

    role: Role
    """Whose fault it may be."""
    kind: Kind
    """Of what."""
    text: str
    """In one sentence, or an error's own words."""
    advice: str = ""
    """What to do."""
    transient: bool = False
    """Whether another attempt may well go through."""
    detail: str = ""
    """What else helps."""


_TAIL_LINES = 5
_LINE_LENGTH = 160
_TEXT_LENGTH = 2000
_MEMORY_ADVICE = (
    "it needs more memory than it may have: lower --batch-size or the number of data workers, use fewer ranks per "
    "node, keep the data set out of memory, or ask for more (Slurm: --slurm.mem)"
)
_TOLD_TO_END = (None, 0, -signal.SIGTERM, -signal.SIGHUP)
"""SIGTERM, or its own end's SIGHUP, is how an agent ends the ranks that are left."""


def cause_of_rank(end: RankEnd) -> Cause:
    """Of what a rank ended."""
    if end.ended:
        return Cause(Role.ENDED, Kind.KILLED, _ending(end.exit_code))
    if end.error is None or (not end.error and end.exit_code):
        return _of_exit(end)
    text = _core(end.error)
    everything = "\n".join((end.error_type, text, end.error))
    causes = "\n".join(end.causes)
    found = known(everything) or known(causes, physical=True)
    talk = end.user_fault or between_ranks(everything) or waiting_in(end) is not None
    if found is not None and found.kind in _BETWEEN and not talk:
        advice = _OUTSIDE_ADVICE if unreachable(everything) else ""
        return Cause(Role.OWN, Kind.EXCEPTION, _short(text), advice, detail=_raised_at(end))
    if found is not None and (found.kind not in _PEERS) and not (end.user_fault and found.kind not in _OF_OURS):
        advice = found.advice or _own_advice(found.kind, end)
        return Cause(Role.OWN, found.kind, _short(_plain(text)), advice, found.transient, _more(end, found))
    late = re.search(r"time-?out|timed out", everything, re.IGNORECASE) and waiting_in(end) is not None
    if (talk and waited(everything)) or (between_ranks(causes) and waited(causes)) or late:
        return Cause(Role.WAITED, Kind.HANG, _short(text))
    if talk and lost_peer(everything):
        return Cause(Role.LOST, Kind.CONNECTION_LOST, _short(text), transient=True)
    if end.user_fault:
        return Cause(Role.OWN, Kind.USER_FAULT, _short(text))
    if found is not None:
        return Cause(Role.OWN, found.kind, _short(text), found.advice, found.transient)
    return Cause(Role.OWN, Kind.EXCEPTION, _short(text), detail=_raised_at(end))


def cause_of_agent(end: AgentEnd) -> Cause:
    """Of what an agent ended."""
    if end.error:
        if found := known(end.error):
            advice = found.advice or _import_advice(end.error, end.host, end.python)
            return Cause(Role.OWN, found.kind, _short(_told_error(end.error)), advice, found.transient)
        if end.exit_code is not None and (waited(end.error) or lost_peer(end.error)):
            return Cause(Role.WAITED, Kind.RENDEZVOUS, _short(end.error), transient=True)
    if end.exit_code == -signal.SIGKILL and end.oom_kills:
        return Cause(Role.OWN, Kind.OOM_KILLED, "killed by the system, which was out of memory", _MEMORY_ADVICE)
    if end.exit_code is None:
        return Cause(Role.OWN, Kind.NODE_LOST, _short(end.error or "ended, nobody saw how"), transient=True)
    tail = last_words(end.log_tail)
    found = known(end.log_tail) or next((one for line in end.log_tail.splitlines() if (one := known(line))), None)
    kind = Kind.KILLED if end.exit_code < 0 else found.kind if found else Kind.EXITED
    advice = found.advice if found and end.exit_code >= 0 else ""
    hint = _KILL_HINT if end.exit_code == -signal.SIGKILL else ""
    detail = "\n".join([hint] * bool(hint) + tail)
    transient = found.transient if found and end.exit_code >= 0 else end.exit_code == -signal.SIGUSR1
    return Cause(Role.OWN, kind, _ending(end.exit_code), advice, transient, detail)


def crash_frames(log_tail: str) -> tuple[str, ...]:
    """The Python frames that faulthandler wrote when a process crashed, innermost first; of the thread that did."""
    _, mark, rest = log_tail.rpartition("Fatal Python error: ")
    if not mark:
        return ()
    blocks = re.split(r"(?m)^(?=(?:Current thread|Thread) 0x)", rest)
    own = [block for block in blocks if block.startswith("Current thread")] or blocks[-1:]
    frames = tuple(re.findall(r'^  (File ".*", line \d+ in .*)$', own[0], re.MULTILINE))
    if frames:
        return frames
    # native threads have no Python frames: the main thread, which is listed last, shows what called them
    return tuple(re.findall(r'^  (File ".*", line \d+ in .*)$', blocks[-1], re.MULTILINE))


def last_words(log_tail: str) -> list[str]:
    """The end of a log, to be shown."""
    # A progress bar writes one long line with carriage returns, of which only the last state counts.
    lines = [line.rpartition("\r")[2].rstrip() for line in log_tail.replace("\r\n", "\n").split("\n")]
    lines = [line for line in lines if line and not line.startswith("Extension modules:")]
    shown = [line if len(line) <= _LINE_LENGTH else line[: _LINE_LENGTH - 3] + "..." for line in lines]
    return ["its last words:", *(f"  {line}" for line in shown[-_TAIL_LINES:])] if shown else []


def signal_name(number: int) -> str:
    """SIGKILL, or "signal 64"."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


_PEERS = (Kind.RENDEZVOUS, Kind.NETWORK)
"""Kinds whose texts a rank says as well when another one is gone or did not come."""
_BETWEEN = (*_PEERS, Kind.PORT_TAKEN)
"""Kinds of failures of what ranks talk by; an error of the user's own code may have the same words."""
_OUTSIDE_ADVICE = (
    "this machine has no way to that address: compute nodes often have none to the internet. Fetch what is needed "
    "before, on a machine that has one, and give it as a file"
)
_OF_OURS = (Kind.NAN_LOSS, Kind.DISK_FULL, Kind.SUPERSEDED, Kind.GPU_OOM, Kind.OUT_OF_MEMORY, Kind.DATA_WORKER_KILLED)
"""Kinds that an error of ours may tell of, or come from."""


# ---- ends without words

_MISMATCH_ADVICE = (
    "see why it was elsewhere than the others: trainer.should_stop that is set on one rank only (set it on all, as "
    "trainer.strategy.reduce_boolean_decision does), a condition on the rank around a collective or an extra call of "
    "one, or loaders of different lengths"
)
_KILL_HINT = "mostly the system, short of memory (see `dmesg`), or somebody's kill -9"
_CRASHES = {
    signal.SIGSEGV: "a crash in native code",
    signal.SIGBUS: "a crash in native code, often a full /dev/shm (`df -h /dev/shm`) or disk",
    signal.SIGFPE: "a crash in native code",
    signal.SIGILL: "an instruction that this processor does not have: a package built for another machine",
    signal.SIGABRT: "native code gave up",
}


def _of_exit(end: RankEnd) -> Cause:
    code = end.exit_code
    if code in _TOLD_TO_END:
        text = _ending(code) if code else "ended, nobody saw how"
        return Cause(Role.ENDED, Kind.KILLED, text, detail="\n".join(last_words(end.log_tail)))
    assert code is not None
    if code > 0:
        words = last_words(end.log_tail)
        # what stands further up was handled
        found = next((one for line in words if (one := known(line.strip())) and one.kind not in _BETWEEN), None)
        text, tail = _ending(code), "\n".join(words)
        if found is not None:
            return Cause(Role.OWN, found.kind, text, found.advice, found.transient, tail)
        advice = "no error was raised: look for a call of exit, in the code or in a library that prints why before"
        return Cause(Role.OWN, Kind.EXITED, text, advice, detail=tail)
    if code == -signal.SIGKILL:
        return _of_kill(end)
    if -code in _CRASHES:
        return _of_crash(end, signal.Signals(-code))
    # who asks for a save while a process starts or ends, and cannot listen, kills it
    asked = code == -signal.SIGUSR1
    return Cause(Role.OWN, Kind.KILLED, _ending(code), transient=asked, detail="\n".join(last_words(end.log_tail)))


def _of_kill(end: RankEnd) -> Cause:
    tail = last_words(end.log_tail)
    if end.kernel or end.oom_kills:
        how = f"the kernel's log: {end.kernel}" if end.kernel else "its control group counted an out-of-memory kill"
        return Cause(
            Role.OWN,
            Kind.OOM_KILLED,
            "killed by the system, which was out of memory (SIGKILL)",
            _MEMORY_ADVICE,
            detail="\n".join([how, *tail]),
        )
    hint = _KILL_HINT
    if end.oom_kills == 0:
        hint = (
            "by somebody's kill -9, or a time or resource limit; not for want of memory, by its control group's count"
        )
    advice = "if nobody did it, see the node's memory and its kernel log (`dmesg`), and ask for more memory"
    return Cause(Role.OWN, Kind.KILLED, _ending(end.exit_code), advice, detail="\n".join([hint, *tail]))


def _of_crash(end: RankEnd, number: signal.Signals) -> Cause:
    told = re.search(r"Watchdog caught collective operation timeout: .*", end.log_tail)
    if number is signal.SIGABRT and told:
        return Cause(Role.WAITED, Kind.HANG, told[0][:_LINE_LENGTH])
    abort = _abort_words(end.log_tail)
    if number is signal.SIGABRT and re.search(r"collective mismatch|doesn't match expected size", end.log_tail):
        text = f"{_ending(end.exit_code)}: it exchanged something with the other ranks, which exchanged something else"
        return Cause(Role.OWN, Kind.CRASH, text, _MISMATCH_ADVICE, detail="\n".join(last_words(end.log_tail)))
    if number is signal.SIGABRT and between_ranks(abort) and (waited(abort) or lost_peer(abort)):
        if waited(abort):
            return Cause(Role.WAITED, Kind.HANG, _ending(end.exit_code))
        return Cause(Role.LOST, Kind.CONNECTION_LOST, _ending(end.exit_code), transient=True)
    if (found := known(end.log_tail)) and found.kind in (Kind.GPU_OOM, Kind.GPU_FAILED, Kind.OUT_OF_MEMORY):
        detail = "\n".join(last_words(end.log_tail))
        return Cause(Role.OWN, found.kind, _ending(end.exit_code), found.advice, found.transient, detail)
    frames = crash_frames(end.log_tail)
    why = [_CRASHES[number]]
    if frames:
        why += [
            "the Python code that called it, innermost first:",
            *(f"  {frame}" for frame in frames[:_TAIL_LINES]),
        ]
    else:
        why += last_words(end.log_tail)
    advice = (
        "look at the native code that is called there: an extension built against another torch, a bad pointer of your "
        "own; `flash-launch doctor` compares versions. It will happen again"
    )
    return Cause(Role.OWN, Kind.CRASH, _ending(end.exit_code), advice, detail="\n".join(why))


def _abort_words(log_tail: str) -> str:
    """What native code said when it gave up, which stands right before the stack that faulthandler writes."""
    before, mark, _ = log_tail.rpartition("Fatal Python error: Aborted")
    _, terminate, words = (before if mark else log_tail).rpartition("terminate called")
    return words if terminate else ""


# ---- words of errors


def _core(error: str) -> str:
    """The error itself, where a data worker's traceback is told around it."""
    _, mark, original = error.partition("Original Traceback (most recent call last):")
    if not mark:
        return error.strip()
    lines = [line for line in original.strip().splitlines() if line.strip()]
    last = next(
        (at for at in range(len(lines) - 1, -1, -1) if re.match(r"[\w.]+(Error|Exception|Exit)?\b:?", lines[at])), 0
    )
    return "\n".join(lines[last:]).strip() + " (in a data worker)"


def _told_error(error: str) -> str:
    """The error of an agent, without the stack that torch's store appends."""
    return re.split(r"\nException raised from", error)[0].strip()


def _own_advice(kind: Kind, end: RankEnd) -> str:
    return _import_advice("\n".join((end.error or "", *end.causes)), end.host, "") if kind is Kind.IMPORT_ERROR else ""


def _import_advice(error: str, host: str, python: str) -> str:
    where = f"on {host}" if host else "there"
    if module := re.search(r"No module named '([\w.]+)'", error):
        name = module[1].partition(".")[0]
        return (
            f"install {name} {where} in the environment of the run{f' ({python})' if python else ''}; if it is a file "
            f"of your own, start the command in the folder that has {name}.py or {name}/"
        )
    if re.search(r"cannot import name|ImportError", error):
        return f"the package {where} has another version than the code expects, or its native libraries are missing"
    return ""


def _plain(text: str) -> str:
    return "interrupted by SIGINT, as Ctrl-C sends it" if text == "KeyboardInterrupt" else text


def _more(end: RankEnd, found: Known) -> str:
    came_from = [f"it came from: {_short(cause)}" for cause in end.causes if found.fits(cause)]
    kills = f"its control group counted {end.oom_kills} out-of-memory kills" if end.oom_kills else ""
    own = _raised_at(end) if not end.user_fault and end.error != "KeyboardInterrupt" else ""
    return "\n".join(text for text in (*came_from[:1], own, kills) if text)


def _raised_at(end: RankEnd) -> str:
    """The user's own line that raised, where it is not plain from the error."""
    own = [
        frame
        for frame in end.frames
        if not re.search(r"site-packages|/lib/python3|<frozen|/flash_(launch|strategies)/", frame)
    ]
    return re.sub(r'File "(.*)", line (\d+) in (.*)', r"at \1:\2 in \3", own[-1]) if own else ""


def _ending(exit_code: int | None) -> str:
    if exit_code is None:
        return "ended, nobody saw how"
    return f"exited with code {exit_code}" if exit_code >= 0 else f"killed by {signal_name(-exit_code)}"


def _short(error: str) -> str:
    error = re.split(r"\nException raised from", error)[0].strip()
    return error if len(error) <= _TEXT_LENGTH else error[: _TEXT_LENGTH - 3] + "..."
