"""A loss that is no number ends the run, and so does one that is infinite, of either sign."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from flash_launch.errors import NonFiniteLossError
from flash_launch.loss_guard import LossGuard

FINETUNING = SimpleNamespace(
    transitions=SimpleNamespace(
        phase="unfrozen", engine=SimpleNamespace(optimizer=SimpleNamespace(param_groups=[{"lr": 0.1}]))
    )
)
TRAINER = SimpleNamespace(global_step=6, current_epoch=2)


@pytest.mark.parametrize(
    ("loss", "words"), [(float("nan"), "not a number"), (float("inf"), "infinite"), (float("-inf"), "infinite")]
)
def test_a_loss_that_is_not_finite_ends_the_run(loss: float, words: str) -> None:
    guard = LossGuard(FINETUNING)  # type: ignore[arg-type]
    with pytest.raises(NonFiniteLossError, match=f"the loss of step 7 is {words}.*in epoch 2, phase unfrozen"):
        guard.on_before_backward(TRAINER, None, torch.tensor(loss, requires_grad=True))  # type: ignore[arg-type]


def test_any_other_loss_passes() -> None:
    guard = LossGuard(FINETUNING)  # type: ignore[arg-type]
    for loss in (0.0, -1e30, 3e38):
        guard.on_before_backward(TRAINER, None, torch.tensor(loss))  # type: ignore[arg-type]
    guard.on_train_epoch_end(TRAINER, None)  # type: ignore[arg-type]
