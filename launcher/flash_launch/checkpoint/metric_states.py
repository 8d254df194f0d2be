"""States of a task's metrics in the middle of an epoch: all that reaches into torchmetrics. Read against 1.9.0."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torchmetrics import Metric

__all__ = ["merged", "metric_states", "restore_metrics"]

State = dict[str, object]


def metric_states(task: nn.Module) -> dict[str, State]:
    """Name of each metric below the task that was updated -> its states on this rank, and its number of updates."""
    return {
        name: {"states": dict(module.metric_state), "updates": module._update_count}
        for name, module in task.named_modules()
        if isinstance(module, Metric) and module._update_count
    }


def restore_metrics(task: nn.Module, states: Mapping[str, State]) -> None:
    """Give them back; metrics that the task does not have are left out."""
    for name, module in task.named_modules():
        if isinstance(module, Metric) and name in states:
            values = states[name]["states"]
            assert isinstance(values, Mapping)
            for key, value in values.items():
                setattr(module, key, _on(value, module.device))
            updates = states[name]["updates"]
            assert isinstance(updates, int)
            module._update_count = updates
            module._computed = None


def merged(task: nn.Module, ranks: Sequence[Mapping[str, State]], rank: int) -> dict[str, State]:
    """States for a rank of a run that goes on with other ranks: rank 0 takes what all had, where it adds up.

    Args:
        task: whose metrics say how their states are reduced.
        ranks: the states of each rank that saved.
        rank: the rank that takes.
    """
    modules = dict(task.named_modules())
    found: dict[str, State] = {}
    for name in sorted({name for states in ranks for name in states}):
        metric = modules.get(name)
        if not isinstance(metric, Metric):
            continue
        held = [states[name]["states"] for states in ranks if name in states]
        values: State = {}
        for key, reduction in metric._reductions.items():
            parts = [one[key] for one in held if isinstance(one, Mapping)]
            way = getattr(reduction, "__name__", "")
            if way in ("dim_zero_max", "dim_zero_min", "dim_zero_mean"):
                assert callable(reduction)
                values[key] = reduction(torch.stack([part for part in parts if isinstance(part, Tensor)]))
            elif rank != 0:
                default = metric._defaults[key]
                # of the type that rank 0 goes on with: DeepSpeed converts metrics (float64 to float32), DDP does not
                values[key] = default.to(_dtype(parts[0]), copy=True) if isinstance(default, Tensor) else []
            elif way == "dim_zero_sum":
                values[key] = torch.stack([part for part in parts if isinstance(part, Tensor)]).sum(dim=0)
            elif all(isinstance(part, list) for part in parts):
                values[key] = [element for part in parts if isinstance(part, list) for element in part]
            elif way == "dim_zero_cat":
                values[key] = torch.cat([part for part in parts if isinstance(part, Tensor)])
            else:
                values[key] = parts[0]
        updates = [one for states in ranks if name in states and isinstance(one := states[name]["updates"], int)]
        found[name] = {"states": values, "updates": max(updates)}
    return found


def _dtype(value: object) -> torch.dtype | None:
    return value.dtype if isinstance(value, Tensor) else None


def _on(value: object, device: torch.device) -> object:
    if isinstance(value, Tensor):
        return value.to(device)
    return [_on(one, device) for one in value] if isinstance(value, list) else value
