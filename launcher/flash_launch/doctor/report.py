"""How findings are shown: in colours in a terminal, as plain text elsewhere, or as JSON."""

import json
import textwrap
from collections.abc import Sequence
from typing import TextIO

from flash_launch.doctor.findings import Finding, Status, sort_findings

__all__ = ["exit_code", "render_json", "render_text", "show", "summary_line"]

_COLOURS = {Status.OK: "green", Status.WARN: "yellow", Status.FAIL: "bold red"}
_INDENT = 8


def exit_code(findings: Sequence[Finding]) -> int:
    """0 if nothing failed, else 1."""
    return int(any(finding.status is Status.FAIL for finding in findings))


def summary_line(findings: Sequence[Finding], seconds: float) -> str:
    """The last line: how many are OK, WARN and FAIL."""
    counts = ", ".join(f"{sum(one.status is status for one in findings)} {status}" for status in Status)
    verdict = "a run would fail" if exit_code(findings) else "nothing stands in the way of a run"
    return f"{len(findings)} checks in {seconds:.1f} s: {counts}: {verdict}"


def render_text(findings: Sequence[Finding], seconds: float, width: int | None = None) -> str:
    """The findings as plain text; `width`: columns, None: lines as long as they are."""
    lines = []
    group = ""
    for finding in sort_findings(findings):
        if finding.group != group:
            group = finding.group
            lines.append(group)
        lines += _wrapped(f"  {finding.status:<4}  ", _text(finding), width)
        if finding.fix:
            lines += _wrapped(" " * _INDENT, f"fix: {finding.fix}", width)
    return "\n".join([*lines, summary_line(findings, seconds)]) + "\n"


def render_json(findings: Sequence[Finding], seconds: float) -> str:
    """The findings as one JSON object."""
    counts = {str(status): sum(one.status is status for one in findings) for status in Status}
    ordered = [finding.to_json() for finding in sort_findings(findings)]
    values = {"findings": ordered, "counts": counts, "seconds": round(seconds, 2), "exit_code": exit_code(findings)}
    return json.dumps(values, indent=2) + "\n"


def show(findings: Sequence[Finding], seconds: float, out: TextIO) -> None:
    """Write the findings: in colours if `out` is a terminal."""
    if not out.isatty():
        out.write(render_text(findings, seconds))
        out.flush()
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(file=out, highlight=False)
    plain = render_text(findings, seconds, console.width).rstrip("\n").split("\n")
    status = Status.OK
    for line in plain:
        text = Text(line)
        word = line[2:6].strip()
        if not line.startswith(" ") and line != plain[-1]:
            text.stylize("bold")
        elif line.startswith("  ") and word in _COLOURS:
            status = Status(word)
            text.stylize(_COLOURS[status], 2, 6)
        elif line.startswith(" " * _INDENT + "fix: "):
            text.stylize("cyan", _INDENT, _INDENT + 4)
        elif line == plain[-1]:
            text.stylize("bold red" if exit_code(findings) else "bold green")
        console.print(text, soft_wrap=True)


def _text(finding: Finding) -> str:
    return f"[{finding.node}] {finding.text}" if finding.node else finding.text


def _wrapped(start: str, text: str, width: int | None) -> list[str]:
    if width is None:
        return [start + text]
    # Words are never cut: commands and paths can be copied.
    return textwrap.wrap(
        text,
        max(40, width),
        initial_indent=start,
        subsequent_indent=" " * _INDENT,
        break_long_words=False,
        break_on_hyphens=False,
    )
