"""Writes what happens to the run folder: metrics, transitions, and per phase the time, memory and traffic of a step."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from statistics import median

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import STEP_OUTPUT
from torch.optim import Optimizer
from tqdm.auto import tqdm

from flash_launch.memory import peak_bytes, reset_peak
from flash_launch.rank_guard import note_failure
from flash_launch.run_folder import RunFolder, append_jsonl
from flash_launch.traffic import TrafficCounter
from flash_strategies.lightning import FinetuningCallback, private
from flash_strategies.reporting import transition_line
from flash_strategies.transition import TransitionReport

# The first step of a phase is proved and makes the moments, so the traffic of a later one is counted.
_COUNTED_STEP = 2
_TIMES_KEPT = 1000


@dataclass
class PhaseRecord:
    """What is measured of one phase on this rank."""

    name: str
    """The phase."""
    first_epoch: int
    """Epoch in which it began."""
    trainable: int
    """Trainable elements."""
    frozen: int
    """Frozen elements."""
    steps: int = 0
    """Optimizer steps."""
    step_times: list[float] = field(default_factory=list)
    """Seconds of each optimizer step, but for the one whose traffic is counted."""
    peak_bytes: int = 0
    """Most memory in use, see memory.py."""
    bytes_sent_per_step: int | None = None
    """Bytes handed to collectives in one optimizer step; None: the phase was too short to count."""
    state_bytes: dict[str, int] = field(default_factory=dict)
    """Masters, moments and gradients held after the phase's first steps."""

    def summary(self) -> dict[str, object]:
        """As summary.json has it; `step_seconds` is the median."""
        times = self.step_times[1:] or self.step_times
        return {
            "name": self.name,
            "first_epoch": self.first_epoch,
            "trainable": self.trainable,
            "frozen": self.frozen,
            "steps": self.steps,
            "step_seconds": round(median(times), 6) if times else None,
            "peak_bytes": self.peak_bytes,
            "bytes_sent_per_step": self.bytes_sent_per_step,
            "state_bytes": self.state_bytes,
        }


