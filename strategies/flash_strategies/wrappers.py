"""Wrappers of others around or in a task, as Accelerate's `prepare` makes them: they would not follow a transition."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from weakref import WeakSet

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from flash_strategies.errors import TransitionError

OURS: WeakSet[DistributedDataParallel] = WeakSet()
"""Those that Finetuner made."""

_WRAPPERS = ("DistributedDataParallel", "DataParallel", "FullyShardedDataParallel", "DeepSpeedEngine")


def refuse_wrapped(task: nn.Module, cure: str) -> None:
    """Refuse a task that is, or holds, a wrapper.

    Args:
        task: what is to be trained.
        cure: ends the message.

    Raises:
        TransitionError: names the wrapper.
    """
    for name, module in task.named_modules():
        if (kind := _kind(module)) is not None:
            where = f"{type(task).__name__}.{name} is" if name else "the task is already"
            raise TransitionError(
                f"{where} wrapped in {kind}, which averages the gradients of what trained when it was made, and would "
                f"leave what unfreezes later different on every rank: {cure}"
            )


def refuse_second_ddp(task: nn.Module) -> None:
    """Refuse a DistributedDataParallel around the task that Finetuner did not make.

    Raises:
        TransitionError: there is one.
    """
    if any(_foreign(task)):
        gc.collect()  # it may be one that nobody has any more
        if any(_foreign(task)):
            raise TransitionError(
                "there is a second DistributedDataParallel around the task, which does not follow a transition: leave "
                "the wrapping to Finetuner, and call the model that ddp() or deepspeed() and begin_epoch() give (with "
                "Accelerate, use flash_strategies.accelerate, or prepare the data loaders only, not the model)"
            )


def _kind(module: nn.Module) -> str | None:
    return next((base.__name__ for base in type(module).__mro__ if base.__name__ in _WRAPPERS), None)


def _foreign(task: nn.Module) -> Iterator[bool]:
    for found in gc.get_objects():
        # by type: isinstance would wake up proxies; one that was replaced is without its reducer, see engines/ddp.py
        if issubclass(type(found), DistributedDataParallel) and found not in OURS and "reducer" in vars(found):
            yield any(module is task for module in found.modules())
