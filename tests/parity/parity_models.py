"""The networks and data of the parity suite: plain torch, used by our runs and by the reference alike."""

from __future__ import annotations

import torch
from torch import nn

ROWS = 24  # three global batches of eight
CLASSES = 5


class ConvNet(nn.Module):
    """Convolutions and batch norms (without the biases that a batch norm cancels), and a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(
            nn.Conv2d(1, 4, 3, bias=False),
            nn.BatchNorm2d(4),
            nn.Tanh(),
            nn.Conv2d(4, 6, 3, bias=False),
            nn.BatchNorm2d(6),
            nn.Tanh(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.head = nn.Linear(6, CLASSES)

    def forward(self, images: torch.Tensor, epoch: int) -> torch.Tensor:
        return self.head(self.backbone(images))


class TiedBackbone(nn.Module):
    """A chain of layers, of which two share their weights, one is used in even epochs only and one never."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(CLASSES, 7)
        self.first = nn.Linear(7, 7)
        self.middle = nn.Linear(7, 7)
        self.spare = nn.Linear(3, 3)
        self.branch = nn.Linear(7, 7)
        self.again = nn.Linear(7, 7)
        self.again.weight = self.first.weight
        self.last = nn.Linear(7, 7)

    def forward(self, tokens: torch.Tensor, epoch: int) -> torch.Tensor:
        x = self.embed(tokens).mean(dim=1)
        x = torch.tanh(self.middle(torch.tanh(self.first(x))))
        if epoch % 2 == 0:
            x = x + torch.tanh(self.branch(x))
        return torch.tanh(self.last(torch.tanh(self.again(x))))


class TiedNet(nn.Module):
    """A backbone with tied weights; the head shares the embedding's."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = TiedBackbone()
        self.head = nn.Linear(7, CLASSES)
        self.head.weight = self.backbone.embed.weight

    def forward(self, tokens: torch.Tensor, epoch: int) -> torch.Tensor:
        return self.head(self.backbone(tokens, epoch))


NETS: dict[str, type[nn.Module]] = {"conv": ConvNet, "tied": TiedNet}


def data(net: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(inputs, classes) of all rows."""
    generator = torch.Generator().manual_seed(1)
    classes = torch.randint(0, CLASSES, (ROWS,), generator=generator)
    if net == "conv":
        return torch.randn(ROWS, 1, 8, 8, generator=generator), classes
    return torch.randint(0, CLASSES, (ROWS, 3), generator=generator), classes
