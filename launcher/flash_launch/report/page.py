"""The report as one HTML page that needs nothing else: no network, no fonts; light and dark, wide and narrow."""

import json
from html import escape
from importlib.resources import files

from flash_launch.report.contents import Report, Table
from flash_launch.report.drawing import Drawing, Line, Panel, shown_value
from flash_launch.report.svg import LEFT, RIGHT, panel_svg, timeline_svg

__all__ = ["render_page"]

_FULL, _HALF, _NARROW = 1150, 568, 372
# Nothing may be loaded, whatever a name in the run folder holds.
_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
)


def render_page(report: Report) -> str:
    """The page, as text."""
    state = report.state
    head = (
        f"<header><h1>{escape(report.name)}</h1>"
        f'<span class="chip {state.name}">{escape(str(state.name))}</span></header>'
        f'<p class="subtitle">{escape(report.subtitle)}</p>'
    )
    words = f'<p class="words">{escape(state.words)}</p>' if not report.verdict else ""
    command = f'<p class="words">Go on with <code>{escape(state.command)}</code></p>' if state.command else ""
    verdict = f'<div class="verdict" role="alert">{escape(report.verdict)}</div>' if report.verdict else ""
    tiles = "".join(
        f'<div class="tile"><dt>{escape(one.label)}</dt>'
        f"<dd>{escape(one.value)}<small>{escape(one.note)}</small></dd></div>"
        for one in report.tiles
    )
    charts = _charts(report.drawing) if report.drawing is not None else _nothing()
    digests = f'<p class="words">{escape(report.digests)}</p>' if report.digests else ""
    config = _table(report.config)
    sections = [
        head,
        words,
        verdict,
        command,
        f'<dl class="tiles">{tiles}</dl>' if tiles else "",
        charts,
        f"<h2>{escape(report.phases.title)}</h2>{_table(report.phases)}{digests}" if report.phases.rows else "",
        f"<h2>{escape(report.attempts.title)}</h2>{_table(report.attempts)}" if report.attempts.rows else "",
        f"<details><summary>{escape(report.config.title)}</summary>{config}</details>" if report.config.rows else "",
        f"<footer>{escape(report.made)}, by flash-launch report</footer>",
    ]
    script = ""
    if report.drawing is not None:
        data = json.dumps(_data(report.drawing), separators=(",", ":")).replace("<", "\\u003c")
        script = (
            f'<div id="tip"></div><script type="application/json" id="data">{data}</script>'
            f"<script>{_resource('page.js')}</script>"
        )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(report.name)}: {escape(str(state.name))}</title>"
        f"<style>{_resource('page.css')}</style></head>\n<body><main>" + "\n".join(filter(None, sections)) + "</main>"
        f"{script}</body></html>\n"
    )


def _resource(name: str) -> str:
    return files("flash_launch.report").joinpath(name).read_text(encoding="utf-8")


def _charts(drawing: Drawing) -> str:
    kinds = {mark.kind for mark in drawing.marks}
    gone = any(mark.label.endswith("deleted since") for mark in drawing.marks)
    signs = [
        ("c-phase", "", "phases: the stronger the shade, the more trains", bool(drawing.bands)),
        ("c-saved", "round", "checkpoint", "checkpoint" in kinds),
        ("c-saved", "hollow", "deleted since", gone),
        ("c-restart", "", "restart", "restart" in kinds),
        ("c-failure", "", "failure", "failure" in kinds),
    ]
    legend = "".join(f'<li><i class="{css} {shape}"></i>{text}</li>' for css, shape, text, there in signs if there)
    strip = (
        f'<section class="timeline" data-panel="-1"><div class="top"><h3>Phases</h3>'
        f'<ul class="legend">{legend}</ul></div>'
        f"{timeline_svg(drawing, _FULL, 'wide')}{timeline_svg(drawing, _NARROW, 'narrow')}</section>"
    )
    odd = len(drawing.panels) % 2
    panels = "".join(
        _panel(panel, drawing, number, full=bool(odd) and number == 0) for number, panel in enumerate(drawing.panels)
    )
    return f'{strip}<div class="panels">{panels}</div>'


def _panel(panel: Panel, drawing: Drawing, number: int, *, full: bool) -> str:
    legend = "".join(
        f'<li><i class="s{line.colour % 6}{" faint" * line.faint}"></i>{escape(line.name)}</li>' for line in panel.lines
    )
    note = f'<span class="note">{escape(panel.note)}</span>' if panel.note else ""
    return (
        f'<section class="panel{" full" * full}" data-panel="{number}"><div class="top"><h3>{escape(panel.title)}</h3>'
        f'{f"""<ul class="legend">{legend}</ul>""" if panel.has_legend else ""}{note}</div>'
        f"{panel_svg(panel, drawing, _FULL if full else _HALF, 'wide')}{panel_svg(panel, drawing, _NARROW, 'narrow')}"
        "</section>"
    )


def _nothing() -> str:
    return '<p class="empty">No data yet: the run has not logged an optimizer step.</p>'


def _table(table: Table) -> str:
    def cells(tag: str, row: tuple[str, ...]) -> str:
        return "".join(
            f"<{tag}{' class=n' if column in table.numbers else ''}>{escape(text)}</{tag}>"
            for column, text in enumerate(row)
        )

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in table.rows)
    head = f"<thead><tr>{cells('th', table.header)}</tr></thead>"
    return f'<div class="scroll"><table>{head}<tbody>{body}</tbody></table></div>'


def _data(drawing: Drawing) -> dict[str, object]:
    """What the script shows where somebody points."""

    def line(one: Line, unit: str) -> dict[str, object]:
        curve = one.curve
        shown = [shown_value(value, unit) for value in curve.values]
        return {"name": one.name, "colour": one.colour % 6, "steps": list(curve.steps), "shown": shown}

    return {
        "left": LEFT,
        "right": RIGHT,
        "end": max(drawing.end, 1),
        "panels": [{"lines": [line(one, panel.unit) for one in panel.lines]} for panel in drawing.panels],
        "bands": [{"name": one.name, "start": one.start, "end": one.end, "label": one.label} for one in drawing.bands],
        "marks": [{"step": one.step, "label": one.label} for one in drawing.marks],
    }