class Recorder(pl.Callback):
    """Records every rank's measurements; rank 0 writes them. It stands behind the finetuning callback."""

    def __init__(self, folder: RunFolder, finetuning: FinetuningCallback, *, batch_size: int) -> None:
        """Listen to the transitions.

        Args:
            folder: the run folder.
            finetuning: the callback that makes the transitions.
            batch_size: samples per rank and micro batch.
        """
        self.phases: list[PhaseRecord] = []
        self.metrics: dict[str, float] = {}
        self._folder, self._finetuning, self._batch_size = folder, finetuning, batch_size
        self._layers: dict[str, int] = {}
        self._report: TransitionReport | None = None
        self._counter: TrafficCounter | None = None
        self._steps_seen = 0
        self._steps_in_phase = 0
        self._began = 0.0
        self._batches = self._samples = 0
        self._rates: list[float] = []
        finetuning.listeners.append(self._on_transition)

    def state_dict(self) -> dict[str, object]:
        """What was measured so far, for a checkpoint."""
        return {"phases": [asdict(phase) for phase in self.phases], "metrics": self.metrics}

    def load_state_dict(self, state_dict: dict[str, object]) -> None:
        """What `state_dict` gave, on another attempt."""
        phases, metrics = state_dict["phases"], state_dict["metrics"]
        assert isinstance(phases, list)
        assert isinstance(metrics, dict)
        self.phases = [PhaseRecord(**phase) for phase in phases]
        self.metrics = metrics
        self._steps_in_phase = self.phases[-1].steps if self.phases else 0

    def phase_layers(self, layers: dict[str, int]) -> None:
        """Numbers of trainable layers by phase, for the line that is printed."""
        self._layers = layers

    # ---- transitions

    def _on_transition(self, trainer: pl.Trainer, report: TransitionReport) -> None:
        self._end_phase()
        task = trainer.lightning_module
        total = sum(_size(self._finetuning, name) for name, _ in task.named_parameters())
        self.phases.append(
            PhaseRecord(report.phase, trainer.current_epoch, report.trainable_after, total - report.trainable_after)
        )
        self._report, self._steps_in_phase = report, 0
        reset_peak()
        if trainer.is_global_zero:
            self._event(
                "transition" if report.number else "start",
                trainer,
                phase=report.phase,
                seconds=round(report.seconds, 6),
                trainable_before=report.trainable_before,
                trainable_after=report.trainable_after,
                unfrozen=list(report.unfrozen) if report.number else [],
                refrozen=list(report.refrozen),
                bytes_before=asdict(report.bytes_before),
                bytes_after=asdict(report.bytes_after),
                groups=self._groups(),
                plan=report.fingerprint,
            )

    def _groups(self) -> list[dict[str, object]]:
        """The param groups: how many parameters and elements each has, and its options."""
        engine = self._finetuning.transitions.engine
        return [
            {
                "parameters": len(cohort.names),
                "elements": sum(_size(self._finetuning, name) for name in cohort.names),
                **{name: value for name, value in group.items() if isinstance(value, (bool, int, float, str))},
            }
            for cohort, group in zip(engine.cohorts, engine.optimizer.param_groups, strict=False)
        ]

    def _tell(self, trainer: pl.Trainer, report: TransitionReport) -> None:
        """One line per transition, when its first step is done and proved."""
        held = self._finetuning.transitions.engine.state_bytes()
        self.phases[-1].state_bytes = asdict(held)
        if not trainer.is_global_zero:
            return
        record, layers = self.phases[-1], self._layers.get(report.phase)
        total = record.trainable + record.frozen
        line = transition_line(report, epoch=trainer.current_epoch, total=total, layers=layers, held=held)
        tqdm.write(line)  # above the bar, if there is one

    # ---- Lightning's hooks

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Steps are timed from here where a fit goes on in the middle of an epoch."""
        private.after_each_epoch(trainer, lambda: self._record_epoch(trainer))
        self.on_train_epoch_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Steps are timed from here."""
        self._steps_seen = trainer.global_step
        self._began, self._batches, self._samples = time.perf_counter(), 0, 0

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: object, batch_idx: int
    ) -> None:
        """Count the traffic of one step of each phase."""
        if self._steps_in_phase == _COUNTED_STEP and self._counter is None and self._batches == 0:
            self._counter = TrafficCounter()
            self._counter.__enter__()  # type: ignore[no-untyped-call]

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Note the learning rates of this step: after it, the schedule has set those of the next."""
        if trainer.is_global_zero and is_logged(trainer, trainer.global_step + 1):
            groups = self._finetuning.transitions.engine.optimizer.param_groups
            self._rates = [float(group["lr"]) for group in groups]

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: STEP_OUTPUT, batch: object, batch_idx: int
    ) -> None:
        """Record an optimizer step."""
        self._batches += 1
        self._samples += _length(batch) or self._batch_size
        if trainer.global_step == self._steps_seen or not self.phases:
            return
        self._steps_seen = trainer.global_step
        record = self.phases[-1]
        counted = self._stop_counting()
        if counted is not None:
            record.bytes_sent_per_step = counted
        now = time.perf_counter()
        seconds, self._began = now - self._began, now
        examples = self._samples * trainer.world_size  # as many on each, but for the last of an epoch
        self._batches = self._samples = 0
        self._steps_in_phase += 1
        record.steps += 1
        if counted is None:
            record.step_times = [*record.step_times[-_TIMES_KEPT:], seconds]
        if self._steps_in_phase == 1 and self._report is not None:
            self._tell(trainer, self._report)
            self._report = None
            self._began = time.perf_counter()
        if trainer.is_global_zero and is_logged(trainer, trainer.global_step):
            loss = outputs["loss"] if isinstance(outputs, dict) and "loss" in outputs else outputs
            values = (
                {"loss": float(loss.detach()) * trainer.accumulate_grad_batches}
                if isinstance(loss, torch.Tensor)
                else {}
            )
            self._end_phase()  # keeps the phase's peak: from here on, the next steps' own is measured
            memory = peak_bytes()
            reset_peak()
            measured = {
                "lr": self._rates,
                "step_seconds": round(seconds, 6),
                "examples_per_s": round(examples / seconds, 2) if seconds > 0 else None,
                "memory_bytes": memory,
            }
            self._metric(trainer, "step", {**values, **measured})

    def _record_epoch(self, trainer: pl.Trainer) -> None:
        self._stop_counting()
        self.metrics = {
            name: float(value)
            for name, value in trainer.callback_metrics.items()
            if torch.as_tensor(value).numel() == 1
        }
        self._end_phase()
        if trainer.is_global_zero:
            self._metric(trainer, "epoch", self.metrics)
            values = "  ".join(f"{name} {value:.4g}" for name, value in self.metrics.items())
            tqdm.write(f"epoch {trainer.current_epoch}: {values}")

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Note the failure before Lightning tears down, so that this rank is not timed after its victims."""
        self._stop_counting()
        self._end_phase()
        if isinstance(exception, (Exception, KeyboardInterrupt)):  # others are no failures
            note_failure(exception)

    def _stop_counting(self) -> int | None:
        if self._counter is None:
            return None
        self._counter.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        counted, self._counter = self._counter.bytes, None
        return counted

    def _end_phase(self) -> None:
        if self.phases:
            self.phases[-1].peak_bytes = max(self.phases[-1].peak_bytes, peak_bytes())

    def _metric(self, trainer: pl.Trainer, kind: str, values: Mapping[str, object]) -> None:
        phase = self.phases[-1].name if self.phases else None
        row = {"step": trainer.global_step, "epoch": trainer.current_epoch, "phase": phase, "kind": kind}
        # a task may log a metric of its own called step
        own = {f"task/{name}" if name in row else name: value for name, value in values.items()}
        append_jsonl(self._folder.metrics_jsonl, {**row, **own})

    def _event(self, kind: str, trainer: pl.Trainer, **values: object) -> None:
        row = {
            "event": kind,
            "time": time.time(),
            "step": trainer.global_step,
            "epoch": trainer.current_epoch,
            **values,
        }
        append_jsonl(self._folder.events_jsonl, row)


def is_logged(trainer: pl.Trainer, step: int) -> bool:
    """Whether the values of an optimizer step, counted from 1, are recorded and shown.

    Short epochs are logged step by step. A value waits for the GPU, so of long ones every tenth step is logged.
    """
    return trainer.num_training_batches <= 100 or step % 10 == 0


def _length(batch: object) -> int | None:
    """Samples in a batch: the length of its first tensor; None: it has none."""
    if isinstance(batch, torch.Tensor):
        return batch.size(0) if batch.ndim else None
    parts = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, (list, tuple)) else ()
    return next((length for part in parts if (length := _length(part)) is not None), None)


def _size(finetuning: FinetuningCallback, name: str) -> int:
    product = 1
    for length in finetuning.transitions.engine.shape(name):
        product *= length
    return product
