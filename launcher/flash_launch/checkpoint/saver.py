"""Saves checkpoints of a running fit: when they are due, when somebody asks the run to stop, and in the background."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import NoReturn

import pytorch_lightning as pl
import torch
from tqdm.auto import tqdm

from flash_launch import rank_guard
from flash_launch.checkpoint.attempts import Attempt, Fence
from flash_launch.checkpoint.hook_states import may_swap_weights
from flash_launch.checkpoint.lookout import Lookout, Reasons
from flash_launch.checkpoint.manifest import Part, PhaseMark, Position
from flash_launch.checkpoint.rank_state import RankState, take
from flash_launch.checkpoint.schedule import Cadence, Keeping
from flash_launch.checkpoint.snapshot import Told, take_job, trainable_digest
from flash_launch.checkpoint.store import Store
from flash_launch.checkpoint.writer import Outcome, Writer
from flash_launch.checkpoint.writing import WRITE_SECONDS, Job
from flash_launch.early_stop import EarlyStop, find_early_stop
from flash_launch.errors import FencedError
from flash_launch.run_folder import RunFolder, append_jsonl
from flash_strategies.agreement import ControlGroup
from flash_strategies.errors import CheckpointError
from flash_strategies.lightning import FinetuningCallback, ScheduledFinetuning, private

__all__ = ["EpochStart", "RunStopped", "Saver", "SaverOptions"]

_PATIENCE = 10.0
"""Seconds that training waits for a checkpoint that is being written before the next one is skipped."""


class RunStopped(BaseException):
    """The run was asked to stop, and has saved what it needs to go on. No error, and nothing to catch."""

    def __init__(self, checkpoint: str | None, position: Position) -> None:
        super().__init__(f"stopped at {position}")
        self.checkpoint = checkpoint
        self.position = position


@dataclass(frozen=True)
class SaverOptions:
    """What a run asks of its saver."""

    cadence: Cadence
    """When."""
    keeping: Keeping
    """What is kept."""
    background: bool
    """Write while training goes on."""
    setup: str
    """The setup's name."""
    batch_size: int
    """Samples per rank and micro batch."""
    accumulate: int
    """Micro batches per step."""
    timeout: float
    """Seconds to wait for another rank."""


