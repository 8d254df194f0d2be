"""The network and the data of benchmarks/rank_equality.py, the same for all that it compares."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

SAMPLES, BATCH = 64, 16
"""BATCH: over all ranks."""
WIDTH, CLASSES = 12, 3
LEARNING_RATE = 0.1


class Net(nn.Module):
    """A backbone and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(WIDTH, 32), nn.Tanh(), nn.Linear(32, 16), nn.Tanh())
        self.head = nn.Linear(16, CLASSES)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Scores, (n, CLASSES), of inputs (n, WIDTH)."""
        scores: torch.Tensor = self.head(self.backbone(inputs))
        return scores


def build_net() -> Net:
    """The network with its first weights, the same in every process."""
    torch.manual_seed(0)
    return Net()


def samples() -> TensorDataset:
    """Inputs (SAMPLES, WIDTH) and targets (SAMPLES,), in an order that stays."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(SAMPLES, WIDTH, generator=generator)
    return TensorDataset(inputs, inputs[:, :CLASSES].argmax(dim=1))


def whole_batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The batches of all ranks together, in order."""
    inputs, targets = samples().tensors
    yield from zip(inputs.split(BATCH), targets.split(BATCH), strict=True)


def loss_of(net: nn.Module, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy, the mean over the batch."""
    return nn.functional.cross_entropy(net(inputs), targets)


def build_task(lightning: ModuleType, ranks: int) -> Any:
    """The network as a LightningModule.

    Args:
        lightning: `pytorch_lightning` or `lightning.pytorch`: finetuning-scheduler takes the latter's modules only.
        ranks: over which each batch is shared out, by Lightning's sampler: rank r of R has every R-th sample from r on.
    """

    class Task(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            net = build_net()
            self.backbone, self.head = net.backbone, net.head

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            scores: torch.Tensor = self.head(self.backbone(inputs))
            return scores

        def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
            return loss_of(self, *batch)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            trainable = [parameter for parameter in self.parameters() if parameter.requires_grad]
            return torch.optim.SGD(trainable, lr=LEARNING_RATE, momentum=0.9)

        def train_dataloader(self) -> DataLoader[Any]:
            data: Dataset[Any] = samples()
            sampler = torch.utils.data.DistributedSampler(data, shuffle=False)
            return DataLoader(data, batch_size=BATCH // ranks, sampler=sampler)

    return Task()
