"""Batch norm statistics: they differ between ranks by nature and are made equal by averaging.

Each rank's running mean and variance is an average over its own batches, so their mean over the ranks is the average
over all batches: what timm calls `distribute_bn("reduce")` (timm, utils/distributed.py).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from flash_strategies.agreement import ControlGroup


def hold_in_eval(task: nn.Module, names: Iterable[str], *, before: Iterable[str] = ()) -> frozenset[str]:
    """Put the named batch norms of a frozen part in eval mode, and those that were held before back in the task's mode.

    Returns:
        The names that are held now, to be given as `before` the next time. All other batch norms are left as they are.
    """
    held = frozenset(names)
    for name in frozenset(before) - held:
        task.get_submodule(name).train(task.training)
    for name in held:
        task.get_submodule(name).eval()
    return held


def match_statistics_to_weights(task: nn.Module) -> None:
    """Keep running statistics in the weights' type: torch's batch norm on a CPU takes no mixture of the two."""
    for module in task.modules():
        if isinstance(module, _BatchNorm) and module.weight is not None:
            for buffer in (module.running_mean, module.running_var):
                if buffer is not None:
                    buffer.data = buffer.data.to(module.weight.dtype)


@torch.no_grad()
def average_statistics(task: nn.Module, control: ControlGroup) -> int:
    """Average running means and variances over the ranks, in one exchange.

    Args:
        task: whose batch norms are meant.
        control: the ranks.

    Returns:
        Bytes this rank sent.
    """
    statistics = [
        buffer
        for module in task.modules()
        if isinstance(module, _BatchNorm)
        for buffer in (module.running_mean, module.running_var)
        if buffer is not None
    ]
    if not statistics or control.world_size == 1:
        return 0
    flat = torch.cat([buffer.reshape(-1).double().cpu() for buffer in statistics])
    flat = control.sum(flat) / control.world_size
    position = 0
    for buffer in statistics:
        buffer.copy_(flat[position : position + buffer.numel()].view_as(buffer))
        position += buffer.numel()
    return flat.numel() * flat.element_size()
