"""What a report says of a run: numbers, tables and a drawing, as plain data. Nothing is read or drawn here."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import median

from flash_launch.metric_goal import higher_is_better
from flash_launch.report.charts import make_drawing, metric_words, shown_metrics
from flash_launch.report.curves import Curves
from flash_launch.report.drawing import Drawing
from flash_launch.viewing.json_fields import integer, mapping, number, text
from flash_launch.viewing.run_state import RunState, State, attempt_end
from flash_launch.viewing.run_view import RunView
from flash_launch.viewing.time_left import steps_in_all
from flash_launch.viewing.wording import bytes_in_words, clock, duration, plural, value_in_words

__all__ = ["Report", "Table", "Tile", "make_report"]


@dataclass(frozen=True)
class Tile:
    """One number that is shown large."""

    label: str
    """What it is."""
    value: str
    """The number."""
    note: str = ""
    """Beside it, small."""


@dataclass(frozen=True)
class Table:
    """A table of texts."""

    title: str
    """Above it."""
    header: tuple[str, ...]
    """Names of its columns."""
    rows: tuple[tuple[str, ...], ...]
    """Its cells."""
    numbers: tuple[int, ...] = ()
    """Columns that hold numbers, and are set to the right."""


@dataclass(frozen=True)
class Report:
    """All that a report says."""

    name: str
    """The run's folder."""
    state: RunState
    """What it is at."""
    subtitle: str
    """Strategy, setup, ranks, task and data."""
    verdict: str
    """Who failed first, and why; empty where nobody did."""
    tiles: tuple[Tile, ...]
    """Numbers that are shown large."""
    drawing: Drawing | None
    """The curves; None where there is nothing to draw yet."""
    phases: Table
    """What each phase trained and cost."""
    attempts: Table
    """Starts and restarts."""
    digests: str
    """Whether the ranks ended equal; empty where that is not known yet."""
    config: Table
    """The options."""
    made: str
    """When the report was made."""


def make_report(view: RunView, curves: Curves, state: RunState, now: float) -> Report:
    """The report of a run."""
    nodes = integer(view.config, "nodes")
    ranks = plural(view.world_size, "rank") if view.world_size is not None else ""
    parts = [
        text(view.plan, "strategy") or text(view.config, "strategy"),
        text(view.plan, "setup") or text(view.config, "setup"),
        f"{ranks} on {plural(nodes, 'node')}" if ranks and nodes else ranks,
        text(view.plan, "task"),
        text(view.plan, "data"),
    ]
    failed = state.name in (State.FAILED, State.DIED)
    config = [(key, _option(value)) for key, value in view.config.items() if value not in (None, {}, [])]
    return Report(
        view.path.name,
        state,
        " · ".join(part for part in parts if part),
        ((view.verdict or state.words).strip() if failed else ""),
        tuple(_tiles(view, curves)),
        make_drawing(view, curves, state),
        _phases(view, curves),
        _attempts(view, state),
        _digests(view.summary),
        Table("Configuration", ("option", "value"), tuple(config)),
        f"made {clock(now)} from {view.path}",
    )


