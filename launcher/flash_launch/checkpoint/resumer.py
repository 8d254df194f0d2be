"""Brings a fit to where a checkpoint was saved, on any setup and any number of ranks."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence

import pytorch_lightning as pl
import torch

from flash_launch.checkpoint.manifest import Manifest, Position
from flash_launch.checkpoint.rank_state import (
    load_file,
    merged,
    restore_callbacks,
    restore_random,
    restore_rest,
)
from flash_launch.checkpoint.saver import Saver
from flash_launch.checkpoint.snapshot import persistent_buffers
from flash_launch.checkpoint.store import Store
from flash_launch.checkpoint.writing import ENGINE_STATE
from flash_launch.data import RunData
from flash_launch.data.sampling import derived_seed
from flash_launch.early_stop import EarlyStop
from flash_launch.run_folder import RunFolder, append_jsonl
from flash_strategies.agreement import ControlGroup
from flash_strategies.checkpoint.chunks import Slice, read_chunks
from flash_strategies.checkpoint.engine_state import EngineState
from flash_strategies.errors import CheckpointError
from flash_strategies.lightning import FinetuningCallback, private

__all__ = ["Resumer", "position_in"]


def position_in(saved: Position, *, batch_size: int, accumulate: int, world_size: int) -> Position:
    """A position in batches of another layout: at the last whole optimizer step before it, or at it."""
    if saved.validating:
        return saved
    batch = saved.samples // (batch_size * world_size) // accumulate * accumulate
    return Position(saved.step, saved.epoch, batch, batch * batch_size * world_size)


class Resumer(pl.Callback):
    """Stands behind the finetuning callback and before what records; gives everything its state back."""

    def __init__(
        self,
        folder: RunFolder,
        manifest: Manifest,
        position: Position,
        finetuning: FinetuningCallback,
        saver: Saver,
        *,
        max_epochs: int,
    ) -> None:
        """Prepare.

        Args:
            folder: the run folder.
            manifest: of the checkpoint.
            position: where to go on, in this run's batches.
            finetuning: makes the transitions.
            saver: goes on saving.
            max_epochs: of the run.
        """
        self._max_epochs = max_epochs
        self._folder, self._manifest, self._position = folder, manifest, position
        self._finetuning, self._saver = finetuning, saver
        self._store = Store(folder.checkpoints)
        finetuning.resuming = True

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Set the counters and the samplers, before the loaders are made."""
        at = self._position
        data = trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, RunData)
        data.start_at(at.epoch, at.batch)
        private.go_on_at(trainer, epoch=at.epoch, batch=at.batch, step=at.step, validating=at.validating)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Load, and prove that the ranks are equal.

        Raises:
            CheckpointError: something cannot be read or does not fit.
            ProofError: the ranks are not equal.
        """
        began = time.perf_counter()
        at, manifest = self._position, self._manifest
        if at.batch and not at.validating and at.batch >= trainer.num_training_batches:
            raise CheckpointError(
                f"the checkpoint is at batch {at.batch} of an epoch, which has {trainer.num_training_batches} batches "
                "in this run: resume with the batch size and number of ranks that saved it"
            )
        if at.validating:  # however many batches an epoch has in this run, they are done
            batches = int(trainer.num_training_batches)
            private.go_on_at(trainer, epoch=at.epoch, batch=batches, step=at.step, validating=True)
        control = self._finetuning.transitions.control
        path = self._store.path(manifest.name)
        same_ranks = control.world_size == manifest.world_size
        if same_ranks:
            state = load_file(path, control.rank)
        else:
            ranks = [load_file(path, rank) for rank in range(manifest.world_size)]
            state = merged(trainer, ranks, control.rank)
        restore_callbacks(trainer, state)
        engine_state = EngineState.from_json(json.loads((path / ENGINE_STATE).read_text(encoding="utf-8")))
        self._finetuning.resume(
            trainer,
            pl_module,
            engine_state,
            lambda slices: self._read(slices, control),
            state.schedulers,
            in_epoch=at.batch > 0,
        )
        self._read_buffers(pl_module, control)
        restore_rest(trainer, state, states=same_ranks or control.rank == 0)
        if at.batch:
            self._finetuning.hold_buffers(trainer, pl_module)
        data = trainer.datamodule  # type: ignore[attr-defined]
        if at.batch and not at.validating and not data.starts_anywhere:
            private.skip_batches(trainer, at.batch)
        self._saver.went_on(at, manifest.phases, manifest.metrics)
        if same_ranks:
            restore_random(state.random)
        else:
            seed = derived_seed("resume", manifest.position.step, control.world_size, control.rank)
            pl.seed_everything(seed, workers=True, verbose=False)
        if trainer.is_global_zero:
            row = {
                "event": "resume",
                "time": time.time(),
                "step": at.step,
                "epoch": at.epoch,
                "batch": at.batch,
                "checkpoint": manifest.name,
                "phase": manifest.phase,
                "world_size": control.world_size,
                "saved_world_size": manifest.world_size,
                "saved_setup": manifest.setup,
                "seconds": round(time.perf_counter() - began, 6),
            }
            append_jsonl(self._folder.events_jsonl, row)
        stop = EarlyStop.from_json(manifest.stopped_early)
        ended = stop is not None and stop.ends(self._max_epochs)
        if ended:
            self._saver.stopped_early = stop
        if ended or at.epoch >= self._max_epochs:  # only what comes after training is left to do
            trainer.fit_loop.max_epochs = at.epoch

    def _read(self, slices: Sequence[Slice], control: ControlGroup) -> None:
        """Fill slices from the checkpoint's folder, and from those of the parts it refers to."""
        where = self._manifest.where
        wanted: dict[str, list[Slice]] = {part: [] for part in ("", *self._manifest.frozen)}
        for one in slices:
            wanted[where.get(one.key, "")].append(one)
        for part, asked in wanted.items():
            folder = self._store.part_path(part) if part else self._store.path(self._manifest.name)
            read_chunks(folder, asked, control.process_group)

    def _read_buffers(self, task: pl.LightningModule, control: ControlGroup) -> None:
        present = persistent_buffers(task)
        slices: list[Slice] = []
        for key in self._manifest.buffers:
            name = key.partition("/")[2]
            if name not in present:
                raise CheckpointError(
                    f"the checkpoint has a buffer {name}, which this model does not have: resume with the task and the "
                    "model that the run was started with"
                )
            one = present[name]
            slices.append(Slice(key, 0, torch.empty(one.numel(), dtype=one.dtype), one.numel()))
        self._read(slices, control)
        for one_slice in slices:
            buffer = present[one_slice.key.partition("/")[2]]
            buffer.copy_(one_slice.tensor.view(buffer.shape))
