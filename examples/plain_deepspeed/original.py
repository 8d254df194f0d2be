"""A loop around a DeepSpeed engine at ZeRO-2: the whole network trains from the first step on."""

import deepspeed
import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

EPOCHS, BATCH = 4, 32
CONFIG = {
    "train_micro_batch_size_per_gpu": BATCH,
    "gradient_clipping": 1.0,
    "zero_optimization": {"stage": 2},
    "zero_allow_untested_optimizer": True,
    "zero_force_ds_cpu_optimizer": False,
}


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
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # which is compiled for minutes on a CPU
    torch.manual_seed(0)
    digits = load_digits()
    dataset = TensorDataset(torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target))
    sampler = DistributedSampler(dataset)
    loader = DataLoader(dataset, batch_size=BATCH, sampler=sampler)
    task = Classifier()
    optimizer = torch.optim.AdamW(task.parameters(), lr=1e-3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=EPOCHS)
    engine, *_ = deepspeed.initialize(model=task, optimizer=optimizer, config=CONFIG)
    for epoch in range(EPOCHS):
        sampler.set_epoch(epoch)
        right = torch.zeros(1)
        for images, labels in loader:
            logits = engine(images)
            engine.backward(nn.functional.cross_entropy(logits, labels))
            engine.step()
            right += (logits.argmax(dim=1) == labels).sum()
        scheduler.step()
        dist.all_reduce(right)
        if dist.get_rank() == 0:
            print(
                f"epoch {epoch}: accuracy {right.item() / (len(loader) * BATCH * dist.get_world_size()):.2f}",
                flush=True,
            )
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
