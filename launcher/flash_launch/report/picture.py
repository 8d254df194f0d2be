"""The report's drawing as a PNG picture, by matplotlib: for documents, chats and slides."""

from __future__ import annotations

import io
import math
import warnings
from typing import TYPE_CHECKING

from flash_launch.report.contents import Report
from flash_launch.report.drawing import Drawing, Panel, linear_ticks, log_ticks, shown_value, step_ticks
from flash_launch.report.svg import band_opacity
from flash_launch.viewing.run_state import State

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["render_picture"]

_COLOURS = ("#2a6fd6", "#e0662b", "#1a9a6c", "#9a4fd0", "#b8860b", "#0f8fa3")
_INK, _MUTED, _RULE, _PHASE, _WARN, _BAD, _GOOD = (
    *("#1b1c1e", "#66676b", "#e4e4df", "#4468c8", "#a16207", "#c42b2b", "#15803d"),
)
_STATE = {State.FINISHED: _GOOD, State.RUNNING: _GOOD, State.FAILED: _BAD, State.DIED: _BAD}
_WIDTH, _ROW, _DPI = 12.0, 2.35, 130
_TITLE_LENGTH, _VERDICT_LENGTH = 70, 130


def render_picture(report: Report) -> bytes:
    """The picture, as the bytes of a PNG file."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"text.parse_math": False, "font.size": 9, "font.family": "DejaVu Sans"}):
        drawing = report.drawing
        rows = math.ceil(len(drawing.panels) / 2) if drawing is not None else 1
        height = 2.0 + _ROW * rows
        figure = Figure(figsize=(_WIDTH, height), dpi=_DPI, facecolor="white")
        FigureCanvasAgg(figure)
        _head(figure, report, height)
        if drawing is None:
            figure.text(0.5, 0.4, "No data yet: the run has not logged an optimizer step.", ha="center", color=_MUTED)
        else:
            grid = figure.add_gridspec(
                rows + 1,
                2,
                height_ratios=[0.17, *[1.0] * rows],
                left=0.062,
                right=0.985,
                top=1 - 1.12 / height,
                bottom=0.36 / height,
                hspace=0.42,
                wspace=0.13,
            )
            _timeline(figure.add_subplot(grid[0, :]), drawing)
            odd = len(drawing.panels) % 2
            for number, panel in enumerate(drawing.panels):
                place = number + odd if number else 0
                spot = grid[1, :] if odd and number == 0 else grid[1 + place // 2, place % 2]
                _panel(figure.add_subplot(spot), panel, drawing)
        sink = io.BytesIO()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph")  # of a name in a script that the font does not have
            figure.savefig(sink, format="png")
        return sink.getvalue()


def _head(figure: Figure, report: Report, height: float) -> None:
    colour = _STATE.get(report.state.name, _WARN)
    title = figure.text(
        0.022, 1 - 0.36 / height, _cut(report.name, _TITLE_LENGTH), fontsize=14, fontweight="bold", color=_INK
    )
    box = title.get_window_extent()
    x = box.x1 / (figure.get_figwidth() * figure.dpi) + 0.014
    figure.text(x, 1 - 0.36 / height, str(report.state.name), fontsize=10.5, fontweight="bold", color=colour)
    figure.text(0.022, 1 - 0.60 / height, _cut(report.subtitle, 150), fontsize=9, color=_MUTED)
    if report.verdict:
        line = _cut(report.verdict.partition("\n")[0], _VERDICT_LENGTH)
        figure.text(0.022, 1 - 0.83 / height, line, fontsize=9, color=_BAD)
    else:
        tiles = "     ".join(f"{one.label} {one.value}" for one in report.tiles)
        figure.text(0.022, 1 - 0.83 / height, _cut(tiles, 160), fontsize=9, color=_INK)


def _timeline(axes: Axes, drawing: Drawing) -> None:
    _bands(axes, drawing)
    axes.set_xlim(0, drawing.end)
    axes.set_ylim(0, 1)
    axes.axis("off")
    for band in drawing.bands:
        room = (band.end - band.start) / drawing.end * _WIDTH * 0.92
        if len(band.name) * 0.085 < room:
            axes.text((band.start + band.end) / 2, 0.5, band.name, ha="center", va="center", fontsize=9, color=_INK)
    for mark in drawing.marks:
        if mark.kind == "checkpoint":
            fill = "white" if mark.label.endswith("deleted since") else _COLOURS[2]
            _sign(axes, mark.step, "o", 3.6, _COLOURS[2], fill)
        elif mark.kind == "restart":
            _sign(axes, mark.step, ">", 6, _WARN, _WARN)
        elif mark.kind == "failure":
            _sign(axes, mark.step, "X", 7, _BAD, _BAD)

    _legend(axes, drawing)


def _legend(axes: Axes, drawing: Drawing) -> None:
    from matplotlib.lines import Line2D

    kinds = {mark.kind for mark in drawing.marks}
    gone = any(mark.label.endswith("deleted since") for mark in drawing.marks)
    signs = [
        ("checkpoint", "o", _COLOURS[2], _COLOURS[2], "checkpoint" in kinds),
        ("deleted since", "o", _COLOURS[2], "white", gone),
        ("restart", ">", _WARN, _WARN, "restart" in kinds),
        ("failure", "X", _BAD, _BAD, "failure" in kinds),
    ]
    keys = [
        Line2D([], [], ls="none", marker=marker, ms=5, mec=edge, mfc=fill, mew=0.9, label=label)
        for label, marker, edge, fill, there in signs
        if there
    ]
    if keys:
        legend = axes.legend(
            handles=keys,
            loc="lower right",
            bbox_to_anchor=(1.005, 0.98),
            ncols=len(keys),
            frameon=False,
            fontsize=8,
            borderaxespad=0.1,
            handletextpad=0.1,
            columnspacing=1.0,
        )
        for text in legend.get_texts():
            text.set_color(_MUTED)


def _sign(axes: Axes, step: int, marker: str, size: float, edge: str, fill: str) -> None:
    axes.plot([step], [-0.25], marker=marker, ms=size, mec=edge, mfc=fill, mew=0.9, clip_on=False, ls="none", zorder=5)


def _panel(axes: Axes, panel: Panel, drawing: Drawing) -> None:
    _bands(axes, drawing)
    for mark in drawing.marks:
        if mark.kind == "transition":
            axes.axvline(mark.step, color=_PHASE, lw=0.8, ls=(0, (4, 3)))
        elif mark.kind == "restart":
            axes.axvline(mark.step, color=_WARN, lw=1.0)
        elif mark.kind == "failure":
            axes.axvline(mark.step, color=_BAD, lw=1.3)
    for line in panel.lines:
        points = [value if math.isfinite(value) else math.nan for value in line.curve.values]
        few = line.dots and len(points) <= 60
        axes.plot(
            list(line.curve.steps),
            points,
            color=_COLOURS[line.colour % 6],
            lw=0.8 if line.faint else 1.5,
            alpha=0.38 if line.faint else 1.0,
            marker="o" if few or len(points) == 1 else None,
            ms=3.4,
            mfc="white",
            mew=1.2,
            clip_on=not few,  # a dot at the edge stays whole
            label=line.name if not line.name.startswith("_") else f" {line.name}",
        )
    if panel.log:
        axes.set_yscale("log")
        axes.minorticks_off()
    ticks = (log_ticks if panel.log else linear_ticks)(panel.low, panel.high)
    axes.set_yticks(ticks, [shown_value(tick, panel.unit) for tick in ticks])
    axes.set_ylim(panel.low, panel.high)
    steps = step_ticks(drawing.end, 6)
    axes.set_xticks(list(steps), [f"{step:,}" if step else "step 0" for step in steps])
    for label, step in zip(axes.get_xticklabels(), steps, strict=True):
        if step in (0, steps[-1]) and not 0.03 < step / drawing.end < 0.97:  # stays within the picture
            label.set_horizontalalignment("right" if step else "left")
    axes.set_xlim(0, drawing.end)
    axes.grid(axis="y", color=_RULE, lw=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, colors=_MUTED, labelsize=8)
    for side in axes.spines.values():
        side.set_visible(False)
    axes.set_title(panel.title, loc="left", fontsize=10, fontweight="bold", color=_INK, pad=5)
    if panel.note:
        axes.set_title(panel.note, loc="right", fontsize=8, color=_BAD, pad=5)
    elif panel.has_legend:
        legend = axes.legend(
            loc="lower right",
            bbox_to_anchor=(1.005, 0.985),
            ncols=min(len(panel.lines), 4),
            frameon=False,
            fontsize=8,
            borderaxespad=0.1,
            handlelength=1.2,
            columnspacing=1.2,
        )
        for text in legend.get_texts():
            text.set_color(_MUTED)


def _bands(axes: Axes, drawing: Drawing) -> None:
    for band in drawing.bands:
        axes.axvspan(band.start, band.end, color=_PHASE, alpha=band_opacity(band.shade), lw=0)


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 3] + "..."
