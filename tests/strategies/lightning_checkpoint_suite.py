"""Fits that resume from Lightning's own checkpoints, on one rank or many: each case says what differs."""

from __future__ import annotations

import logging
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from flash_strategies import FlashBaseFinetuning, Rate
from flash_strategies.lightning import FinetuningDDPStrategy, FinetuningDeepSpeedStrategy, ScheduledFinetuning

EPOCHS, STEPS, BATCH = 4, 3, 4
STRATEGY = ("unfreeze_milestones", ((1, 2), 1))
SAVED = {"frozen": 2, "the epoch's end": 3, "after an unfreeze": 4, "an epoch's last step": 6, "unfrozen": 8}
"""Optimizer steps done when a checkpoint is saved."""


@dataclass(frozen=True)
class Case:
    """Fits on a setup."""

    world_size: int
    setup: str
    callback: str = "milestones"

    suite = Path(__file__)

    @property
    def name(self) -> str:
        """The parts, for `run_case`."""
        return f"{self.world_size}-{self.setup}-{self.callback}"


class Task(pl.LightningModule):
    """A backbone, a head, and two param groups on a schedule by the step."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh())
        self.head = nn.Linear(8, 3)

    def loader(self) -> DataLoader[tuple[torch.Tensor, ...]]:
        """As many batches as there are steps."""
        return DataLoader(TensorDataset(torch.arange(STEPS)))

    train_dataloader = val_dataloader = test_dataloader = loader

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        """Cross entropy; of the batch by its number, since Lightning begins an epoch's loader anew in its middle."""
        rank = dist.get_rank() if dist.is_initialized() else 0
        generator = torch.Generator().manual_seed(100 * index + rank)
        inputs, labels = torch.randn(BATCH, 6, generator=generator), torch.randint(0, 3, (BATCH,), generator=generator)
        return nn.functional.cross_entropy(self.head(self.backbone(inputs)), labels)

    def validation_step(self, batch: list[torch.Tensor], index: int) -> None:
        """Log the loss."""
        self.log("loss", self.training_step(batch, index), sync_dist=True)

    test_step = validation_step

    def configure_optimizers(self) -> dict[str, object]:
        """The backbone at another rate."""
        groups = [{"params": self.backbone.parameters(), "lr": 3e-3}, {"params": self.head.parameters()}]
        optimizer = torch.optim.AdamW(groups, lr=1e-2)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * STEPS, eta_min=1e-4)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Custom(FlashBaseFinetuning):
    """Of the user's own: the last layer at epoch 1, then all."""

    def finetune_function(self, pl_module: pl.LightningModule, epoch: int, optimizer: object) -> None:
        """Unfreeze, with another rate for the first layers."""
        if epoch == 1:
            self.unfreeze_and_extend_param_group(pl_module.backbone[3], optimizer)
        if epoch == 2:
            self.unfreeze_and_add_param_group(pl_module.backbone, optimizer, lr=1e-3)


class Save(pl.Callback):
    """Saves after so many steps, and notes rates, losses and the weights at the end."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self.rates: list[list[float]] = []
        self.weights: dict[str, torch.Tensor] = {}

    def on_train_batch_end(self, trainer: pl.Trainer, task: pl.LightningModule, *_: object) -> None:
        """After the optimizer's step."""
        self.rates.append(sorted({float(group["lr"]) for group in trainer.optimizers[0].param_groups}))
        if self._folder is not None and trainer.global_step in SAVED.values() and trainer.global_step != 3:
            trainer.save_checkpoint(self._folder / f"{trainer.global_step}.ckpt")

    def on_train_epoch_end(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        """As ModelCheckpoint saves by default without validation."""
        if self._folder is not None and trainer.global_step == 3:
            trainer.save_checkpoint(self._folder / "3.ckpt")

    def on_train_end(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        """Whole weights."""
        engine = next(c for c in trainer.callbacks if hasattr(c, "transitions")).transitions.engine
        for name, parameter in engine.parameters.items():
            with engine.gathered(parameter):
                self.weights[name] = parameter.detach().clone()


def trainer_on(setup: str, callbacks: list[pl.Callback]) -> pl.Trainer:
    """A Trainer."""
    strategy: object = "auto"
    if setup == "ddp":
        strategy = FinetuningDDPStrategy(find_unused_parameters=True, process_group_backend="gloo")
    elif setup != "single":
        config: dict[str, object] = {
            "train_micro_batch_size_per_gpu": BATCH,
            "zero_allow_untested_optimizer": True,
            "zero_optimization": {
                "stage": int(setup[-1]),
                "reduce_bucket_size": 500,
                "stage3_param_persistence_threshold": 0,
            },
        }
        strategy = FinetuningDeepSpeedStrategy(config, process_group_backend="gloo")
    return pl.Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        devices=int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
        strategy=strategy,  # type: ignore[arg-type]
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )


def fit(setup: str, kind: str, *, save: Path | None = None, resume: Path | None = None) -> Save:
    """One fit, from the start or from a checkpoint."""
    seen = Save(save)
    rate = Rate(lr=2e-3, ramp=1.5) if kind == "rates" else None
    finetuning = Custom("backbone") if kind == "custom" else ScheduledFinetuning(STRATEGY, train_bn=False, rate=rate)
    trainer_on(setup, [finetuning, seen]).fit(Task(), ckpt_path=resume)
    return seen


def run_case(name: str) -> dict[str, object]:
    """What differs from the fit that was not stopped, by when it was saved; nothing, and the rates of both."""
    _, setup, kind = name.split("-")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    folders: list[object] = [tempfile.mkdtemp()]
    if dist.is_initialized():
        dist.broadcast_object_list(folders)
    folder = Path(str(folders[0]))
    whole = fit(setup, kind, save=folder)
    found: dict[str, object] = {}
    for when, step in SAVED.items():
        again = fit(setup, kind, resume=folder / f"{step}.ckpt")
        odd = [n for n, weight in whole.weights.items() if not torch.equal(weight, again.weights[n])]
        found[when] = (odd, again.rates == whole.rates[step:])
    losses = []
    for step in SAVED.values():
        trainer = trainer_on(setup, [ScheduledFinetuning(STRATEGY)])
        losses.append(trainer.test(Task(), ckpt_path=folder / f"{step}.ckpt", verbose=False)[0]["loss"])
    return {**found, "losses": losses, "moved": len(whole.weights)}


if __name__ == "__main__":
    print(run_case("1-single-milestones"))
