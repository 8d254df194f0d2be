"""A script with flash.Trainer, which does nothing to stop or to resume. Each step waits as `pause` says."""

import os
import time
from pathlib import Path

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import flash_launch as flash

HERE, RUN = Path(__file__).parent, Path(os.environ["FLASH_LAUNCH_RUN"])


class Task(pl.LightningModule):
    """With dropout and a batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.3))
        self.head = nn.Linear(8, 3)

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        time.sleep(float((HERE / "pause").read_text()))
        run = Path(os.environ["FLASH_LAUNCH_RUN"])
        (run / f"at{self.global_rank}").write_text(
            f"{os.environ['FLASH_LAUNCH_ATTEMPT']} {self.global_step} {os.getpid()}"
        )
        return nn.functional.cross_entropy(self.head(self.backbone(batch[0])), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def main() -> None:
    pl.seed_everything(3)
    data = TensorDataset(torch.randn(48, 6), torch.randint(0, 3, (48,)))
    task = Task()
    trainer = flash.Trainer(max_epochs=3, accelerator="cpu", devices=2, strategy="ddp", logger=False)
    trainer.finetune(task, DataLoader(data, batch_size=4, shuffle=True), strategy=("freeze_unfreeze", 1))
    if trainer.is_global_zero:
        torch.save(
            torch.cat([one.flatten() for one in task.parameters()]), os.environ["FLASH_LAUNCH_RUN"] + "/weights.pt"
        )
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
