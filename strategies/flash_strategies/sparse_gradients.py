"""Sparse gradients, of embeddings with `sparse=True`: where they come, what they consist of, and none of them."""

from __future__ import annotations

import torch
from torch import nn


def sparse_parameters(task: nn.Module) -> frozenset[str]:
    """Names of the parameters whose gradients come sparse."""
    weights = {
        id(module.weight)
        for module in task.modules()
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.sparse
    }
    return frozenset(name for name, parameter in task.named_parameters() if id(parameter) in weights)


def memory_of(gradient: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The dense tensors that a gradient consists of."""
    return (gradient._indices(), gradient._values()) if gradient.is_sparse else (gradient,)


def no_gradient(parameter: torch.Tensor, *, sparse: bool) -> torch.Tensor:
    """A gradient of zeros: dense as its parameter, or sparse without an element."""
    if not sparse:
        return torch.zeros_like(parameter)
    return torch.sparse_coo_tensor(
        torch.empty(1, 0, dtype=torch.int64, device=parameter.device),
        parameter.new_empty(0, *parameter.shape[1:]),
        parameter.shape,
        check_invariants=False,
    )
