"""Curves over optimizer steps: gathered from metrics.jsonl row by row, thinned out so that no extreme is lost."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from flash_launch.viewing.metrics_file import EpochRow, StepRow

__all__ = ["Curve", "Curves", "gather", "smoothed", "thinned"]


@dataclass
class Curve:
    """Values over steps, in order; NaN where there is none."""

    steps: array[int] = field(default_factory=lambda: array("q"))
    """Optimizer steps done."""
    values: array[float] = field(default_factory=lambda: array("d"))
    """The value there; as it was, also if it is no finite number."""

    def add(self, step: int, value: float) -> None:
        """Add a point behind the others; one at an earlier step or the same is of a row that was written twice."""
        if self.steps and step <= self.steps[-1]:
            return
        self.steps.append(step)
        self.values.append(value)

    def __len__(self) -> int:
        return len(self.steps)


@dataclass
class Curves:
    """All that metrics.jsonl has to draw."""

    loss: Curve = field(default_factory=Curve)
    """Loss of each logged step."""
    speed: Curve = field(default_factory=Curve)
    """Samples per second."""
    memory: Curve = field(default_factory=Curve)
    """Bytes at the peak."""
    rates: list[Curve] = field(default_factory=list)
    """Learning rate by param group."""
    metrics: dict[str, Curve] = field(default_factory=dict)
    """Metrics of epochs, by name."""
    seconds: dict[str, array[float]] = field(default_factory=dict)
    """Seconds of the steps of each phase."""
    peaks: dict[str, int] = field(default_factory=dict)
    """Most bytes of each phase."""

    @property
    def last_step(self) -> int:
        """The last step that has a value."""
        every = (self.loss, self.speed, self.memory, *self.rates, *self.metrics.values())
        return max((curve.steps[-1] for curve in every if len(curve)), default=0)


def gather(steps: Iterable[StepRow], epochs: Iterable[EpochRow]) -> Curves:
    """All curves of a run."""
    curves = Curves()
    for row in steps:
        for curve, value in (
            (curves.loss, row.loss),
            (curves.speed, row.examples_per_s),
            (curves.memory, row.memory),
        ):
            if value is not None:
                curve.add(row.step, value)
        while len(curves.rates) < len(row.rates):
            curves.rates.append(Curve())
        for curve, rate in zip(curves.rates, row.rates, strict=False):
            curve.add(row.step, rate)
        if row.memory is not None:
            curves.peaks[row.phase] = max(curves.peaks.get(row.phase, 0), row.memory)
        if row.seconds is not None:
            curves.seconds.setdefault(row.phase, array("d")).append(row.seconds)
    for epoch in epochs:
        for name, value in epoch.metrics.items():
            curves.metrics.setdefault(name, Curve()).add(epoch.step, value)
    return curves


def thinned(curve: Curve, most: int = 700) -> Curve:
    """At most about so many points: of each stretch the first, the last, the lowest and the highest.

    A stretch with values that are no finite numbers keeps one of those, so that the gap in the line stays.
    """
    if len(curve) <= most:
        return curve
    kept: set[int] = {0, len(curve) - 1}
    stretches = max(most // 4, 1)
    for index in range(stretches):
        start, end = index * len(curve) // stretches, (index + 1) * len(curve) // stretches
        places = range(start, end)
        finite = [place for place in places if math.isfinite(curve.values[place])]
        if finite:
            kept |= {min(finite, key=curve.values.__getitem__), max(finite, key=curve.values.__getitem__)}
            kept |= {finite[0], finite[-1]}
        if len(finite) < len(places):
            kept.add(next(place for place in places if not math.isfinite(curve.values[place])))
    places_kept = sorted(kept)
    return Curve(
        array("q", [curve.steps[place] for place in places_kept]),
        array("d", [curve.values[place] for place in places_kept]),
    )


def smoothed(curve: Curve, breaks: Sequence[int] = ()) -> Curve:
    """The exponential moving average, over about a fiftieth of the curve; begun anew at each break, a step.

    Its start is corrected for the missing past (Kingma and Ba, https://arxiv.org/abs/1412.6980, section 3).
    """
    keep = 1 - 1 / max(len(curve) / 50, 3)
    after = sorted(breaks)
    mean, weight, next_break = 0.0, 0.0, 0
    values = array("d")
    for step, value in zip(curve.steps, curve.values, strict=True):
        while next_break < len(after) and step > after[next_break]:
            mean, weight, next_break = 0.0, 0.0, next_break + 1
        if math.isfinite(value):
            mean = keep * mean + (1 - keep) * value
            weight = keep * weight + (1 - keep)
        values.append(mean / weight if weight and math.isfinite(value) else math.nan)
    return Curve(curve.steps, values)
