"""Norms with statistics: held in eval mode while frozen, and kept in the weights' type."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from flash_strategies.batch_norms import hold_in_eval, match_statistics_to_weights


class Task(nn.Module):
    """Three batch norms, the last without statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 3), nn.BatchNorm1d(3, affine=False))
        self.neck = nn.BatchNorm1d(3, track_running_stats=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.neck(self.backbone(x))


def statistics(task: Task) -> dict[str, torch.Tensor]:
    return {name: buffer.clone() for name, buffer in task.named_buffers()}


def test_held_batch_norms_normalise_by_their_statistics_and_keep_them() -> None:
    task = Task()
    held = hold_in_eval(task, ["backbone.0"])
    before = statistics(task)
    task(torch.randn(8, 3))
    moved = {name for name, buffer in statistics(task).items() if not torch.equal(buffer, before[name])}
    assert moved == {f"backbone.2.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")}
    assert held == {"backbone.0"}


def test_batch_norms_return_to_the_tasks_own_mode_and_those_of_the_user_are_left_alone() -> None:
    task = Task()
    task.neck.eval()  # the user's own doing
    held = hold_in_eval(task, ["backbone.0", "backbone.2"])
    assert [module.training for module in (task.backbone[0], task.backbone[2], task.neck)] == [False, False, False]
    held = hold_in_eval(task, ["backbone.0"], before=held)
    assert [module.training for module in (task.backbone[0], task.backbone[2], task.neck)] == [False, True, False]
    task.eval()
    assert hold_in_eval(task, [], before=held) == frozenset()
    assert not task.backbone[0].training


def test_statistics_take_the_type_of_the_weights() -> None:
    task = Task()
    for parameter in task.parameters():
        parameter.data = parameter.data.bfloat16()
    with pytest.raises(RuntimeError, match=r"expected scalar type|[Mm]ixed"):
        task.backbone[0](torch.randn(8, 3).bfloat16())
    match_statistics_to_weights(task)
    assert task.backbone[0](torch.randn(8, 3).bfloat16()).dtype == torch.bfloat16
    assert task.backbone[0].running_mean.dtype == torch.bfloat16
    assert task.backbone[2].running_mean.dtype == torch.float32  # has no weights
