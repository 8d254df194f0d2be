"""Lightning's CSVLogger, whose file is continued by the next attempt of a run."""

from __future__ import annotations

import csv
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.utilities import rank_zero_only

__all__ = ["RunCSVLogger"]

Row = dict[str, object]


class RunCSVLogger(CSVLogger):
    """As Lightning's, which would begin its file anew with each attempt."""

    _resumed_step = 0

    @rank_zero_only
    def resume_at(self, step: int) -> None:
        """Keep the rows of the first optimizer steps, and drop those that are about to be written again.

        Args:
            step: optimizer steps done; rows are counted from 0.
        """
        self._resumed_step = step
        rows = self._rows()
        with warnings.catch_warnings():  # that it deletes the file
            warnings.simplefilter("ignore")
            _ = self.experiment
        self._write([row for row in rows if _step(row) < step])

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, object], step: int | None = None) -> None:
        """Add a row; one with the same values of the same step, from before a resumed validation, is replaced."""
        if step is not None and step < self._resumed_step:
            names = {f"{self._prefix}{self.LOGGER_JOIN_CHAR}{name}" if self._prefix else name for name in metrics}
            rows = self._rows()
            kept = [row for row in rows if _step(row) != step or row.keys() - {"step"} != names]
            if len(kept) != len(rows):
                self._write(kept)
        super().log_metrics(metrics, step)  # type: ignore[arg-type]

    def _rows(self) -> list[Row]:
        path = Path(self.log_dir) / "metrics.csv"
        if not path.is_file():
            return []
        with path.open(newline="", encoding="utf-8") as file:
            return [{name: value for name, value in row.items() if value} for row in csv.DictReader(file)]

    def _write(self, rows: Sequence[Row]) -> None:
        writer = self.experiment
        Path(writer.metrics_file_path).unlink(missing_ok=True)
        writer.metrics = [*rows, *writer.metrics]
        writer.save()


def _step(row: Row) -> int:
    return int(str(row.get("step", 0)))
