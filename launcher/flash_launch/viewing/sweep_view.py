"""A sweep as a table: a row per run with its parameters, state, epoch and metrics; as text, Markdown and JSON."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path

from flash_launch.metric_goal import higher_is_better
from flash_launch.run_folder import RunFolder
from flash_launch.viewing.json_fields import integer, items, mapping, read_mapping, text
from flash_launch.viewing.run_state import JobLine, State, state_of
from flash_launch.viewing.run_view import RunView, read_run
from flash_launch.viewing.wording import value_in_words

__all__ = ["SweepRow", "SweepTable", "is_sweep", "sweep_table"]


@dataclass(frozen=True)
class SweepRow:
    """One run of a sweep."""

    index: int
    """Its task."""
    folder: str
    """Its folder, below the sweep's."""
    values: Mapping[str, object]
    """Its parameters."""
    state: State
    """What it is at."""
    epochs: str
    """Epochs done, of how many."""
    last: Mapping[str, float]
    """Metrics of its last epoch."""
    best: Mapping[str, float]
    """The best of each metric over its epochs."""


@dataclass(frozen=True)
class SweepTable:
    """A sweep."""

    name: str
    """Its name."""
    parameters: tuple[str, ...]
    """What differs between its runs."""
    metrics: tuple[str, ...]
    """Metrics that are shown: those of validation, if there are any."""
    rows: tuple[SweepRow, ...]
    """The runs, by task."""

    def cells(self) -> list[list[str]]:
        """The header and the rows, as texts."""
        shown = [column for name in self.metrics for column in (f"best {name}", f"last {name}")]
        header = ["task", *self.parameters, "state", "epochs", *shown, "folder"]
        rows = [
            [
                str(row.index),
                *(_shown(row.values.get(name)) for name in self.parameters),
                str(row.state),
                row.epochs,
                *(_metric(values.get(name)) for name in self.metrics for values in (row.best, row.last)),
                row.folder,
            ]
            for row in self.rows
        ]
        return [header, *rows]

    def as_text(self) -> str:
        """Columns, for a terminal or a log."""
        cells = self.cells()
        widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
        lines = [
            "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in cells
        ]
        return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:], *self.best_lines()])

    def as_markdown(self) -> str:
        """A table in Markdown."""
        header, *rows = ([cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in self.cells())
        lines = [header, ["---"] * len(header), *rows]
        return "\n".join("| " + " | ".join(row) + " |" for row in lines)

    def best_lines(self) -> list[str]:
        """Which run is the best by each metric."""
        lines: list[str] = []
        for name in self.metrics:
            found = [(row.best[name], row) for row in self.rows if name in row.best]
            if len(found) > 1:
                value, best = max(found, key=itemgetter(0)) if higher_is_better(name) else min(found, key=itemgetter(0))
                values = ", ".join(f"{key} {_shown(best.values.get(key))}" for key in self.parameters)
                lines.append(f"best {name}: {_metric(value)}, task {best.index}{f' ({values})' * bool(values)}")
        return lines

    def as_json(self) -> Mapping[str, object]:
        """For scripts."""
        return {
            "name": self.name,
            "parameters": list(self.parameters),
            "runs": [
                {
                    "index": row.index,
                    "folder": row.folder,
                    "values": dict(row.values),
                    "state": str(row.state),
                    "epochs": row.epochs,
                    "last": dict(row.last),
                    "best": dict(row.best),
                }
                for row in self.rows
            ],
        }


def is_sweep(folder: Path) -> bool:
    """Whether a folder is a sweep's, or holds run folders."""
    return (folder / "sweep.json").exists() or any(folder.glob("*/config.yaml"))


def sweep_table(
    folder: Path, now: float, jobs: Callable[[RunFolder], Sequence[JobLine] | None] = lambda _: None
) -> SweepTable:
    """The table of a sweep, by its sweep.json, or of the run folders in a folder.

    Args:
        folder: the sweep's folder.
        now: the time.
        jobs: what Slurm says of the jobs of a run.
    """
    told = read_mapping(folder / "sweep.json")
    names = told.get("parameters")
    parameters = tuple(str(name) for name in names) if isinstance(names, list) else ()
    tasks = [
        (integer(task, "index") or 0, text(task, "folder") or "", mapping(task, "values"))
        for task in items(told, "tasks")
    ]
    if not tasks:
        runs = sorted(path.parent for path in folder.glob("*/config.yaml"))
        tasks = [(number, path.name, {}) for number, path in enumerate(runs)]
    views = [(task, read_run(RunFolder((folder / task[1]).absolute()))) for task in sorted(tasks, key=lambda t: t[0])]
    if not told:
        parameters = _differing([view for _, view in views])
        views = [((i, name, {key: view.config.get(key) for key in parameters}), view) for (i, name, _), view in views]
    rows = tuple(
        _row(index, name, values, view, state_of(view, now, jobs(RunFolder(view.path))).name)
        for (index, name, values), view in views
    )
    metrics = list(dict.fromkeys(name for row in rows for name in row.last))
    validation = [name for name in metrics if name.startswith(("val", "test"))]
    return SweepTable(text(told, "name") or folder.name, parameters, tuple(validation or metrics), rows)


def _row(index: int, name: str, values: Mapping[str, object], view: RunView, state: State) -> SweepRow:
    epochs = view.progress.epochs
    done = epochs[-1].epoch + 1 if epochs else 0
    best: dict[str, float] = {}
    for epoch in epochs:
        for metric, value in epoch.metrics.items():
            higher = higher_is_better(metric)
            better = max if higher else min
            if value == value and higher is not None:  # NaN is never the best
                best[metric] = better(best.get(metric, value), value)
    of = f" of {view.max_epochs}" if view.max_epochs is not None else ""
    return SweepRow(index, name, values, state, f"{done}{of}", epochs[-1].metrics if epochs else {}, best)


def _differing(views: Sequence[RunView]) -> tuple[str, ...]:
    keys = dict.fromkeys(key for view in views for key in view.config)
    return tuple(key for key in keys if len({repr(view.config.get(key)) for view in views}) > 1)


def _shown(value: object) -> str:
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _metric(value: float | None) -> str:
    return "" if value is None else value_in_words(value)
