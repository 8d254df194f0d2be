"""What tasks log on two ranks with uneven shards, and what callbacks on each rank see of it."""

from __future__ import annotations

import io
import os
from contextlib import redirect_stdout

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset

from flash_launch.logged_values import LoggedValues
from flash_strategies.lightning import FinetuningDDPStrategy, finetuning_callback

RANK = int(os.environ.get("RANK", "0"))
X = torch.tensor([1.0, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024])
SHARES = ([0, 1, 2, 3, 4, 5, 6], [7, 8, 9, 10])
"""Samples of each rank: 7 and 4."""


class See(pl.Callback):
    """Notes the values when a plateau scheduler or an early stop would look at them."""

    def __init__(self) -> None:
        self.validated: list[dict[str, float]] = []
        self.ended: list[dict[str, float]] = []

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.validated.append({name: float(value) for name, value in trainer.callback_metrics.items()})

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.ended.append({name: float(value) for name, value in trainer.callback_metrics.items()})


class Task(pl.LightningModule):
    """Logs without sync_dist, as most do."""

    def __init__(self, case: str) -> None:
        super().__init__()
        self.layer, self.case = nn.Linear(1, 1), case
        self.seen: list[float] = []

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        (x,) = batch
        self.log("train_mean", x.mean(), on_step=False, on_epoch=True)
        self.log("train_step", x.mean())
        return self.layer(x[:, None]).mean() * 0

    def validation_step(self, batch: list[torch.Tensor], index: int, dataloader_idx: int = 0) -> None:
        (x,) = batch
        self.seen += x.tolist()
        self.log("val_mean", x.mean())
        self.log("val_synced", x.mean(), sync_dist=True)
        self.log("val_sum", x.sum(), reduce_fx="sum")
        self.log("val_max", x.max(), reduce_fx="max")
        self.log("val_min", x.min(), reduce_fx=torch.min)
        if self.case == "keys" and RANK == 1:
            self.log("val_mine", x.mean(), sync_dist=True)

    def on_validation_epoch_end(self) -> None:
        self.log("val_whole", torch.tensor(self.seen).mean())
        self.log("val_zero", float(RANK + 5), rank_zero_only=True)
        self.seen.clear()

    def on_train_epoch_end(self) -> None:
        self.log("train_whole", float(RANK))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def configure_callbacks(self) -> list[pl.Callback]:
        return [EarlyStopping("train_whole", patience=9, check_on_train_epoch_end=True)]


def run_case(name: str) -> dict[str, object]:
    """What this rank's callbacks saw in one epoch, and what was said."""
    own = Subset(TensorDataset(X), SHARES[RANK])
    validation = [DataLoader(own, batch_size=3)] * (2 if name == "loaders" else 1)
    finetuning, see, task = finetuning_callback("no_freeze"), See(), Task(name)
    said = io.StringIO()
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        devices=int(os.environ["WORLD_SIZE"]),
        strategy=FinetuningDDPStrategy(process_group_backend="gloo"),
        callbacks=[finetuning, LoggedValues(finetuning), see],
        limit_train_batches=2,
        **dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False),
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
    )
    with redirect_stdout(said):
        trainer.fit(task, DataLoader(own, batch_size=3), validation)
    (stopper,) = [one for one in trainer.callbacks if isinstance(one, EarlyStopping)]  # type: ignore[attr-defined]
    best = float(stopper.best_score)
    return {"validated": see.validated[0], "ended": see.ended[0], "monitored": best, "said": said.getvalue()}
