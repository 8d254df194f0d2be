"""What a report draws of a run: its curves in panels, its phases as bands, and what happened as marks."""

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

from flash_launch.report.curves import Curve, Curves, smoothed, thinned
from flash_launch.report.drawing import Band, Drawing, Line, Mark, Panel
from flash_launch.viewing.json_fields import number
from flash_launch.viewing.run_state import RunState, State
from flash_launch.viewing.run_view import PhaseView, RunView
from flash_launch.viewing.wording import bytes_in_words, duration, plural

__all__ = ["make_drawing", "metric_words", "shown_metrics"]

_MOST_METRIC_PANELS = 4
_MOST_RATES = 6
_MOST_MARKS = 50
_SMOOTHED_FROM = 40


def make_drawing(view: RunView, curves: Curves, state: RunState) -> Drawing | None:
    """The drawing; None where there is nothing to draw yet."""
    end = curves.last_step
    if end == 0:
        return None
    begun = [phase for phase in view.phases if phase.first_step is not None and phase.first_step <= end]
    bounds = [*(phase.first_step or 0 for phase in begun), end]
    bands = tuple(
        Band(phase.name, start, stop, _share(phase), _phase_label(phase))
        for phase, (start, stop) in zip(begun, pairwise(bounds), strict=True)
        if stop > start
    )
    return Drawing(tuple(_panels(curves, bounds[1:-1])), bands, tuple(_marks(view, state, end, begun)), end)


def _panels(curves: Curves, breaks: Sequence[int]) -> Iterator[Panel]:
    shown = shown_metrics(curves)
    losses = [name for name in shown if "loss" in name]
    raw = curves.loss
    lines: list[Line] = []
    if len(raw) > _SMOOTHED_FROM:
        lines += [
            Line("loss of a step", thinned(raw), 0, faint=True),
            Line("smoothed", thinned(smoothed(raw, breaks)), 0),
        ]
    elif len(raw):
        lines.append(Line("loss of a step", raw, 0))
    lines += [Line(name, thinned(curves.metrics[name]), 1 + i, dots=True) for i, name in enumerate(losses)]
    if lines:
        yield _panel("Loss", "number", lines, note=_not_finite(raw))
    groups: dict[str, list[str]] = {}
    for name in shown:
        if name not in losses:
            groups.setdefault(name.removeprefix("train_").removeprefix("val_").removeprefix("test_"), []).append(name)
    left = len(groups) - (_MOST_METRIC_PANELS)
    for place, (title, names) in enumerate(list(groups.items())[:_MOST_METRIC_PANELS]):
        lines = [Line(name, thinned(curves.metrics[name]), 2 + i, dots=True) for i, name in enumerate(names)]
        more = (
            f"{plural(left, 'more metric')} in metrics.jsonl" if left > 0 and place == _MOST_METRIC_PANELS - 1 else ""
        )
        yield _panel(metric_words(title).capitalize(), "number", lines, note=more)
    rates = _distinct(curves.rates)
    if rates:
        lines = [Line(name, thinned(curve), i) for i, (name, curve) in enumerate(rates[:_MOST_RATES])]
        hidden = f"{plural(len(rates) - _MOST_RATES, 'more group')}" if len(rates) > _MOST_RATES else ""
        yield _panel("Learning rate", "rate", lines, zero=True, note=hidden)
    if len(curves.memory):
        yield _panel("Peak memory, rank 0", "bytes", [Line("memory", thinned(curves.memory), 4)], zero=False)
    if len(curves.speed):
        line = [Line("examples/s", thinned(curves.speed), 5, faint=True)]
        if len(curves.speed) > _SMOOTHED_FROM:
            line.append(Line("smoothed", thinned(smoothed(curves.speed, breaks)), 5))
        yield _panel("Examples per second, all ranks", "number", line, zero=True)


