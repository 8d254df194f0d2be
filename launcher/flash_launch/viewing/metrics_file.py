"""Reads metrics.jsonl while it grows: epochs and the newest steps, in one cheap pass that goes on where it was."""

import json
import os
import re
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from flash_launch.viewing.json_fields import integer, number, numbers, text

__all__ = ["EpochRow", "MetricsFile", "Progress", "StepRow", "read_steps"]

_STEP = b'"kind": "step"'
_EPOCH = b'"kind": "epoch"'
_MEMORY = re.compile(rb'"memory_bytes": (\d+)')
_NEWEST = 32
_OWN = ("step", "epoch", "phase", "kind")


@dataclass(frozen=True)
class StepRow:
    """One logged optimizer step, as rank 0 saw it."""

    step: int
    """Optimizer steps done."""
    epoch: int
    """The epoch, from 0."""
    phase: str
    """Name of the phase."""
    loss: float | None
    """Loss of the step's last batch."""
    rates: tuple[float, ...]
    """Learning rate of each param group."""
    seconds: float | None
    """How long the step took."""
    examples_per_s: float | None
    """Samples per second over all ranks."""
    memory: int | None
    """Bytes at the peak since the row before; None in rows of older versions."""


@dataclass(frozen=True)
class EpochRow:
    """One epoch that ended."""

    step: int
    """Optimizer steps done at its end."""
    epoch: int
    """The epoch, from 0."""
    phase: str
    """Name of the phase."""
    metrics: Mapping[str, float]
    """All metrics of the epoch."""


@dataclass(frozen=True)
class Progress:
    """How far a run is."""

    newest: tuple[StepRow, ...] = ()
    """The newest logged steps, in order."""
    epochs: tuple[EpochRow, ...] = ()
    """All epochs that ended."""
    peak_memory: int | None = None
    """Most bytes of any row."""
    time: float | None = None
    """When the last row was written."""

    @property
    def step(self) -> int | None:
        """Optimizer steps done; None before the first that is logged."""
        return max((row.step for row in self._last), default=None)

    @property
    def epoch(self) -> int | None:
        """The epoch it is in, or has just ended."""
        return max((row.epoch for row in self._last), default=None)

    @property
    def phase(self) -> str | None:
        """The phase it is in."""
        return max(((row.step, row.phase) for row in self._last), default=(0, None))[1]

    @property
    def _last(self) -> tuple[StepRow | EpochRow, ...]:
        return (*self.newest[-1:], *self.epochs[-1:])

    @property
    def steps_per_epoch(self) -> int | None:
        """Optimizer steps of the last epoch that ended; None where that cannot be known yet."""
        if len(self.epochs) > 1 and self.epochs[-1].epoch == self.epochs[-2].epoch + 1:
            return self.epochs[-1].step - self.epochs[-2].step
        return self.epochs[0].step if self.epochs and self.epochs[0].epoch == 0 else None


class MetricsFile:
    """Reads a file that others append to; what was read before is not read again."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._inode = 0
        self._position = 0
        self._steps: deque[bytes] = deque(maxlen=_NEWEST)
        self._epochs: list[EpochRow] = []
        self._peak: int | None = None
        self._time: float | None = None

    def progress(self) -> Progress:
        """What the file says by now; nothing where there is none."""
        try:
            with self._path.open("rb") as file:
                self._read(file)
        except OSError:
            self._forget()
            return Progress()
        newest = tuple(row for line in self._steps if (row := _step(_object(line))) is not None)
        return Progress(newest, tuple(self._epochs), self._peak, self._time)

    def _read(self, file: BinaryIO) -> None:
        state = os.fstat(file.fileno())
        if state.st_ino != self._inode or state.st_size < self._position:  # a resume wrote it anew
            self._forget()
        self._inode, self._time = state.st_ino, state.st_mtime
        file.seek(self._position)
        for line in file:
            if not line.endswith(b"\n"):  # being written just now
                break
            self._position += len(line)
            if _STEP in line:
                self._steps.append(line)
                if (memory := _MEMORY.search(line)) is not None:
                    self._peak = max(self._peak or 0, int(memory[1]))
            elif _EPOCH in line and (row := _epoch(_object(line))) is not None:
                self._epochs.append(row)

    def _forget(self) -> None:
        self._position, self._peak, self._time = 0, None, None
        self._steps.clear()
        self._epochs.clear()


def read_steps(path: Path) -> Iterator[StepRow]:
    """All logged steps, in order; lines that a crash cut short are left out."""
    try:
        with path.open("rb") as file:
            for line in file:
                if _STEP in line and (row := _step(_object(line))) is not None:
                    yield row
    except OSError:
        return


def _object(line: bytes) -> Mapping[str, object]:
    try:
        value = json.loads(line)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _step(row: Mapping[str, object]) -> StepRow | None:
    step, epoch = integer(row, "step"), integer(row, "epoch")
    if step is None or epoch is None:
        return None
    return StepRow(
        step,
        epoch,
        text(row, "phase") or "",
        number(row, "loss"),
        numbers(row, "lr"),
        number(row, "step_seconds"),
        number(row, "examples_per_s"),
        integer(row, "memory_bytes"),
    )


def _epoch(row: Mapping[str, object]) -> EpochRow | None:
    step, epoch = integer(row, "step"), integer(row, "epoch")
    if step is None or epoch is None:
        return None
    metrics = {name: value for name in row if name not in _OWN and (value := number(row, name)) is not None}
    return EpochRow(step, epoch, text(row, "phase") or "", metrics)
