"""The network of the engine suite, its optimizer and its schedule: plain torch."""

from __future__ import annotations

import torch
from torch import nn

GLOBAL_BATCH = 12  # for 1, 2 and 3 ranks


class Chain(nn.Module):
    """Four layers of odd sizes, so that partitions end in the middle of a parameter or in padding; and a branch, e.

    The branch is used in even steps only: in odd ones it gets no gradient.
    """

    widths = (7, 13, 11, 5, 3)

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c, self.d = (nn.Linear(i, o) for i, o in zip(self.widths, self.widths[1:], strict=False))
        self.e = nn.Linear(5, 5)
        self.even = True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in (self.a, self.b, self.c):
            x = torch.tanh(layer(x))
        return self.d(x + torch.tanh(self.e(x)) if self.even else x)


def adamw(task: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(task.parameters(), lr=1e-2, weight_decay=0.1, eps=1e-4)


def one_cycle(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=200, cycle_momentum=False)


class Deep(nn.Module):
    """Twenty equal layers, a to t: one of them is five percent."""

    names = "abcdefghijklmnopqrst"
    widths = (64, 64)

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        for name in self.names:
            setattr(self, name, nn.Linear(64, 64, bias=False))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.children():
            x = x + torch.tanh(layer(x))
        return x
