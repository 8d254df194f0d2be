"""The task of benchmarks/step_cost.py: a small network whose steps are marked, so that what they cost is seen."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

__all__ = ["BATCH", "Net"]

BATCH = 8


class Net(pl.LightningModule):
    """Linear layers; logs as tasks do: the loss of every step to the progress bar, and its mean over the epoch."""

    def __init__(self, width: int = 64, depth: int = 4, steps: int = 300) -> None:
        super().__init__()
        self.width, self.steps = width, steps
        self.backbone = nn.Sequential(*(nn.Sequential(nn.Linear(width, width), nn.ReLU()) for _ in range(depth)))
        self.head = nn.Linear(width, 10)
        self.began: list[float] = []
        """When each step began, in seconds."""
        self.began_cpu: list[float] = []
        """The same by the clock of the process, which stands still while others have the CPU."""
        self.on_begin: Callable[[], None] = lambda: None

    def on_train_batch_start(self, batch: object, batch_idx: int) -> None:
        """A step begins here, and ends where the next one begins."""
        self.on_begin()
        self.began.append(time.perf_counter())
        self.began_cpu.append(time.process_time())

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> torch.Tensor:
        """Cross entropy."""
        x, y = batch
        loss = functional.cross_entropy(self.head(self.backbone(x)), y)
        self.log("train_loss", loss, on_step=True, on_epoch=True, prog_bar=True)
        return loss

    def train_dataloader(self) -> DataLoader[tuple[torch.Tensor, ...]]:
        """Random numbers, the same for every rank: only time counts here."""
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(self.steps * BATCH, self.width, generator=generator)
        y = torch.randint(0, 10, (len(x),), generator=generator)
        return DataLoader(TensorDataset(x, y), batch_size=BATCH)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW."""
        return torch.optim.AdamW(self.parameters(), lr=1e-4)
