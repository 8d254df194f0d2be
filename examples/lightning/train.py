"""A LightningModule under Lightning's Trainer, on two ranks: ours freezes the backbone first and keeps ranks equal."""

import lightning as L
import torch
import torch.distributed as dist
from flash_strategies.lightning import FinetuningDDPStrategy, ScheduledFinetuning
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Classifier(L.LightningModule):
    """A backbone and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU())
        self.head = nn.Linear(64, 10)

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        images, labels = batch
        return nn.functional.cross_entropy(self.head(self.backbone(images)), labels)

    def validation_step(self, batch: list[torch.Tensor], index: int) -> None:
        images, labels = batch
        right = self.head(self.backbone(images)).argmax(dim=1) == labels
        self.log("val_accuracy", right.float().mean(), prog_bar=True, sync_dist=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(filter(lambda parameter: parameter.requires_grad, self.parameters()), lr=1e-3)


def main() -> None:
    L.seed_everything(0)
    digits = load_digits()
    dataset = TensorDataset(torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target))
    train, val = torch.utils.data.random_split(dataset, [0.8, 0.2])
    trainer = L.Trainer(
        max_epochs=4,
        accelerator="cpu",
        devices=2,
        strategy=FinetuningDDPStrategy(find_unused_parameters=True),
        callbacks=[ScheduledFinetuning(("freeze_unfreeze", 2))],
    )
    trainer.fit(Classifier(), DataLoader(train, batch_size=32, shuffle=True), DataLoader(val, batch_size=32))
    if trainer.is_global_zero:
        print(f"validation accuracy {trainer.callback_metrics['val_accuracy']:.2f}", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
