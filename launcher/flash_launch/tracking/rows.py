"""From the lines of metrics.jsonl and events.jsonl to what W&B draws: flat names, numbers and short texts."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

__all__ = ["Follower", "Value", "event_values", "flat", "metric_values"]

Value = int | float | str | bool | None

_LONGEST = 1000
"""Characters of a list of names that are recorded; events.jsonl has all of them."""


class Follower:
    """Reads a file of one JSON object per line while it grows."""

    def __init__(self, path: Path, lines: int) -> None:
        """Begin after some lines, or at the end if there are fewer."""
        self.lines = 0
        """Lines that were read, those that were skipped included."""
        self._path = path
        self._offset = 0
        self._lines(lines)

    def rows(self) -> Iterator[dict[str, object]]:
        """The objects that were added since the last call; a line that is still being written comes the next time."""
        for line in self._lines(None):
            try:
                row: object = json.loads(line)
            except ValueError:  # cut short by a crash
                continue
            if isinstance(row, dict):
                yield row

    def _lines(self, most: int | None) -> list[bytes]:
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                whole = [line for line in file.read().splitlines(keepends=True)[:most] if line.endswith(b"\n")]
        except FileNotFoundError:
            return []
        self._offset += sum(map(len, whole))
        self.lines += len(whole)
        return whole


def metric_values(row: Mapping[str, object]) -> dict[str, Value]:
    """A line of metrics.jsonl: the same names and numbers; learning rates by param group."""
    values: dict[str, Value] = {}
    for name, value in row.items():
        if name == "kind":
            continue
        if name == "lr" and isinstance(value, list):
            values |= {f"lr/group_{number}": _plain(rate) for number, rate in enumerate(value)}
        else:
            values |= flat(name, value)
    return values


def event_values(row: Mapping[str, object]) -> dict[str, Value]:
    """A line of events.jsonl: its values below the event's name, as in transition/trainable_after."""
    kind = str(row.get("event", "event"))
    values: dict[str, Value] = {"event": kind}
    for name, value in row.items():
        if name in ("step", "epoch"):
            values[name] = _plain(value)
        elif name not in ("event", "time"):
            values |= flat(f"{kind}/{name}", value)
    return values


def flat(name: str, value: object) -> dict[str, Value]:
    """A value under flat names: mappings by key, lists of mappings by number, other lists as count and text."""
    if isinstance(value, Mapping):
        found: dict[str, Value] = {}
        for key, inner in value.items():
            found |= flat(f"{name}/{key}", inner)
        return found
    if not isinstance(value, (list, tuple)):
        return {name: _plain(value)}
    counted: dict[str, Value] = {name: len(value)}
    if value and all(isinstance(item, Mapping) for item in value):
        for number, item in enumerate(value):
            counted |= flat(f"{name}/{number}", item)
    elif value:
        text = ", ".join(map(str, value))
        counted[f"{name}/names"] = text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."
    return counted


def _plain(value: object) -> Value:
    return value if value is None or isinstance(value, (int, float, str, bool)) else str(value)
