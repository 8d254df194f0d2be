"""Norms with running statistics: held in eval mode while frozen, and of the weights' type on a CPU."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn
from torch.nn.modules.batchnorm import _NormBase


def hold_in_eval(task: nn.Module, names: Iterable[str], *, before: Iterable[str] = ()) -> frozenset[str]:
    """Put the named norms of a frozen part in eval mode, and those that were held before back in the task's mode.

    Returns:
        The names that are held now, to be given as `before` the next time. All other norms are left as they are.
    """
    held = frozenset(names)
    for name in frozenset(before) - held:
        task.get_submodule(name).train(task.training)
    for name in held:
        task.get_submodule(name).eval()
    return held


def match_statistics_to_weights(task: nn.Module) -> None:
    """Keep running statistics in the weights' type: torch's norms on a CPU take no mixture of the two."""
    for module in task.modules():
        if isinstance(module, _NormBase) and module.weight is not None:
            for buffer in (module.running_mean, module.running_var):
                if buffer is not None:
                    buffer.data = buffer.data.to(module.weight.dtype)
