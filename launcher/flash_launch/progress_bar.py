"""The progress bar of a run, which asks the device for values only in steps whose values are logged anyway."""

from __future__ import annotations

import os

import pytorch_lightning as pl
from pytorch_lightning.callbacks import TQDMProgressBar
from pytorch_lightning.callbacks.progress.tqdm_progress import Tqdm
from pytorch_lightning.utilities.types import STEP_OUTPUT

from flash_launch.recorder import is_logged

__all__ = ["EpochBar"]


class EpochBar(TQDMProgressBar):
    """One bar per epoch where a person watches; validation has none of its own."""

    def __init__(self) -> None:
        super().__init__(refresh_rate=1)
        self._watched = os.environ.get("FLASH_LAUNCH_WATCHED", "1") == "1"

    def init_train_tqdm(self) -> Tqdm:
        """Lightning's, or one that shows nothing."""
        return super().init_train_tqdm() if self._watched else Tqdm(disable=True)

    def init_validation_tqdm(self) -> Tqdm:
        """One that shows nothing."""
        return Tqdm(disable=True)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: STEP_OUTPUT, batch: object, batch_idx: int
    ) -> None:
        """Move on; show values at logged steps."""
        bar, done = self.train_progress_bar, batch_idx + 1
        if bar.disable:
            return
        if is_logged(trainer, trainer.global_step) or done == bar.total:
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        else:
            bar.update(done - bar.n)
