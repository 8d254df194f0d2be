"""The network of the engine suite, its optimizer and its schedule: plain torch."""

from __future__ import annotations

from typing import ClassVar

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


class Moving(nn.Module):
    """Buffers that each forward pass changes, in eval mode too: in place, by `.data`, by assignment."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("in_place", torch.zeros(width))
        self.register_buffer("by_data", torch.zeros(width, dtype=torch.float64))
        self.register_buffer("assigned", torch.zeros(width, dtype=torch.complex64), persistent=False)
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("signs", torch.zeros(width, dtype=torch.bool))
        self.register_buffer("queue", torch.zeros(width))
        self.register_buffer("constant", torch.arange(width).float())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = x.detach().float().mean(dim=0)
        self.in_place.lerp_(mean, 0.1)
        self.by_data.data.copy_(mean)
        self.assigned = self.assigned + torch.complex(mean, -mean)
        self.count += 1 + (mean[0] > 0)
        self.signs.copy_((mean * 1e4).long() % 2 == 0)
        self.queue.copy_(mean)
        return x


class Statistics(nn.Module):
    """Layers a to d, with norms that keep statistics, and buffers of every kind, in a frozen and a trained part."""

    widths = (7, 3)
    buffer_reduction: ClassVar[dict[str, str]] = {"*.queue": "rank0"}

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.d = nn.Linear(7, 5), nn.Linear(5, 3)
        self.b, self.c = (nn.InstanceNorm1d(5, affine=True, track_running_stats=True) for _ in range(2))
        self.frozen, self.free = Moving(5), Moving(5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.frozen(self.free(self.a(x)))
        for norm in (self.b, self.c):  # an instance is two places, of which the second is taken
            x = norm(torch.stack([x, x.square()], dim=2))[..., 1]
        return self.d(x)
