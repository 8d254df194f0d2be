"""Tells, as a Lightning callback, what this rank is at: epoch, step, and which part of a step."""

from __future__ import annotations

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import STEP_OUTPUT
from torch.optim import Optimizer

from flash_launch import progress

__all__ = ["ProgressCallback"]


class ProgressCallback(pl.Callback):
    """It stands before all other callbacks, so that what these do is told, too. A call costs about a microsecond."""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """The model is being set up on all ranks."""
        progress.tell("the set-up of the model")

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The engine is built."""
        progress.tell("the start of training", epoch=trainer.current_epoch, step=trainer.global_step)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """An epoch begins: a transition may be due."""
        progress.tell("the start of an epoch", epoch=trainer.current_epoch, step=trainer.global_step)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: object, batch_idx: int
    ) -> None:
        """A batch is there."""
        progress.tell("the forward pass", step=trainer.global_step)

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: torch.Tensor) -> None:
        """The loss is there."""
        progress.tell("the backward pass")

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """The gradients are there."""
        progress.tell("the optimizer step")

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: STEP_OUTPUT, batch: object, batch_idx: int
    ) -> None:
        """A batch is done; a checkpoint may be due before the next is fetched."""
        progress.tell("fetching data, or saving", step=trainer.global_step)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Validation begins."""
        progress.tell("validation", step=trainer.global_step)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Validation is done."""
        progress.tell("the end of an epoch")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Training is done; the weights are written now."""
        progress.tell("writing the final weights", step=trainer.global_step)
