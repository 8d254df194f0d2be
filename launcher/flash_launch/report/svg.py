"""A drawing as SVG, to stand in a page: colours are the page's, by class; the text is escaped."""

import math
from collections.abc import Callable, Iterator
from html import escape

from flash_launch.report.drawing import (
    Band,
    Drawing,
    Line,
    Mark,
    Panel,
    linear_ticks,
    log_ticks,
    shown_value,
    step_ticks,
)

__all__ = ["LEFT", "RIGHT", "band_opacity", "panel_svg", "timeline_svg"]

LEFT, RIGHT = 58, 14
"""Margins of a panel, in its own units: the page's script finds a step by them."""
_TOP, _BOTTOM = 10, 26
_HEIGHT = 228
_STRIP = 26
_LETTER = 6.6


def band_opacity(shade: float) -> float:
    """How dark a phase is: the more trains, the darker."""
    return round(0.05 + 0.20 * shade, 3)


def panel_svg(panel: Panel, drawing: Drawing, width: int, css: str) -> str:
    """One panel, with its axes."""
    x, height = _Steps(drawing.end, width), _HEIGHT
    inner = height - _TOP - _BOTTOM

    def y(value: float) -> float:
        if panel.log:
            part = (math.log(value) - math.log(panel.low)) / (math.log(panel.high) - math.log(panel.low))
        else:
            part = (value - panel.low) / (panel.high - panel.low)
        return _TOP + inner * (1 - part)

    parts = [
        f'<svg class="{css}" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(panel.title)} over steps">'
    ]
    parts += [_band(band, x, _TOP, inner) for band in drawing.bands]
    for tick in (log_ticks if panel.log else linear_ticks)(panel.low, panel.high):
        at = y(tick)
        parts.append(f'<path class="grid" d="M{LEFT} {at:.1f}H{width - RIGHT}"/>')
        parts.append(
            f'<text class="tick" x="{LEFT - 7}" y="{at + 4:.1f}" text-anchor="end">'
            f"{escape(shown_value(tick, panel.unit))}</text>"
        )
    parts += _x_axis(drawing.end, x, width, height)
    parts += [_vertical(mark, x, _TOP, inner) for mark in drawing.marks if mark.kind != "checkpoint"]
    for line in panel.lines:
        parts += _line(line, x, y)
    parts.append(f'<path class="cross" d="M0 {_TOP}V{_TOP + inner}"/></svg>')
    return "".join(parts)


def timeline_svg(drawing: Drawing, width: int, css: str) -> str:
    """The phases by name, with checkpoints, restarts and the failure."""
    x = _Steps(drawing.end, width)
    height = _STRIP + 44
    parts = [f'<svg class="{css}" viewBox="0 0 {width} {height}" role="img" aria-label="Phases over steps">']
    for band in drawing.bands:
        parts.append(_band(band, x, 2, _STRIP))
        room = x(band.end) - x(band.start)
        name = band.name if len(band.name) * _LETTER < room - 8 else ""
        if name:
            middle = (x(band.start) + x(band.end)) / 2
            parts.append(f'<text class="phase" x="{middle:.1f}" y="19" text-anchor="middle">{escape(name)}</text>')
    parts.append(f'<path class="axis" d="M{LEFT} {_STRIP + 12}H{width - RIGHT}"/>')
    parts += [_sign(mark, x) for mark in drawing.marks]
    parts += _x_axis(drawing.end, x, width, height)
    parts.append(f'<path class="cross" d="M0 2V{height - 22}"/></svg>')
    return "".join(parts)


class _Steps:
    """The x axis: from a step to its place."""

    def __init__(self, end: int, width: int) -> None:
        self._end, self._inner = max(end, 1), width - LEFT - RIGHT

    def __call__(self, step: float) -> float:
        return LEFT + self._inner * step / self._end


def _x_axis(end: int, x: _Steps, width: int, height: int) -> Iterator[str]:
    most = 6 if width > 500 else 4 if end < 10_000 else 3  # so that their labels have room
    for tick in step_ticks(end, most):
        label = "step 0" if tick == 0 else f"{tick:,}"
        anchor = "start" if tick == 0 else "end" if x(tick) > width - 30 else "middle"
        yield f'<text class="tick" x="{x(tick):.1f}" y="{height - 8}" text-anchor="{anchor}">{label}</text>'


def _band(band: Band, x: _Steps, top: float, height: float) -> str:
    start, width = x(band.start), x(band.end) - x(band.start)
    return (
        f'<rect class="band" x="{start:.1f}" y="{top}" width="{max(width, 0.5):.1f}" height="{height}" '
        f'fill-opacity="{band_opacity(band.shade)}"><title>{escape(band.label)}</title></rect>'
    )


def _vertical(mark: Mark, x: _Steps, top: float, height: float) -> str:
    return (
        f'<path class="{mark.kind}" d="M{x(mark.step):.1f} {top}V{top + height}">'
        f"<title>{escape(mark.label)}</title></path>"
    )


def _sign(mark: Mark, x: _Steps) -> str:
    at, middle = x(mark.step), _STRIP + 12
    title = f"<title>{escape(mark.label)}</title>"
    match mark.kind:
        case "checkpoint":
            gone = " gone" if mark.label.endswith("deleted since") else ""
            return f'<circle class="saved{gone}" cx="{at:.1f}" cy="{middle}" r="3.2">{title}</circle>'
        case "restart":
            flag = f"M{at:.1f} {middle + 8}V{middle - 9}l9 4.5l-9 4.5"
            return f'<path class="restart sign" d="{flag}">{title}</path>'
        case "failure":
            cross = f"M{at - 5:.1f} {middle - 5}l10 10m0 -10l-10 10"
            return f'<path class="failure sign" d="{cross}">{title}</path>'
        case _:
            return f'<path class="transition" d="M{at:.1f} 2V{_STRIP + 18}">{title}</path>'


def _line(line: Line, x: _Steps, y: Callable[[float], float]) -> Iterator[str]:
    pieces: list[str] = []
    pen_down = False
    points = list(zip(line.curve.steps, line.curve.values, strict=True))
    for step, value in points:
        if math.isfinite(value):
            pieces.append(f"{'L' if pen_down else 'M'}{x(step):.1f} {y(value):.1f}")
            if not pen_down:
                pieces.append("h0")  # a point that stands alone shows as a dot
        pen_down = math.isfinite(value)
    css = f"line s{line.colour % 6}" + " faint" * line.faint
    yield f'<path class="{css}" d="{"".join(pieces)}"/>'
    if line.dots and len(points) <= 60:
        for step, value in points:
            if math.isfinite(value):
                yield f'<circle class="dot s{line.colour % 6}" cx="{x(step):.1f}" cy="{y(value):.1f}" r="2.6"/>'
