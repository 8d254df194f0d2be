"""What is drawn, apart from how: panels of lines over optimizer steps, bands of phases and marks. Pure data."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from flash_launch.report.curves import Curve
from flash_launch.viewing.wording import bytes_in_words

__all__ = ["Band", "Drawing", "Line", "Mark", "Panel", "linear_ticks", "log_ticks", "shown_value", "step_ticks"]


@dataclass(frozen=True)
class Line:
    """One line of a panel."""

    name: str
    """As the legend names it."""
    curve: Curve
    """Its points."""
    colour: int
    """Number of its colour."""
    faint: bool = False
    """Whether it stands behind the others, as the raw loss behind the smoothed one."""
    dots: bool = False
    """Whether its points are shown, as of what is measured once an epoch."""


@dataclass(frozen=True)
class Panel:
    """One set of axes."""

    title: str
    """What it shows."""
    unit: str
    """number, bytes or rate (numbers with an exponent)."""
    lines: tuple[Line, ...]
    """From behind to front."""
    log: bool = False
    """Whether the y axis is logarithmic."""
    low: float = 0.0
    """Where the y axis begins."""
    high: float = 1.0
    """Where it ends."""
    note: str = ""
    """What must be said beside it."""

    @property
    def has_legend(self) -> bool:
        """Whether its lines need names beside the title."""
        return len(self.lines) > 1 or self.lines[0].name not in self.title.lower()


@dataclass(frozen=True)
class Band:
    """A phase over the steps it took."""

    name: str
    """The phase."""
    start: int
    """Step at which it began."""
    end: int
    """Step at which it ended, or how far it is."""
    shade: float
    """0 to 1: the share of the parameters that train."""
    label: str
    """All there is to say of it in a line."""


@dataclass(frozen=True)
class Mark:
    """Something that happened at a step."""

    kind: str
    """transition, checkpoint, restart or failure."""
    step: int
    """Optimizer steps done."""
    label: str
    """What it was."""


@dataclass(frozen=True)
class Drawing:
    """All that is drawn of a run."""

    panels: tuple[Panel, ...]
    """From top to bottom."""
    bands: tuple[Band, ...]
    """The phases."""
    marks: tuple[Mark, ...]
    """What happened."""
    end: int
    """Where the x axis ends."""


def shown_value(value: float, unit: str) -> str:
    """A value as an axis or a tooltip shows it."""
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "inf" if value > 0 else "-inf"
    if unit == "bytes":
        return bytes_in_words(value, 4)
    if unit == "rate":
        return f"{value:.3g}".replace("e-0", "e-")
    if abs(value) >= 10_000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def linear_ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers from low to high, 1, 2, 2.5 or 5 times a power of ten apart."""
    if not high > low:
        return [low]
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    apart = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first = math.ceil(low / apart - 1e-9)
    last = math.floor(high / apart + 1e-9)
    return [round(number * apart, 12) if apart > 1e-9 else number * apart for number in range(first, last + 1)]


def log_ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Powers of ten from low to high; with 2 and 5 times them where they are few."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    powers = [10.0**power for power in range(first, last + 1)]
    within = [tick for tick in powers if low <= tick <= high]
    if len(within) < 3:
        more = [factor * power for power in powers for factor in (1, 2, 5)]
        return [tick for tick in more if low * 0.999 <= tick <= high * 1.001]
    skip = math.ceil(len(within) / most)
    return within[::-1][::skip][::-1]


def step_ticks(end: int, most: int) -> Sequence[int]:
    """Whole steps from 0 to the end."""
    ticks = [round(tick) for tick in linear_ticks(0, max(end, 1), most) if tick == round(tick)]
    return ticks or [0, end]
