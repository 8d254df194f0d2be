"""The task of the cluster tests: a small net whose steps take as long as the file `pause` says."""

import os
import time
from pathlib import Path

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

SAMPLES = 160
HERE = Path(__file__).parent


class SlowTask(pl.LightningModule):
    """Learns whether a sum is positive."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh())
        self.head = nn.Linear(16, 2)

    def on_fit_start(self) -> None:
        print(f"MASTER_ADDR={os.environ['MASTER_ADDR']} SAID={os.environ.get('SAID')}")

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        x, label = batch
        time.sleep(float((HERE / "pause").read_text()))
        if (HERE / "bug").exists() and self.global_rank == 1:
            raise ValueError("the loss is a banana")
        loss = nn.functional.cross_entropy(self.head(self.backbone(x)), label)
        self.log("my_loss", loss)
        return loss

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(SAMPLES, 6, generator=generator)
        return DataLoader(TensorDataset(x, (x.sum(dim=1) > 0).long()), batch_size=8, shuffle=True)
