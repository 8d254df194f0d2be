"""Weights that the user froze and writes to, such as a teacher that follows the backbone by momentum."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from torch import nn

from flash_strategies import Finetuner
from flash_strategies.errors import ProofError


class Distilled(nn.Module):
    """A backbone, a head, and a teacher that the loop moves."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Linear(4, 4)
        self.head = nn.Linear(4, 1)
        self.teacher = copy.deepcopy(self.head).requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.backbone(x)) - self.teacher(x)


@torch.no_grad()
def follow(task: Distilled) -> None:
    for teacher, student in zip(task.teacher.parameters(), task.head.parameters(), strict=True):
        teacher.lerp_(student, 0.5)


def train(finetuner: Finetuner, task: Distilled, optimizer: torch.optim.Optimizer, epochs: int) -> None:
    model: nn.Module = task
    for epoch in range(epochs):
        model = finetuner.begin_epoch(epoch)
        for _ in range(2):
            model(torch.ones(2, 4)).square().mean().backward()
            finetuner.before_step()
            optimizer.step()
            optimizer.zero_grad()
            finetuner.after_step()
            follow(task)
        finetuner.end_epoch()


def test_a_teacher_moves_through_all_phases_and_that_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    task = Distilled()
    begun = task.teacher.weight.clone()
    finetuner = Finetuner(task, ("freeze_unfreeze", 1), max_epochs=3)
    optimizer = torch.optim.SGD(task.parameters(), lr=0.1)
    finetuner.ddp(optimizer)
    with caplog.at_level(logging.INFO, logger="flash_strategies"):
        train(finetuner, task, optimizer, 3)
    assert not torch.equal(task.teacher.weight, begun)
    assert [r.message for r in caplog.records if "writes to" in r.message] == [
        "the task itself writes to parameters teacher.weight, teacher.bias, frozen from the start: equal on all ranks"
    ]


def test_a_checkpoint_knows_what_the_teacher_is_now() -> None:
    task = Distilled()
    finetuner = Finetuner(task, "freeze", max_epochs=1)
    finetuner.ddp(torch.optim.SGD(task.parameters(), lr=0.1))
    before = dict(finetuner.transitions.frozen())
    with torch.no_grad():
        task.teacher.weight.add_(1)
    after = finetuner.transitions.frozen()
    assert {name for name in before if before[name] != after[name]} == {"teacher.weight"}


def test_what_the_strategy_froze_must_still_stand(caplog: pytest.LogCaptureFixture) -> None:
    task = Distilled()
    finetuner = Finetuner(task, "freeze", max_epochs=1)
    finetuner.ddp(torch.optim.SGD(task.parameters(), lr=0.1))
    with torch.no_grad():
        task.backbone.weight.add_(1)
    with pytest.raises(ProofError, match=r"backbone\.weight moved while frozen"):
        finetuner.end_epoch()
