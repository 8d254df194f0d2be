"""Networks whose parameters, or ways to their gradients, are odd; all but the last two are for every setup."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm
from torch.utils.checkpoint import checkpoint


class Scale(nn.Module):
    """A 0-dimensional parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.log = nn.Parameter(torch.tensor(0.3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.log.exp()


class Kept(nn.Module):
    """Frozen by its user: floating-point and integer parameters; and a buffer that moves."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(8), requires_grad=False)
        self.table = nn.Parameter(torch.arange(8), requires_grad=False)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("part", torch.zeros(1, dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.calls += 1
            self.part.mul_(0.9).add_(0.1)
        return x * self.weight[self.table] * (1 + self.part).float()


class Odd(nn.Module):
    """Parameters with no dimension, channels-last, transposed, tied, weight-normed, frozen."""

    widths = (32, 3)
    phases = ("eg", "cdeg", "abcdeg", "acg", "abcdeg")

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a = nn.Conv2d(2, 4, 3).to(memory_format=torch.channels_last)
        self.b = weight_norm(nn.Linear(16, 8))
        self.c = nn.Linear(8, 8)
        self.c.weight = nn.Parameter(torch.randn(8, 8).t() / 3)
        self.d = nn.Linear(8, 8)
        self.d.weight = self.c.weight
        self.e = Scale()
        self.f = Kept()
        self.g = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.a(x.view(-1, 2, 4, 4).to(memory_format=torch.channels_last))).flatten(1)
        x = torch.tanh(self.c(torch.tanh(self.b(x))))
        return self.g(self.f(self.e(torch.tanh(self.d(x)))))


class Reentrant(nn.Module):
    """Activation checkpointing whose backward pass runs inside of the outer one; a branch that is used at times."""

    widths = (6, 3)
    phases = ("d", "abcd", "bd", "abcd")

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.d = nn.Linear(6, 3)
        self.even = True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.a(x)).requires_grad_()
        x = x + checkpoint(lambda y: torch.tanh(self.b(torch.tanh(self.b(y)))), x, use_reentrant=True)
        if self.even:
            x = x + checkpoint(self.c, x, use_reentrant=True)
        return self.d(x)


class Sparse(nn.Module):
    """An embedding with sparse gradients, in a branch that is used at times."""

    widths = (5, 3)
    phases = ("b", "ab", "b", "ab")

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a = nn.Embedding(20, 6, sparse=True)
        self.b = nn.Linear(6, 3)
        self.even = True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        indices = (x.abs() * 10).long() % 20
        weight = self.a(indices).mean(dim=1) if self.even else torch.tanh(x.repeat(1, 2)[:, :6])
        return self.b(weight)


class Complex(nn.Module):
    """A filter of frequencies: complex and fp64 weights."""

    widths = (8, 3)
    phases = ("c", "abc", "c", "abc")

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a = nn.Module()
        self.a.weight = nn.Parameter(torch.randn(5, dtype=torch.complex64))
        self.b = nn.Linear(8, 8).double()
        self.c = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.fft.irfft(torch.fft.rfft(x) * self.a.weight, n=8)
        return self.c(torch.tanh(self.b(x.double())).float())


NETS: dict[str, type[nn.Module]] = {
    "odd": Odd,
    "reentrant": Reentrant,
    "sparse": Sparse,
    "complex": Complex,
}
STEPS = 3


def optimizer_of(net: str, task: nn.Module) -> torch.optim.Optimizer:
    """AdamW; for sparse gradients, SGD."""
    if net == "sparse":
        return torch.optim.SGD(task.parameters(), lr=0.1)
    trained = [p for p in task.parameters() if p.is_floating_point() or p.is_complex()]
    return torch.optim.AdamW(trained, lr=1e-2, weight_decay=0.1, eps=1e-4)
