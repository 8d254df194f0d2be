"""A plain torch loop under DDP with `Finetuner`: the head trains first, the backbone from epoch 2 on."""

import torch
import torch.distributed as dist
from flash_strategies import Finetuner
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

EPOCHS = 4


class Classifier(nn.Module):
    """A backbone and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU())
        self.head = nn.Linear(64, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.backbone(images))


def main() -> None:
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    digits = load_digits()
    dataset = TensorDataset(torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target))
    sampler = DistributedSampler(dataset)
    loader = DataLoader(dataset, batch_size=32, sampler=sampler)
    task = Classifier()
    finetuner = Finetuner(task, ("freeze_unfreeze", 2), max_epochs=EPOCHS)
    optimizer = torch.optim.AdamW(task.parameters(), lr=1e-3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=EPOCHS)
    finetuner.ddp(optimizer, [scheduler])
    for epoch in finetuner.epochs():
        model = finetuner.model
        sampler.set_epoch(epoch)
        right = torch.zeros(1)
        for images, labels in loader:
            logits = model(images)
            nn.functional.cross_entropy(logits, labels).backward()
            finetuner.before_step()
            optimizer.step()
            optimizer.zero_grad()
            finetuner.after_step()
            right += (logits.argmax(dim=1) == labels).sum()
        scheduler.step()
        dist.all_reduce(right)
        if dist.get_rank() == 0:
            print(
                f"epoch {epoch}: accuracy {right.item() / (len(loader) * 32 * dist.get_world_size()):.2f}", flush=True
            )
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
