"""Optimizers of the run: torch's AdamW and SGD, and DeepSpeed's CPU Adam where state is offloaded from a GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch

from flash_launch.errors import ConfigError, LaunchError
from flash_launch.setup_keys import nearest

if TYPE_CHECKING:
    from torch.optim.optimizer import ParamsT

__all__ = ["build_optimizer", "optimizer_names"]

_NAMES = ("adamw", "sgd")


def optimizer_names() -> tuple[str, ...]:
    """What `--optimizer` takes."""
    return _NAMES


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