def _panel(title: str, unit: str, lines: Sequence[Line], *, zero: bool = False, note: str = "") -> Panel:
    """A panel whose y axis holds all values."""
    values = [value for line in lines for value in line.curve.values if math.isfinite(value)]
    low, high = min(values, default=0.0), max(values, default=1.0)
    log = unit == "number" and not zero and low > 0 and high / low > 100
    if log:
        room = (high / low) ** 0.05
        return Panel(title, unit, tuple(lines), True, low / room, high * room, note)
    if zero:
        low = min(low, 0.0)
    room = (high - low) * 0.06 or abs(high) * 0.05 or 0.5
    bottom = low if zero else low - room if low < 0 else max(low - room, 0.0)
    share = unit == "number" and low >= 0 and high <= 1  # an accuracy is never above 1
    top = min(high + room, 1.02) if share else high + room
    return Panel(title, unit, tuple(lines), False, bottom, top, note)


def _marks(view: RunView, state: RunState, end: int, begun: Sequence[PhaseView]) -> Iterator[Mark]:
    for phase in begun[1:]:
        yield Mark("transition", phase.first_step or 0, _phase_label(phase))
    kept = {one.step for one in view.checkpoints}
    saved = {event.step: event for event in view.lineage if event.kind == "checkpoint" and event.step is not None}
    steps = sorted(step for step in saved if 0 < step <= end)
    skip = math.ceil(len(steps) / _MOST_MARKS) if steps else 1
    for step in steps:
        if step in kept or steps.index(step) % skip == 0:
            event = saved[step]
            size, stall = number(event.facts, "bytes"), number(event.facts, "stall")
            what = f", {bytes_in_words(size)}" if size is not None else ""
            waited = f", training waited {duration(stall)}" if stall is not None else ""
            gone = "" if step in kept else ", deleted since"
            yield Mark("checkpoint", step, f"checkpoint at step {step:,}{what}{waited}{gone}")
    for one in view.attempts[1:]:
        attempt = one.attempt
        how = f"from {attempt.resumed_from}" if attempt.resumed_from else "from the start"
        yield Mark("restart", min(attempt.resumed_step, end), f"attempt {attempt.number} on {attempt.host}, {how}")
    if state.name in (State.FAILED, State.DIED):
        yield Mark("failure", end, state.words)


def shown_metrics(curves: Curves) -> list[str]:
    """Lightning logs `x` as the last step's value where `x_epoch` is the epoch's mean: the mean is shown."""
    names = list(curves.metrics)
    return [name for name in names if not name.endswith("_step") and f"{name}_epoch" not in names]


def _distinct(rates: Sequence[Curve]) -> list[tuple[str, Curve]]:
    """Learning rates that differ somewhere, each with its groups' numbers."""
    found: list[tuple[list[int], Curve]] = []
    for index, curve in enumerate(rates):
        for groups, other in found:
            start = len(other) - len(curve)
            # a group that came later has the last rows only
            if start >= 0 and other.steps[start:] == curve.steps and other.values[start:] == curve.values:
                groups.append(index)
                break
        else:
            if len(curve):
                found.append(([index], curve))
    if len(found) == 1:
        return [("all groups" if len(found[0][0]) > 1 else "learning rate", found[0][1])]
    return [(f"group{'s' * (len(groups) > 1)} {', '.join(map(str, groups))}", curve) for groups, curve in found]


def _not_finite(curve: Curve) -> str:
    bad = next((place for place, value in enumerate(curve.values) if not math.isfinite(value)), None)
    if bad is None:
        return ""
    if any(math.isfinite(value) for value in curve.values[bad:]):
        return f"not a finite number at some steps, first at step {curve.steps[bad]:,}"
    return f"not a finite number from step {curve.steps[bad]:,} on"


def _share(phase: PhaseView) -> float:
    total = phase.trainable + phase.frozen
    return phase.trainable / total if total else 0.0


def _phase_label(phase: PhaseView) -> str:
    total = phase.trainable + phase.frozen
    return f"{phase.name}: from epoch {phase.first_epoch}, trains {phase.trainable:,} of {total:,} parameters"


def metric_words(name: str) -> str:
    """A metric as a title names it."""
    return name.replace("_", " ")
