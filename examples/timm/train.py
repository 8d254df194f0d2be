"""A backbone of timm in a LightningModule, on two ranks: frozen for an epoch, then all ranks unfreeze it together."""

import flash_launch as flash
import pytorch_lightning as pl
import timm
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Classifier(pl.LightningModule):
    """A backbone of timm without its classifier, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = timm.create_model("resnet10t", pretrained=False, num_classes=0)
        self.head = nn.Linear(self.backbone.num_features, 2)

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        images, labels = batch
        return nn.functional.cross_entropy(self.head(self.backbone(images)), labels)

    def validation_step(self, batch: list[torch.Tensor], index: int) -> None:
        images, labels = batch
        right = self.head(self.backbone(images)).argmax(dim=1) == labels
        self.log("val_accuracy", right.float().mean(), prog_bar=True, sync_dist=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def pictures(count: int) -> TensorDataset:
    """Noise with a bar that is upright (label 0) or lies (label 1)."""
    images, labels = torch.randn(count, 3, 32, 32) / 4, torch.arange(count) % 2
    for number, image in enumerate(images):
        bar, place = (image if number % 2 else image.transpose(1, 2)), int(torch.randint(28, ()))
        bar[:, place : place + 4] += 1
    return TensorDataset(images, labels)


def main() -> None:
    pl.seed_everything(0)
    train, val = pictures(128), pictures(32)
    trainer = flash.Trainer(max_epochs=3, accelerator="cpu", devices=2, strategy="ddp")
    loaders = DataLoader(train, batch_size=16, shuffle=True), DataLoader(val, batch_size=16)
    trainer.finetune(Classifier(), *loaders, strategy=("freeze_unfreeze", 1))
    if trainer.is_global_zero:
        print(f"validation accuracy {trainer.callback_metrics['val_accuracy']:.2f}", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
