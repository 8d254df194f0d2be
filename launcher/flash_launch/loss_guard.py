"""Stops a run whose loss is no longer a number: what comes after it is lost, and each step of it costs."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import NoReturn

import pytorch_lightning as pl
import torch

from flash_launch.errors import NonFiniteLossError
from flash_strategies.lightning import FinetuningCallback

__all__ = ["LossGuard"]

_MOST_PENDING = 64


@dataclass(frozen=True)
class _Pending:
    """A loss on its way from the GPU."""

    step: int
    value: torch.Tensor
    """On the host, in pinned memory; to be read once the event has come."""
    event: torch.cuda.Event


class LossGuard(pl.Callback):
    """Looks at every loss before its backward pass, on every rank.

    On a GPU nothing waits for it: the loss is copied beside the work that goes on, and read when it has come, which is
    a few steps later at most. With fp16 an infinite gradient is normal, and the loss scale goes down; a loss is not.
    """

    def __init__(self, finetuning: FinetuningCallback) -> None:
        """Take the phase's name and the learning rates from the callback that makes the transitions."""
        self._finetuning = finetuning
        self._pending: deque[_Pending] = deque()

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: torch.Tensor) -> None:
        """Look at this loss, or at those that have come from the GPU by now."""
        loss = loss.detach()
        if loss.numel() != 1:
            return
        if loss.device.type != "cuda":
            self._judge(trainer, trainer.global_step, loss)
            return
        value = torch.empty(1, dtype=loss.dtype, pin_memory=True)
        value.copy_(loss.reshape(1), non_blocking=True)
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()
        self._pending.append(_Pending(trainer.global_step, value, event))
        self._look(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look at all that are left: here ranks wait anyway."""
        self.catch_up(trainer)

    def catch_up(self, trainer: pl.Trainer) -> None:
        """Look at all losses up to now, and wait for those still on their way.

        Raises:
            NonFiniteLossError: one is no number: what came of it must not be saved.
        """
        self._look(trainer, wait=True)

    def _look(self, trainer: pl.Trainer, *, wait: bool = False) -> None:
        while self._pending:
            first = self._pending[0]
            if wait or len(self._pending) > _MOST_PENDING:
                first.event.synchronize()
            elif not first.event.query():  # type: ignore[no-untyped-call]
                return
            self._pending.popleft()
            self._judge(trainer, first.step, first.value)

    def _judge(self, trainer: pl.Trainer, step: int, loss: torch.Tensor) -> None:
        value = float(loss.double().numpy().reshape(()))  # on the host by now: no question to the device
        if not math.isfinite(value):
            self._stop(trainer, step, value)

    def _stop(self, trainer: pl.Trainer, step: int, value: float) -> NoReturn:
        transitions = self._finetuning.transitions
        rates = sorted({float(group["lr"]) for group in transitions.engine.optimizer.param_groups})
        told = " to ".join(f"{rate:.3g}" for rate in (rates if len(rates) < 3 else (rates[0], rates[-1])))
        raise NonFiniteLossError(
            f"the loss of step {step + 1} is {'not a number' if math.isnan(value) else 'infinite'} ({value}), in epoch "
            f"{trainer.current_epoch}, phase {transitions.phase}, at a learning rate of {told}. Lower --lr, warm it up "
            "(--warmup-steps) or add --gradient-clip 1; use --precision bf16 instead of fp16; look at the data of this "
            "step (empty or broken samples, labels out of range) and at divisions and logarithms in the loss. A "
            "changed learning rate needs a new run"
        )