def _tiles(view: RunView, curves: Curves) -> Iterator[Tile]:
    progress = view.progress
    shown = shown_metrics(curves)
    main = next((name for name in shown if higher_is_better(name) and name.startswith(("val", "test"))), None)
    for name in [main] if main else []:
        values = [value for value in curves.metrics[name].values if math.isfinite(value)]
        if values:
            yield Tile(
                f"best {metric_words(name)}",
                value_in_words(max(values)),
                f"last {value_in_words(values[-1])}",
            )
    loss = next((name for name in shown if name.startswith("val") and "loss" in name), None)
    if loss is not None:
        values = [value for value in curves.metrics[loss].values if math.isfinite(value)]
        if values:
            yield Tile(
                f"best {metric_words(loss)}",
                value_in_words(min(values)),
                f"last {value_in_words(values[-1])}",
            )
    elif len(curves.loss):
        yield Tile("last loss", value_in_words(curves.loss.values[-1]), f"at step {curves.loss.steps[-1]:,}")
    total, ended = steps_in_all(view), progress.epochs[-1].epoch + 1 if progress.epochs else 0
    if view.max_epochs is not None:
        step = progress.step or 0
        note = f"step {step:,} of {total:,}" if total is not None and step < total else f"{step:,} steps"
        yield Tile("epochs", f"{ended} of {view.max_epochs}", note)
    ends = [one.ended for one in view.attempts[:-1]] + [one.ended or view.last_sign for one in view.attempts[-1:]]
    pairs = zip(view.attempts, ends, strict=True)
    times = [end - one.attempt.began for one, end in pairs if end is not None]
    if times:
        yield Tile("time", duration(sum(times)), plural(len(view.attempts), "attempt"))
    if len(curves.speed):
        yield Tile("examples/s", f"{median(curves.speed.values):,.4g}", "median, all ranks")
    peaks = [integer(phase.measured, "peak_bytes") or 0 for phase in view.phases if phase.measured]
    if peak := max([*peaks, progress.peak_memory or 0]):
        yield Tile("peak memory", bytes_in_words(peak), "rank 0")


def _phases(view: RunView, curves: Curves) -> Table:
    rows: list[tuple[str, ...]] = []
    for phase in view.phases:
        measured = phase.measured or {}
        times = curves.seconds.get(phase.name)
        seconds = number(measured, "step_seconds") or (median(times) if times else None)
        sent, peak, steps = (integer(measured, key) for key in ("bytes_sent_per_step", "peak_bytes", "steps"))
        peak = peak or curves.peaks.get(phase.name)
        state = mapping(measured, "state_bytes")
        held = [integer(state, key) or 0 for key in ("masters", "moments", "gradients")] if state else []
        total = phase.trainable + phase.frozen
        rows.append(
            (
                phase.name,
                str(phase.first_epoch),
                f"{phase.trainable:,}",
                f"{phase.frozen:,}",
                f"{100 * phase.trainable / total:.3g} %" if total else "–",
                f"{steps:,}" if steps is not None else f"{len(times):,}" if times else "–",
                duration(seconds) if seconds is not None else "–",
                bytes_in_words(peak) if peak else "–",
                bytes_in_words(sent) if sent is not None else "–",
                bytes_in_words(sum(held)) if held else "–",
            )
        )
    header = ("phase", "from epoch", "trainable", "frozen", "trains", "steps", "step time", "peak memory")
    return Table("What each phase cost", (*header, "sent per step", "state per rank"), tuple(rows), tuple(range(1, 10)))


def _attempts(view: RunView, state: RunState) -> Table:
    rows = []
    for one in view.attempts:
        attempt = one.attempt
        newest = one is view.attempts[-1]
        end = attempt_end(one) or (str(state.name) if newest else "ended, nobody told how")
        began = clock(attempt.began) if attempt.began else "?"
        took = duration(one.ended - attempt.began) if one.ended is not None else "–"
        job = f" (job {one.job_id})" if one.job_id else ""
        where = (", ".join(one.hosts) or attempt.host) + job
        rows.append((str(attempt.number), began, where, attempt.resumed_from or "the start", took, end))
    return Table("Attempts", ("attempt", "began", "where", "from", "took", "how it ended"), tuple(rows), (0,))


def _digests(summary: Mapping[str, object]) -> str:
    digests = {str(rank): str(value) for rank, value in mapping(summary, "parameter_digest").items()}
    if not digests:
        return ""
    if len(set(digests.values())) == 1:
        digest = next(iter(digests.values()))
        if len(digests) == 1:
            return f"One rank, whose parameters have the digest {digest[:16]}."
        return f"All {len(digests)} ranks ended with the same parameters, bit for bit: digest {digest[:16]}."
    parts = ", ".join(f"rank {rank} {digest[:16]}" for rank, digest in digests.items())
    return f"The ranks ended with parameters that differ: {parts}."


def _option(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return " ".join(str(one) for one in value) if isinstance(value, list) else str(value)
