"""The task of benchmarks/checkpoint.py: a mostly frozen model, and a callback that saves as the peers do."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pytorch_lightning.strategies import DeepSpeedStrategy
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

LAYERS = 19
"""Backbone layers; with a head of one such layer, 95 % are frozen."""


class Wide(pl.LightningModule):
    """Linear layers of one width."""

    def __init__(self, width: int = 1500, samples: int = 640) -> None:
        super().__init__()
        self.width, self.samples = width, samples
        self.backbone = nn.Sequential(*(nn.Linear(width, width) for _ in range(LAYERS)))
        self.head = nn.Linear(width, width)

    def training_step(self, batch: tuple[torch.Tensor], batch_idx: int) -> torch.Tensor:
        """A loss of any kind."""
        (x,) = batch
        return self.head(self.backbone(x)).square().mean()

    def train_dataloader(self) -> DataLoader[tuple[torch.Tensor, ...]]:
        """Random numbers."""
        data = torch.randn(self.samples, self.width, generator=torch.Generator().manual_seed(0))
        return DataLoader(TensorDataset(data), batch_size=2)

    def configure_callbacks(self) -> list[pl.Callback]:
        """The peers."""
        return [Peers(Path(os.environ["CHECKPOINT_BENCHMARK"]), every=int(os.environ["CHECKPOINT_EVERY"]))]


class Peers(pl.Callback):
    """Saves by DeepSpeed's `save_checkpoint` and Lightning's `Trainer.save_checkpoint`, which ModelCheckpoint calls."""

    def __init__(self, folder: Path, every: int) -> None:
        self._folder, self._every, self._seen = folder, every, 0

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: object) -> None:
        """Save in the middle between two of ours, when nothing of ours is being written any more."""
        step = trainer.global_step
        if step == self._seen or step % self._every != self._every // 2:
            return
        self._seen = step
        self._time(trainer, "lightning", step, lambda path: trainer.save_checkpoint(path / "last.ckpt"))
        strategy = trainer.strategy
        if isinstance(strategy, DeepSpeedStrategy):
            engine = strategy.deepspeed_engine
            self._time(trainer, "deepspeed", step, lambda path: engine.save_checkpoint(str(path), tag="last"))

    def _time(self, trainer: pl.Trainer, peer: str, step: int, save) -> None:  # type: ignore[no-untyped-def]
        path = self._folder / f"{peer}_{step}"
        if trainer.is_global_zero:
            path.mkdir(parents=True)
        dist.barrier()
        began = time.perf_counter()
        save(path)
        dist.barrier()
        seconds = time.perf_counter() - began
        if trainer.is_global_zero:
            size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
            with (self._folder / "peers.jsonl").open("a") as file:
                file.write(json.dumps({"peer": peer, "step": step, "seconds": seconds, "bytes": size}) + "\n")
            shutil.rmtree(path)
        dist.barrier()
