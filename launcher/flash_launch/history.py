"""The attempts of a run, one after the other: when and where each began, from which step, and how it ended."""

import os
import signal
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from flash_launch import telling
from flash_launch.checkpoint.attempts import STOPPED, Attempt, launcher_runs, read_attempts
from flash_launch.executors.ends import attempt_facts
from flash_launch.run_folder import RunFolder
from flash_launch.verdict import AttemptFacts, Kind, Verdict, find_verdict

__all__ = ["State", "Story", "newest_failed", "read_history"]

_LINE_LENGTH = 100
_SILENT_SECONDS = 180.0
"""After this long without a word from any rank, an attempt of another machine is not taken to run."""


class State(StrEnum):
    """How an attempt stands."""

    FINISHED = "finished"
    STOPPED = "stopped"
    FAILED = "failed"
    ENDED = "ended"
    RUNNING = "running"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Story:
    """One attempt."""

    attempt: Attempt
    """Its beginning."""
    state: State
    """How it stands."""
    exit_code: int | None = None
    """The launcher's exit code; None: it runs, or ended without a word."""
    seconds: float | None = None
    """How long it took."""
    verdict: Verdict | None = None
    """Who failed first, by the files of its ranks."""
    told: str = ""
    """The verdict as the launcher told it then."""
    facts: AttemptFacts = AttemptFacts((), ())  # noqa: RUF009
    """What the verdict is found from."""

    @property
    def bad(self) -> bool:
        """Whether there is something to explain."""
        return self.state in (State.FAILED, State.ENDED, State.UNKNOWN)

    def describe(self) -> str:
        """One line."""
        began = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.attempt.began)) if self.attempt.began else "?"
        start = f"step {self.attempt.resumed_step}" if self.attempt.resumed_from else "the start"
        took = f" after {self.seconds:.1f} s" if self.seconds is not None else ""
        text = self.verdict.render() if self.verdict is not None else self.told
        first = text.splitlines()[0] if text else ""
        first = first if len(first) <= _LINE_LENGTH else first[: _LINE_LENGTH - 3] + "..."
        why = f": {first}" if first and self.bad else ""
        return f"attempt {self.attempt.number}  {began}  {self.attempt.host}  from {start}  {self.state}{took}{why}"


def read_history(folder: RunFolder) -> list[Story]:
    """All attempts of a run, in order."""
    attempts = read_attempts(folder.attempts)
    return [_story(folder, one, last=one is attempts[-1]) for one in attempts]


def newest_failed(stories: Sequence[Story]) -> Story | None:
    """The newest attempt with something to explain; None if there is none."""
    return next((story for story in reversed(stories) if story.bad), None)


def _story(folder: RunFolder, attempt: Attempt, *, last: bool) -> Story:
    ends = folder.ends_of(attempt.number)
    told = telling.read(ends / "end.json")
    code, seconds, text = told.get("exit_code"), told.get("seconds"), told.get("verdict")
    facts = attempt_facts(folder, attempt.number)
    story = Story(
        attempt,
        State.UNKNOWN,
        code if isinstance(code, int) else None,
        float(seconds) if isinstance(seconds, (int, float)) else None,
        told=text if isinstance(text, str) else "",
        facts=facts,
    )
    if story.exit_code == 0:
        return replace(story, state=State.FINISHED)
    if story.exit_code == STOPPED:
        return replace(story, state=State.STOPPED)
    if story.exit_code is None and last and _runs(attempt, ends):
        return replace(story, state=State.RUNNING)
    if story.exit_code is not None and story.exit_code > 128:
        return replace(story, state=State.ENDED, verdict=_by_signal(story, facts))
    verdict = find_verdict(facts.ranks, facts.agents, facts.slurm, disk_free=None)
    if story.exit_code is None:
        verdict = verdict if facts.ranks or facts.agents else None
        return replace(story, state=State.FAILED if verdict is not None else State.UNKNOWN, verdict=verdict)
    return replace(story, state=State.FAILED, verdict=verdict)


def _by_signal(story: Story, facts: AttemptFacts) -> Verdict:
    """The verdict on an attempt that somebody ended; Slurm may know why."""
    number = (story.exit_code or 0) - 128
    name = signal.Signals(number).name if number in {int(one) for one in signal.Signals} else f"signal {number}"
    how = {signal.SIGINT: "Ctrl-C (SIGINT)", signal.SIGHUP: "its terminal was closed (SIGHUP)"}.get(number, name)  # type: ignore[call-overload]
    at = next((str(end.progress) for end in facts.ranks if end.progress is not None), "")
    by_slurm = find_verdict((), (), facts.slurm) if facts.slurm is not None else None
    if by_slurm is not None:
        return replace(by_slurm, at=at)
    return Verdict(
        None,
        None,
        str(how),
        kind=Kind.INTERRUPTED,
        advice="go on with `flash-launch resume`",
        at=at,
        who="the launcher",
        verb="was ended from outside",
    )


def _runs(attempt: Attempt, ends: Path) -> bool:
    if attempt.host == socket.gethostname() and not (ends / "slurm.json").exists():
        return launcher_runs(attempt)
    try:
        newest = max((entry.stat().st_mtime for entry in os.scandir(ends)), default=attempt.began)
    except OSError:
        newest = attempt.began
    ended = any(ends.glob("*.failure")) or any(ends.glob("*.end"))
    return not ended and time.time() - newest < _SILENT_SECONDS
