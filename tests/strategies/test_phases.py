"""Phases resolved on a task, before anything is frozen, and the phase of an epoch."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from torch import nn

from flash_strategies import Everything, FreezeUnfreeze, Matching, NoFreeze, Nothing, Phase, UnfreezeMilestones
from flash_strategies.errors import ModulesToFreezeError, StrategyValueError
from flash_strategies.phases import phase_at, resolve_phases


class Task(nn.Module):
    """A backbone of a layer, a batch norm and a layer; a head."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2))
        self.head = nn.Linear(2, 1)


HEAD = {"head.weight", "head.bias"}
NORM = {"backbone.1.weight", "backbone.1.bias"}
LAST = {"backbone.2.weight", "backbone.2.bias"}
ALL = {name for name, _ in Task().named_parameters()}


@dataclass(frozen=True)
class Listed:
    """A strategy of given phases."""

    given: tuple[Phase, ...]
    name: str = "listed"

    def phases(self, max_epochs: int | None) -> tuple[Phase, ...]:
        return self.given


def test_milestones_phase_by_phase_and_epoch_by_epoch() -> None:
    phases = resolve_phases(Task(), UnfreezeMilestones((1, 3), 1), max_epochs=5, train_bn=False)
    by_epoch = [phase_at(phases, epoch) for epoch in range(5)]
    assert [set(found.selection.trainable) for found in by_epoch] == [HEAD, HEAD | LAST, HEAD | LAST, ALL, ALL]
    assert [found.selection.eval_batch_norms for found in by_epoch] == [("backbone.1",)] * 3 + [()] * 2
    assert [found.phase.name for found in by_epoch] == ["frozen", "last_layers", "last_layers", "unfrozen", "unfrozen"]
    for found in phases:
        assert set(found.selection.trainable) | set(found.selection.frozen) == ALL
        assert not set(found.selection.trainable) & set(found.selection.frozen)


def test_train_bn_trains_the_batch_norms_of_the_frozen_part() -> None:
    frozen, unfrozen = resolve_phases(Task(), FreezeUnfreeze(1), max_epochs=2, train_bn=True)
    assert set(frozen.selection.trainable) == HEAD | NORM
    assert frozen.selection.eval_batch_norms == ()
    assert set(unfrozen.selection.trainable) == ALL


def test_phases_that_freeze_again() -> None:
    strategy = Listed(
        (Phase("a", 0, Matching(("backbone.2.*",))), Phase("b", 2, Everything()), Phase("c", 3, Nothing()))
    )
    phases = resolve_phases(Task(), strategy, max_epochs=None, train_bn=False)
    assert [set(found.selection.trainable) for found in phases] == [HEAD | LAST, ALL, HEAD]
    assert [phase_at(phases, epoch).phase.name for epoch in (0, 1, 2, 3, 99)] == ["a", "a", "b", "c", "c"]


def test_what_the_user_froze_outside_of_the_backbone_stays_so_in_every_phase() -> None:
    task = Task()
    task.head.bias.requires_grad_(False)
    for parameter in task.backbone.parameters():  # inside of it, the strategy decides
        parameter.requires_grad_(False)
    frozen, unfrozen = resolve_phases(task, FreezeUnfreeze(1), max_epochs=2, train_bn=False)
    assert set(frozen.selection.trainable) == {"head.weight"}
    assert set(unfrozen.selection.trainable) == ALL - {"head.bias"}


def test_nothing_is_changed_by_resolving() -> None:
    task = Task()
    resolve_phases(task, FreezeUnfreeze(1), max_epochs=2, train_bn=False)
    assert all(parameter.requires_grad for parameter in task.parameters())
    assert all(module.training for module in task.modules())


def test_a_task_without_backbone_can_train_with_no_freeze_only() -> None:
    task = nn.Sequential(nn.Linear(2, 2))
    (phase,) = resolve_phases(task, NoFreeze(), max_epochs=1)
    assert phase.selection.trainable == ("0.weight", "0.bias")
    with pytest.raises(ModulesToFreezeError, match="modules_to_freeze"):
        resolve_phases(task, FreezeUnfreeze(0 + 1), max_epochs=2)


def test_an_epoch_past_the_end_is_refused() -> None:
    with pytest.raises(StrategyValueError, match="epoch 3 never begins"):
        resolve_phases(Task(), FreezeUnfreeze(3), max_epochs=3)
