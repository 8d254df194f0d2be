"""What `flash-launch status` shows of one run: its lines, in plain text, for a terminal, and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from flash_launch.viewing.json_fields import integer, text
from flash_launch.viewing.run_state import JobLine, RunState, State, attempt_end
from flash_launch.viewing.run_view import RunView
from flash_launch.viewing.time_left import pace_of, steps_in_all
from flash_launch.viewing.wording import ago, bytes_in_words, clock, duration, plural, value_in_words

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["StatusLine", "as_json", "as_rich", "as_text", "status_lines"]

_COLOURS = {
    State.PREPARING: "cyan",
    State.PENDING: "yellow",
    State.RUNNING: "green",
    State.FINISHED: "bold green",
    State.STOPPED: "yellow",
    State.FAILED: "bold red",
    State.DIED: "bold red",
}
_BAR_WIDTH = 48
_ATTEMPTS_SHOWN = 6


@dataclass(frozen=True)
class StatusLine:
    """A line of the status."""

    label: str
    """What it tells of; empty: more of the line before."""
    text: str
    """What there is to tell."""


def status_lines(view: RunView, state: RunState, now: float, jobs: Sequence[JobLine] = ()) -> list[StatusLine]:
    """All that is known, and nothing that is not."""
    lines = [StatusLine("state", f"{state.name}: {state.words}")]
    if state.name == State.FAILED and (verdict := (view.verdict or "").strip()):
        lines += [StatusLine("", line) for line in verdict.splitlines()[1:]]
    if state.command:
        lines.append(StatusLine("go on with", state.command))
    lines += [*_what(view), *_where_it_is(view, state), *_numbers(view)]
    if view.checkpoints:
        newest = view.checkpoints[0]
        when = f", saved {ago(newest.time, now)}" if newest.time is not None else ", which cannot be read"
        older = f"; older: {', '.join(one.name for one in view.checkpoints[1:])}" if view.checkpoints[1:] else ""
        lines.append(StatusLine("checkpoint", f"{newest.name}{when}{older}"))
    lines += _attempts(view, state, now)
    for job in jobs:
        left = f", {duration(job.seconds_left)} left of its time limit" if job.seconds_left is not None else ""
        where = f" on {', '.join(job.nodes)}" if job.nodes else ""
        why = f" ({job.reason})" if job.reason else ""
        lines.append(StatusLine("slurm", f"job {job.job_id} {job.state.lower()}{where}{why}{left}"))
    if view.last_sign is not None and state.name == State.RUNNING:
        lines.append(StatusLine("sign of life", ago(view.last_sign, now)))
    if (recorded := text(view.wandb, "id")) is not None:
        names = [text(view.wandb, "entity"), text(view.wandb, "project"), recorded]
        lines.append(StatusLine("W&B", "/".join(name for name in names if name)))
    return lines


def _what(view: RunView) -> list[StatusLine]:
    strategy = text(view.plan, "strategy") or text(view.config, "strategy")
    setup = text(view.plan, "setup") or text(view.config, "setup")
    nodes = integer(view.config, "nodes")
    ranks = f"{plural(view.world_size, 'rank')}" if view.world_size is not None else ""
    on = f" on {plural(nodes, 'node')}" if ranks and nodes is not None else ""
    parts = [strategy, setup, f"{ranks}{on}", text(view.plan, "task"), text(view.plan, "data")]
    return [StatusLine("run", ", ".join(part for part in parts if part))]


def _where_it_is(view: RunView, state: RunState) -> list[StatusLine]:
    lines: list[StatusLine] = []
    step, epoch = view.progress.step, view.progress.epoch
    if step is not None and epoch is not None:
        total = steps_in_all(view)
        ended = view.progress.epochs[-1].epoch + 1 if view.progress.epochs else 0
        of_steps = f" of {total:,}" if total is not None else ""
        of_epochs = f" of {view.max_epochs}" if view.max_epochs is not None else ""
        at = f"epoch {epoch}, " if state.name != State.FINISHED and ended <= epoch else ""
        share = f" ({100 * step / total:.0f} %)" if total else ""
        lines.append(StatusLine("progress", f"{at}{ended}{of_epochs} epochs done, step {step:,}{of_steps}{share}"))
    elif view.max_epochs is not None:
        lines.append(StatusLine("progress", f"no step yet, {plural(view.max_epochs, 'epoch')} to do"))
    begun = [phase for phase in view.phases if phase.first_step is not None]
    if begun:
        now = begun[-1]
        trains = f"{now.name}: trains {now.trainable:,} of {now.trainable + now.frozen:,} parameters"
        lines.append(StatusLine("phase", trains))
    coming = next((phase for phase in view.phases if phase.first_step is None), None)
    if coming is not None and state.name != State.FINISHED:
        lines.append(
            StatusLine("next", f"{coming.name} at epoch {coming.first_epoch}: trains {coming.trainable:,} parameters")
        )
    pace = pace_of(view) if state.name == State.RUNNING else None
    if pace is not None:
        unless = ", if what comes is as fast as this phase" if pace.phases_to_come else ""
        lines.append(StatusLine("time left", f"about {duration(pace.seconds_left)}{unless}"))
    return lines


def _numbers(view: RunView) -> list[StatusLine]:
    lines: list[StatusLine] = []
    progress = view.progress
    last = progress.newest[-1] if progress.newest else None
    if progress.epochs:
        row = progress.epochs[-1]
        values = ", ".join(f"{name} {value_in_words(value)}" for name, value in row.metrics.items())
        lines.append(StatusLine("metrics", f"{values}  (epoch {row.epoch})"))
    if last is None:
        return lines
    if last.loss is not None:
        lines.append(StatusLine("loss", f"{value_in_words(last.loss)} at step {last.step:,}"))
    if last.rates:
        rates = list(dict.fromkeys(f"{rate:.3g}" for rate in last.rates))
        lines.append(StatusLine("learning rate", ", ".join(rates)))
    speeds = [row.examples_per_s for row in progress.newest if row.examples_per_s is not None]
    if speeds:
        lines.append(StatusLine("speed", f"{median(speeds):,.4g} examples/s over all ranks, steps alone"))
    measured = [integer(phase.measured, "peak_bytes") or 0 for phase in view.phases if phase.measured]
    if peak := max([*measured, progress.peak_memory or 0]):
        lines.append(StatusLine("peak memory", f"{bytes_in_words(peak)} on rank 0"))
    return lines


def _attempts(view: RunView, state: RunState, now: float) -> list[StatusLine]:
    lines: list[StatusLine] = []
    shown = view.attempts[-_ATTEMPTS_SHOWN:]
    if len(view.attempts) > len(shown):
        lines.append(StatusLine("attempts", f"{len(view.attempts) - len(shown)} before these"))
    for one in shown:
        attempt = one.attempt
        if not attempt.began:
            lines.append(StatusLine("" if lines else "attempts", f"{attempt.number}: its file cannot be read"))
            continue
        where = ", ".join(one.hosts) or attempt.host
        job = f", job {one.job_id}" if one.job_id else ""
        source = f", from {attempt.resumed_from}" if attempt.resumed_from else ""
        newest = one is view.attempts[-1]
        end = attempt_end(one) or (str(state.name) if newest else "ended, nobody told how")
        took = f" after {duration(one.ended - attempt.began)}" if one.ended is not None else ""
        word, colon, why = end.partition(": ")
        lines.append(
            StatusLine(
                "" if lines else "attempts",
                f"{attempt.number}: {clock(attempt.began, now)} on {where}{job}{source}, {word}{took}{colon}{why}",
            )
        )
    return lines


def as_text(path: Path, lines: Sequence[StatusLine]) -> str:
    """Plain text, as it goes to a file or through a pipe."""
    width = max(len(line.label) for line in lines) + 2
    return "\n".join([str(path), *(f"  {line.label:<{width}}{line.text}".rstrip() for line in lines)])


def as_rich(
    view: RunView, state: RunState, path: Path, lines: Sequence[StatusLine], *, unicode: bool
) -> RenderableType:
    """For a terminal: the state in its colour, and a bar of the phases."""
    from rich.console import Group
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    colour = _COLOURS[state.name]
    title = Text.assemble((f"{'●' if unicode else '*'} {state.name}", colour), "  ", (str(path), "bold"))
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for index, line in enumerate(lines):
        if index == 0:
            table.add_row("state", Text(state.words, style=colour if state.name in (State.FAILED, State.DIED) else ""))
        elif line.label == "progress" and view.phases_known and view.max_epochs:
            table.add_row(line.label, Text(line.text))
            table.add_row("", _bar(view, state, unicode=unicode))
        else:
            table.add_row(line.label, Text(line.text, style="bold" if line.label == "go on with" else ""))
    return Group(title, Padding(table, (0, 0, 0, 2)))


def _bar(view: RunView, state: RunState, *, unicode: bool) -> RenderableType:
    """The phases as parts of a bar, as long as their epochs, filled as far as they are done."""
    from rich.text import Text

    epochs = view.max_epochs or 1
    total, step = steps_in_all(view), view.progress.step or 0
    done = step / total if total else len(view.progress.epochs) / epochs
    done = 1.0 if state.name == State.FINISHED else min(done, 1.0)
    full, empty = ("█", "░") if unicode else ("#", "-")
    colours = ("blue", "cyan", "magenta", "yellow")
    starts = [round(_BAR_WIDTH * min(phase.first_epoch / epochs, 1)) for phase in view.phases] + [_BAR_WIDTH]
    bar, names = Text(), Text("\n")
    for index, phase in enumerate(view.phases):
        start, end = starts[index], starts[index + 1]
        filled = min(max(round(done * _BAR_WIDTH) - start, 0), end - start)
        colour = colours[index % len(colours)]
        bar.append(full * filled, colour)
        bar.append(empty * (end - start - filled), f"dim {colour}")
        room = end - start
        names.append(phase.name[: room - 1].ljust(room) if room > 1 else " " * room, colour)
    return Text.assemble(bar, names)


def as_json(view: RunView, state: RunState, now: float, jobs: Sequence[JobLine] = ()) -> Mapping[str, object]:
    """For scripts: the same facts, as numbers."""
    progress = view.progress
    last = progress.newest[-1] if progress.newest else None
    pace = pace_of(view) if state.name == State.RUNNING else None
    measured = [integer(phase.measured, "peak_bytes") or 0 for phase in view.phases if phase.measured]
    return {
        "run": str(view.path),
        "state": str(state.name),
        "why": state.words,
        "go_on_with": state.command or None,
        "verdict": view.verdict if state.name == State.FAILED else None,
        "strategy": text(view.plan, "strategy") or text(view.config, "strategy"),
        "setup": text(view.plan, "setup"),
        "world_size": view.world_size,
        "nodes": integer(view.config, "nodes"),
        "epoch": progress.epoch,
        "epochs_done": progress.epochs[-1].epoch + 1 if progress.epochs else 0,
        "max_epochs": view.max_epochs,
        "step": progress.step,
        "steps": steps_in_all(view),
        "phase": progress.phase,
        "phases": [
            {"name": one.name, "first_epoch": one.first_epoch, "first_step": one.first_step, "trainable": one.trainable}
            for one in view.phases
        ],
        "loss": last.loss if last is not None else None,
        "learning_rates": list(last.rates) if last is not None else [],
        "examples_per_s": last.examples_per_s if last is not None else None,
        "metrics": dict(progress.epochs[-1].metrics) if progress.epochs else {},
        "peak_memory_bytes": max([*measured, progress.peak_memory or 0]) or None,
        "checkpoints": [{"name": one.name, "step": one.step, "time": one.time} for one in view.checkpoints],
        "attempts": [
            {
                "number": one.attempt.number,
                "began": one.attempt.began,
                "host": one.attempt.host,
                "hosts": list(one.hosts),
                "job_id": one.job_id,
                "resumed_from": one.attempt.resumed_from,
                "exit_code": one.exit_code,
                "ended": one.ended,
            }
            for one in view.attempts
        ],
        "seconds_left": round(pace.seconds_left, 3) if pace is not None else None,
        "last_sign_of_life": view.last_sign,
        "time": now,
        "jobs": [
            {"job_id": job.job_id, "state": job.state, "reason": job.reason, "nodes": list(job.nodes)} for job in jobs
        ],
    }
