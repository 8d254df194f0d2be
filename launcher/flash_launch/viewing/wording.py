"""Numbers, sizes, durations and commands in words, as people read them in a terminal or on a page."""

import math
import shlex
import time
from pathlib import Path

__all__ = ["ago", "bytes_in_words", "clock", "duration", "plural", "resume_command", "value_in_words"]

_DURATIONS = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"), (1.0, "s"))


def duration(seconds: float) -> str:
    """0.4 s, 12 s, 3 min 5 s, 2 h 10 min, 3 d 4 h: at most two units."""
    if seconds < 0.0005:
        return "0 s"
    if seconds < 10:
        return f"{seconds:.2g} s" if seconds >= 0.1 else f"{seconds * 1000:.2g} ms"
    left = round(seconds)
    parts: list[str] = []
    for size, unit in _DURATIONS:
        number, left = divmod(left, int(size))
        if number or (parts and unit != "s"):
            parts.append(f"{number} {unit}")
        if len(parts) == 2:
            break
    return " ".join(part for part in parts if not part.startswith("0 ")) or "0 s"


def ago(then: float, now: float) -> str:
    """How long ago; a clock that is ahead of ours counts as now."""
    return "just now" if now - then < 2 else f"{duration(now - then)} ago"


def clock(then: float, now: float | None = None) -> str:
    """The local time of day, with the date where `now` is on another day or not given."""
    day = "%Y-%m-%d"
    same = now is not None and time.strftime(day, time.localtime(then)) == time.strftime(day, time.localtime(now))
    return time.strftime("%H:%M:%S" if same else f"{day} %H:%M:%S", time.localtime(then))


def bytes_in_words(count: float, digits: int = 3) -> str:
    """Bytes in units of 1000, with so many digits that count: 1.23 MB."""
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if abs(size) < 999.5:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.{digits}g} {unit}"
        size /= 1000
    return f"{size:.{digits}g} TB" if size < 999.5 else f"{size:,.0f} TB"


def plural(number: int, noun: str) -> str:
    """1 rank, 2 ranks."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def value_in_words(value: float) -> str:
    """A metric with four digits that count."""
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "infinite"
    if value == 0 or 1e-4 <= abs(value) < 1e5:
        return f"{value:.4g}"
    return f"{value:.3g}"


def resume_command(path: Path) -> str:
    """The command that goes on with a run, for a shell."""
    command = "submit" if (path / "slurm.json").exists() else "resume"
    return f"flash-launch {command} {shlex.quote(str(path))}"
