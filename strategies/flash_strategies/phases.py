"""A strategy's phases resolved on a task: which parameters and layers train in each."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from flash_strategies.schedule import FinetuningStrategy, Phase, freezes, validated_phases
from flash_strategies.selection import Selection, freezable_modules, frozen_by_user, resolve


@dataclass(frozen=True)
class ResolvedPhase:
    """A phase and what it means for one task."""

    phase: Phase
    """Name, first epoch and what trains."""
    selection: Selection
    """Parameter names, layers and batch norms."""


def resolve_phases(
    task: nn.Module, strategy: FinetuningStrategy, *, max_epochs: int | None, train_bn: bool = True
) -> tuple[ResolvedPhase, ...]:
    """All phases of a strategy on a task, before anything is frozen.

    Args:
        task: with `modules_to_freeze()` or a `backbone`.
        strategy: what trains when.
        max_epochs: epochs of the run; None where that is not known.
        train_bn: keep the batch norms of the frozen part trainable.

    Raises:
        StrategyValueError, StrategyTypeError, ModulesToFreezeError: the strategy does not fit the run or the task.
    """
    phases = validated_phases(strategy, max_epochs)
    modules = freezable_modules(task) if freezes(phases) else ()
    always_frozen = frozen_by_user(task, modules)
    return tuple(
        ResolvedPhase(phase, resolve(task, modules, phase.what, train_bn=train_bn, always_frozen=always_frozen))
        for phase in phases
    )


def phase_at(phases: tuple[ResolvedPhase, ...], epoch: int) -> ResolvedPhase:
    """The phase in which an epoch (from 0) trains."""
    return max((p for p in phases if p.phase.first_epoch <= epoch), key=lambda p: p.phase.first_epoch)
