"""Optimizers of the run: torch's AdamW and SGD, and DeepSpeed's CPU Adam where state is offloaded from a GPU."""

from __future__ import annotations

from collections.abc import Collection
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, cast

import torch
from torch import nn

from flash_launch.errors import ConfigError, LaunchError
from flash_launch.setup_keys import nearest

if TYPE_CHECKING:
    from torch.optim.optimizer import ParamsT

__all__ = ["build_optimizer", "decay_groups", "no_decay_names", "optimizer_names"]

_NAMES = ("adamw", "sgd")


def optimizer_names() -> tuple[str, ...]:
    """What `--optimizer` takes."""
    return _NAMES


def no_decay_names(task: nn.Module, patterns: str | None) -> tuple[str, ...]:
    """The parameters that weight decay leaves out: those `--no-decay` names, or by default biases and norms.

    To pull a scale towards 0 or a bias towards the origin regularizes nothing, so parameters of at most one dimension
    are left out, as in the recipes of BERT, ConvNeXt and DINOv2.

    Raises:
        ConfigError: a pattern that no parameter has.
    """
    parameters = dict(task.named_parameters())
    if patterns is None:
        return tuple(name for name, parameter in parameters.items() if parameter.dim() <= 1)
    wanted = [pattern.strip() for pattern in patterns.split(",") if pattern.strip()]
    if wanted == ["none"]:
        return ()
    # a tied parameter has several names, of which torch's optimizers see the first
    named: dict[int, list[str]] = {}
    for name, parameter in task.named_parameters(remove_duplicate=False):
        named.setdefault(id(parameter), []).append(name)
    every = [name for names in named.values() for name in names]
    for pattern in wanted:
        if not any(fnmatchcase(name, pattern) for name in every):
            raise ConfigError(
                f"--no-decay {pattern} fits none of {type(task).__name__}'s {len(parameters)} parameters"
                f"{nearest(pattern, every)}. They are named {', '.join(every[:3])}, ...; * is any part of a name"
            )
    return tuple(
        name
        for name, parameter in parameters.items()
        if any(fnmatchcase(one, pattern) for one in named[id(parameter)] for pattern in wanted)
    )


def decay_groups(task: nn.Module, without: Collection[str]) -> list[dict[str, object]]:
    """Param groups of a task: what takes the optimizer's weight decay, then what takes none; empty ones left out."""
    parameters = dict(task.named_parameters())
    groups: list[dict[str, object]] = [
        {"params": [parameter for name, parameter in parameters.items() if name not in without]},
        {"params": [parameters[name] for name in without], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def build_optimizer(
    name: str, groups: ParamsT, *, lr: float, weight_decay: float, momentum: float, offload: bool, cuda: bool
) -> torch.optim.Optimizer:
    """The optimizer over `groups` (parameters, or param groups as torch takes them).

    adamw: weight decay is decoupled (Loshchilov and Hutter, https://arxiv.org/abs/1711.05101), `momentum` is not used.
    sgd: weight decay is an L2 penalty, as in torch. `offload` says that optimizer state is kept on the CPU or a disk.

    Raises:
        ConfigError: an unknown name, with the nearest known one.
        LaunchError: DeepSpeed's CPU Adam, which is compiled at first use, could not be built.
    """
    if name == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=momentum, weight_decay=weight_decay)
    if name != "adamw":
        raise ConfigError(f"there is no optimizer {name!r}{nearest(name, _NAMES)}. Optimizers: {', '.join(_NAMES)}")
    # Without a GPU nothing is gained from the CPU Adam, and compiling it takes over a minute.
    if offload and cuda:
        return _cpu_adam(groups, lr=lr, weight_decay=weight_decay)
    return torch.optim.AdamW(groups, lr=lr, weight_decay=weight_decay)


def _cpu_adam(groups: ParamsT, *, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    try:
        optimizer = DeepSpeedCPUAdam(groups, lr=lr, weight_decay=weight_decay, adamw_mode=True)
    except RuntimeError as error:
        raise LaunchError(
            f"DeepSpeed's CPU Adam, which offload uses, could not be built: {error.__cause__ or error}. It needs a C++ "
            "compiler and Python's headers on the machine that trains; a setup without offload does not use it"
        ) from error
    return cast("torch.optim.Optimizer", optimizer)