class Saver(pl.Callback):
    """Saves at optimizer-step boundaries. It stands behind all other callbacks; `at_epoch_start` stands before them."""

    def __init__(
        self,
        folder: RunFolder,
        attempt: Attempt,
        finetuning: FinetuningCallback,
        options: SaverOptions,
        *,
        before: Callable[[pl.Trainer], None] = lambda _: None,
    ) -> None:
        """Prepare.

        Args:
            folder: the run folder.
            attempt: this attempt of the run.
            finetuning: makes the transitions.
            options: when and how.
            before: called before each save; raises if what is there now must not be saved.
        """
        self._before = before
        self.metrics: dict[str, float] = {}
        self.history: list[PhaseMark] = []
        self.folder, self._attempt, self._finetuning, self._options = folder, attempt, finetuning, options
        self._store, self._fence = Store(folder.checkpoints), Fence(folder.attempts, attempt.number)
        self._control: ControlGroup | None = None
        self._lookout: Lookout | None = None
        self._parts: dict[str, Part] = {}
        self._pending: Writer | None = None
        self._asked_about: Writer | None = None
        self._written_step = attempt.resumed_step
        self._tried_step, self._tried_at = attempt.resumed_step, time.monotonic()
        self._looked_step = -1
        self._before_validation: RankState | None = None
        self._last_error = ""
        self._best_is_logged = False
        self.stopped_early: EarlyStop | None = None
        self._weights_before: dict[str, int] | None = None

    # ---- Lightning's hooks

    def went_on(self, position: Position, history: tuple[PhaseMark, ...], metrics: Mapping[str, float]) -> None:
        """Another attempt saved at this position, where this one goes on."""
        self.history, self.metrics = list(history), dict(metrics)
        if position.validating:  # the start of the next epoch is at the same step, and further
            self._written_step = self._tried_step = position.step - 1

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Get ready: a group of ranks for what goes on in the background, and what is stored already."""
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, rank_guard.note_stop)
        private.spare_waits_in_steps(trainer)
        control = self._finetuning.transitions.control
        self._control, self._lookout = self._new_group(), Lookout(control, self._fence)
        parts = self._store.parts(self._attempt.run) if control.rank == 0 else {}
        self._parts = control.gather(parts, "the start of training")[0]  # type: ignore[assignment]
        self._looked_step, self._tried_at = trainer.global_step, time.monotonic()
        private.after_each_epoch(trainer, lambda: self._note_metrics(trainer))
        private.before_each_fetch(trainer, lambda: self._between_batches(trainer))

    def at_epoch_start(self, trainer: pl.Trainer) -> None:
        """At the start of an epoch, before its transition."""
        position = Position(trainer.global_step, trainer.current_epoch, 0, 0)
        if position.step == 0:
            return
        cadence = self._options.cadence
        due = cadence.at_epoch(position.epoch) or cadence.after_steps(position.step - self._tried_step)
        due |= self._options.keeping.best is not None  # else the best epoch may have none
        assert self._lookout is not None
        self._asked_about = self._pending
        found = self._lookout.now(position.step, self._reasons(position.step))
        self._act(trainer, position, found, due=due)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note the phase that trains now."""
        names: Collection[str] = self._finetuning.transitions.trainable
        if isinstance(self._finetuning, ScheduledFinetuning):  # with what the user's optimizer leaves out
            names = self._finetuning.wanted(pl_module, trainer.current_epoch)[1]
        mark = PhaseMark(self._finetuning.transitions.phase, trainer.current_epoch, trainable_digest(names))
        if not self.history or self.history[-1].trainable != mark.trainable:
            self.history.append(mark)

    def _note_metrics(self, trainer: pl.Trainer) -> None:
        self.metrics = {
            name: float(value)
            for name, value in trainer.callback_metrics.items()
            if torch.as_tensor(value).numel() == 1
        }
        if (best := self._options.keeping.best) is not None and not self._best_is_logged:
            logged = self._finetuning.transitions.control.gather(list(self.metrics), "the end of an epoch")[0]
            assert isinstance(logged, list)
            best.check_logged(logged, trainer.current_epoch)
            self._best_is_logged = True

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take this rank's state: from here on only metrics and random numbers change, so it can be redone."""
        counts = torch.tensor([int(count) for count in trainer.num_val_batches if count != float("inf")] or [-1])
        low, high = self._finetuning.transitions.control.min_max(counts.sum().reshape(1))
        at_end = private.batches_done(trainer) >= trainer.num_training_batches
        known = bool(low == high) and float("inf") not in trainer.num_val_batches
        self._before_validation = self._own_state(trainer) if at_end and known else None
        swaps = at_end and known and may_swap_weights(trainer)
        self._weights_before = self._finetuning.transitions.engine.whole_digests() if swaps else None

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: object, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Do not let a stop wait for a long validation; all ranks have as many batches, so they can agree."""
        if self._before_validation is None:
            return
        done = private.batches_done(trainer)
        samples = done * self._options.batch_size * trainer.world_size
        position = Position(trainer.global_step, trainer.current_epoch, done, samples, validating=True)
        transitions = self._finetuning.transitions
        if not bool(transitions.control.min_max(torch.tensor([int(rank_guard.stop_requested())]))[1]):
            return
        swapped = self._weights_before is not None and self._weights_before != transitions.engine.whole_digests()
        if bool(transitions.control.min_max(torch.tensor([int(swapped)]))[1]):
            self._before_validation = None  # these are averages: the stop waits until the task has put its own back
            return
        self._stop(trainer, position)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """What was taken is of the past."""
        self._before_validation = None

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the end of the run, from which more epochs can follow; wait until it is written."""
        self._wait_for_pending(trainer)
        position = Position(trainer.global_step, trainer.current_epoch, 0, 0)
        stop = find_early_stop(trainer, self._finetuning)
        if stop is not None:
            self.stopped_early = stop
            self._report(trainer, {"event": "stopped_early", "step": position.step, **stop.to_json()}, str(stop))
        if not self._options.cadence.never and (stop is not None or position.step > self._written_step):
            self._save(trainer, position, last=True)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Leave no thread behind where the fit failed."""
        self._pending = None

    # ---- when

    def _between_batches(self, trainer: pl.Trainer) -> None:
        step, batch, lookout = trainer.global_step, private.batches_done(trainer), self._lookout
        if batch == 0 or step == self._looked_step:
            return
        self._looked_step = step
        assert lookout is not None
        look = lookout.due(step)
        due = self._options.cadence.after_steps(step - self._tried_step)  # known to all ranks, without a word
        if not look and not due:
            return
        samples = batch * self._options.batch_size * trainer.world_size
        position = Position(step, trainer.current_epoch, batch, samples)
        nothing_new = Reasons(writing=1)
        self._act(trainer, position, (lookout.answer() if look else None) or nothing_new, due=due)
        if look:
            self._asked_about = self._pending
            lookout.ask(step, self._reasons(step))

    def _reasons(self, step: int) -> Reasons:
        """What this rank has found."""
        assert self._lookout is not None
        pending = self._pending
        busy = pending is not None and pending.busy
        return Reasons(
            stop=int(rank_guard.stop_requested()),
            save=int(
                step > self._tried_step and self._options.cadence.after_seconds(time.monotonic() - self._tried_at)
            ),
            fenced=int(self._lookout.fenced()),
            writing=int(busy),
            outcome=0 if pending is None or busy else pending.outcome,
        )

    def _act(self, trainer: pl.Trainer, position: Position, found: Reasons, *, due: bool) -> None:
        """Save or stop, if any rank has a reason to; the same on all ranks."""
        if found.fenced:
            self._give_way()
        if self._pending is not None and self._pending is self._asked_about and not found.writing:
            self._finish(trainer, self._pending, Outcome(found.outcome))
        if found.stop:
            self._stop(trainer, position)
        if (due or found.save) and position.step > self._tried_step:
            self._save(trainer, position)

    def _give_way(self) -> NoReturn:
        self._fence.check()
        raise FencedError(f"attempt {self._attempt.number} of this run was superseded: this one stops")

    def _stop(self, trainer: pl.Trainer, position: Position) -> NoReturn:
        name = None
        if not self._options.cadence.never:
            self._wait_for_pending(trainer)
            if position.step > self._written_step:
                self._save(trainer, position, last=True)
            if self._written_step < position.step:
                raise CheckpointError(f"the run was asked to stop and cannot save, so it fails: {self._last_error}")
            name = f"step_{position.step}"
        raise RunStopped(name, position)

    # ---- how

    def _save(self, trainer: pl.Trainer, position: Position, *, last: bool = False) -> None:
        began = time.perf_counter()
        self._before(trainer)
        self._tried_step, self._tried_at = position.step, time.monotonic()
        if not self._wait_for_pending(trainer, None if last else min(_PATIENCE, self._options.timeout / 2)):
            self._skip(trainer, position)
            return
        job = self._job(trainer, position)
        if job.part is not None:  # forgotten again if it cannot be written
            self._parts[job.part.name] = job.part
        if self._control is None:
            self._control = self._new_group()
        writer = Writer(job, position, self._store, self._fence, self._options.keeping, self._control)
        self._pending = writer
        if self._options.background and not last:
            writer.begin()
            writer.stall = time.perf_counter() - began
        else:
            writer.run()
            writer.stall = time.perf_counter() - began
            self._wait_for_pending(trainer)

    def _new_group(self) -> ControlGroup:
        """Of the ranks' writers: a slow disk is no reason to give up, and a rank that died ends the others anyway."""
        return ControlGroup(max(self._options.timeout, WRITE_SECONDS))

    def _wait_for_pending(self, trainer: pl.Trainer, seconds: float | None = None) -> bool:
        """Wait for the checkpoint that is being written, and report it.

        Args:
            trainer: of the running fit.
            seconds: at most; None: as long as it takes.

        Returns:
            Whether none is being written any more, on any rank.
        """
        pending = self._pending
        if pending is None:
            return True
        pending.wait(seconds)
        busy = pending.busy
        mine = torch.tensor([int(busy), 0 if busy else pending.outcome])
        writing, outcome = self._finetuning.transitions.control.min_max(mine)[1].tolist()
        if not writing:
            self._finish(trainer, pending, Outcome(outcome))
        return not writing

    def _skip(self, trainer: pl.Trainer, position: Position) -> None:
        assert self._pending is not None
        row = {"step": position.step, "epoch": position.epoch, "writing": self._pending.position.step}
        text = (
            f"no checkpoint at step {position.step}: the one of step {row['writing']} is still being written; the disk "
            "is slower than --checkpoint-every asks for. The run goes on"
        )
        self._report(trainer, {"event": "checkpoint_skipped", **row}, text)

    def _finish(self, trainer: pl.Trainer, pending: Writer, outcome: Outcome) -> None:
        """Report what all ranks have written; where that failed, it is no reason to stop training.

        Raises:
            FencedError: a newer attempt owns the run.
        """
        self._pending = None
        if outcome is Outcome.FENCED:
            self._give_way()
        row: dict[str, object] = {"step": pending.position.step, "epoch": pending.position.epoch}
        if outcome is Outcome.WRITTEN:
            written = pending.written
            assert written is not None
            self._written_step = pending.position.step
            row |= {
                "event": "checkpoint",
                "name": written.name,
                "stall": round(pending.stall, 6),
                "seconds": round(written.seconds, 6),
                "bytes": written.bytes,
                "frozen_bytes": written.part_bytes,
                "deleted": list(written.deleted),
            }
            self._report(trainer, row)
            return
        if outcome is Outcome.LOST:
            self._control = None
        self._parts = {name: part for name, part in self._parts.items() if not name.startswith(f"step_{row['step']}_")}
        self._last_error = str(pending.error or "another rank could not write")
        self._report(
            trainer,
            {**row, "event": "checkpoint_failed", "error": self._last_error, "stall": round(pending.stall, 6)},
            f"no checkpoint at step {row['step']}: {self._last_error}. The run goes on, and the checkpoints before are "
            "as they were",
        )

    def _report(self, trainer: pl.Trainer, row: Mapping[str, object], warning: str | None = None) -> None:
        if trainer.is_global_zero:
            append_jsonl(self.folder.events_jsonl, {"time": time.time(), **row})
            if warning is not None:
                tqdm.write(f"warning: {warning}")

    def _job(self, trainer: pl.Trainer, position: Position) -> Job:
        told = Told(
            self._attempt.run,
            self._attempt.number,
            tuple(self.history),
            dict(self.metrics),
            self._options.setup,
            self._options.batch_size,
            self._options.accumulate,
            self.stopped_early.to_json() if self.stopped_early is not None else None,
        )
        own = self._before_validation or self._own_state(trainer)
        return take_job(trainer.lightning_module, self._finetuning.transitions, position, told, self._parts, own)

    def _own_state(self, trainer: pl.Trainer) -> RankState:
        schedulers = self._finetuning.transitions.engine.schedulers
        return take(
            trainer, [dict(scheduler.state_dict()) for scheduler in schedulers], self._finetuning.transitions.control
        )


class EpochStart(pl.Callback):
    """Stands before all other callbacks, so that an epoch's start is saved before its transition."""

    def __init__(self, saver: Saver) -> None:
        self._saver = saver

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Let the saver look."""
        self._saver.at_epoch_start(trainer)
