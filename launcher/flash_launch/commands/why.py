"""The command `why`: why a run failed, from what all its ranks, agents and Slurm left behind; one verdict."""

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flash_launch.checkpoint.store import Store
from flash_launch.console import usage
from flash_launch.errors import ConfigError
from flash_launch.history import State, Story, newest_failed, read_history
from flash_launch.option_parser import nearest
from flash_launch.run_folder import RunFolder
from flash_launch.script.config import is_script
from flash_launch.viewing.run_jobs import keep_slurm_record
from flash_launch.viewing.wording import resume_command

__all__ = ["main"]

_HELP = """RUN is a run folder. Says which rank of which node failed first, of what, and what to do; ranks that only
noticed that another was gone are told apart. It reads files only: while the run goes on, too.
  --attempt N         explain attempt N; default: the newest that failed
  --all               name every rank that ended because of it, and where each rank was
  --json              the same for programs"""

_FLAGS = ("--attempt", "--all", "--json")


@dataclass(frozen=True)
class _Asked:
    """What was asked for."""

    run: Path
    attempt: int | None
    everything: bool
    as_json: bool


def main(argv: Sequence[str]) -> int:
    """Explain why a run failed."""
    if not argv or any(argument in ("-h", "--help") for argument in argv):
        print(f"usage: {usage('why')}\n\n{_HELP}")
        return 0
    asked = _read(argv)
    folder = RunFolder(asked.run.absolute())
    keep_slurm_record(folder)
    stories = read_history(folder)
    chosen = _choose(asked, stories)
    if asked.as_json:
        print(json.dumps(_as_json(asked, stories, chosen), indent=2))
        return 0
    for story in stories:
        print(story.describe())
    print()
    for line in _answer(asked, stories, chosen):
        print(line)
    for command, purpose in _next(folder, asked.run, stories, chosen):
        print(f"  {command}  # {purpose}")
    return 0


def _read(argv: Sequence[str]) -> _Asked:
    runs: list[str] = []
    attempt: int | None = None
    rest = list(argv)
    while rest:
        argument = rest.pop(0)
        name, equals, value = argument.partition("=")
        if name == "--attempt":
            given = value if equals else rest.pop(0) if rest else ""
            if not given.isdecimal():
                raise ConfigError(f"--attempt was given {given or 'nothing'}: give the number of an attempt, 1, 2, ...")
            attempt = int(given)
        elif argument.startswith("-") and argument not in _FLAGS:
            raise ConfigError(
                f"why has no option {name}{nearest(name, list(_FLAGS))}: {', '.join(_FLAGS)} are possible"
            )
        elif not argument.startswith("-"):
            runs.append(argument)
    if len(runs) != 1:
        raise ConfigError(f"why was given {' '.join(runs) or 'no run folder'}: give one run folder")
    if not RunFolder(Path(runs[0])).config_yaml.exists():
        raise ConfigError(f"why was given {runs[0]}, which is no run folder: it has no config.yaml")
    return _Asked(Path(runs[0]), attempt, "--all" in argv, "--json" in argv)


def _choose(asked: _Asked, stories: Sequence[Story]) -> Story | None:
    if asked.attempt is None:
        # what came after a failure and went well is what counts
        good = bool(stories) and not stories[-1].bad
        return stories[-1] if good else newest_failed(stories)
    found = next((story for story in stories if story.attempt.number == asked.attempt), None)
    if found is None:
        numbers = ", ".join(str(story.attempt.number) for story in stories) or "none"
        raise ConfigError(f"--attempt was given {asked.attempt}: the attempts of {asked.run} are {numbers}")
    return found


def _answer(asked: _Asked, stories: Sequence[Story], story: Story | None) -> list[str]:
    if story is None:
        return [f"{asked.run} was never started: it has no attempt"]
    number = story.attempt.number
    if story.state is State.RUNNING:
        return [f"attempt {number} runs{_where(story)}: nothing has failed", *_earlier(stories, story)]
    if story.state is State.FINISHED:
        return [f"attempt {number} finished: nothing failed", *_earlier(stories, story)]
    if story.state is State.STOPPED:
        return [f"attempt {number} was asked to stop, and has saved: nothing failed", *_earlier(stories, story)]
    if story.verdict is not None:
        return [f"attempt {number}: {story.verdict.render(everything=asked.everything)}", *_ranks(asked, story)]
    if story.told:
        return [f"attempt {number}: {story.told}", "  (as it was told then: its ranks left no files of their ends)"]
    return [
        f"attempt {number} ended, and nobody told how: {asked.run}/attempts/{number:04} holds no ends of ranks or "
        "agents. The machine went off, the launcher was killed with all its ranks, or the run is of an older version",
        *([f"  its last words are in {asked.run}/logs"] if RunFolder(asked.run).logs.exists() else []),
    ]


def _ranks(asked: _Asked, story: Story) -> list[str]:
    """Where each rank was, if all is asked for."""
    if not asked.everything:
        return []
    lines = [
        f"    rank {end.rank} (node {end.node}{f', {end.host}' if end.host else ''}): {end.progress}"
        for end in story.facts.ranks
        if end.progress is not None
    ]
    return ["  where the ranks were:", *lines] if lines else []


def _where(story: Story) -> str:
    first = next((end.progress for end in story.facts.ranks if end.progress is not None), None)
    return f", rank 0 is at: {first}" if first is not None else ""


def _earlier(stories: Sequence[Story], story: Story) -> list[str]:
    before = [one for one in stories if one.bad and one.attempt.number < story.attempt.number]
    if not before:
        return []
    number = before[-1].attempt.number
    return [f"attempt {number} had failed before; see it with --attempt {number}"]


def _next(folder: RunFolder, run: Path, stories: Sequence[Story], story: Story | None) -> list[tuple[str, str]]:
    """Commands that help on, each with its purpose."""
    if story is None or story is not stories[-1] or not (story.bad or story.state is State.STOPPED):
        return []
    if is_script(folder.config_yaml):
        return [(resume_command(run), "starts the script again")]
    names = Store(folder.checkpoints).names()
    if names:
        return [(resume_command(run), f"goes on from {names[0]}")]
    return [(f"flash-launch --config {shlex.quote(str(run / 'config.yaml'))}", "no checkpoint was saved: begins anew")]


def _as_json(asked: _Asked, stories: Sequence[Story], story: Story | None) -> dict[str, object]:
    return {
        "run": str(asked.run),
        "state": str(stories[-1].state) if stories else None,
        "attempt": story.attempt.number if story is not None else None,
        "verdict": story.verdict.to_json() if story is not None and story.verdict is not None else None,
        "told": story.told or None if story is not None else None,
        "attempts": [
            {
                "number": one.attempt.number,
                "began": one.attempt.began,
                "host": one.attempt.host,
                "resumed_from": one.attempt.resumed_from,
                "resumed_step": one.attempt.resumed_step,
                "state": str(one.state),
                "exit_code": one.exit_code,
                "seconds": one.seconds,
                "kind": str(one.verdict.kind) if one.verdict is not None else None,
            }
            for one in stories
        ],
    }
