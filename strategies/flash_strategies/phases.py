"""A strategy's phases resolved on a task: which parameters and layers train in each."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from torch import nn

from flash_strategies.errors import StrategyValueError
from flash_strategies.handover import Handover, handed_over
from flash_strategies.schedule import FinetuningStrategy, Phase, freezes, validated_phases
from flash_strategies.selection import Selection, freezable_modules, resolve


@dataclass(frozen=True)
class ResolvedPhase:
    """A phase and what it means for one task."""

    phase: Phase
    """Name, first epoch and what trains."""
    selection: Selection
    """Parameter names, layers and batch norms."""

    def unfreezes(self, before: ResolvedPhase) -> frozenset[str]:
        """Names of the parameters that train in this phase and did not in the one before."""
        return frozenset(self.selection.trainable) - frozenset(before.selection.trainable)


def resolve_phases(
    task: nn.Module, strategy: FinetuningStrategy, *, max_epochs: int | None, train_bn: bool = True
) -> tuple[ResolvedPhase, ...]:
    """All phases of a strategy on a task, before anything is frozen. See `find_handover` for what was frozen before.

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
    always_frozen = frozenset(handed_over(task, modules, phases, train_bn=train_bn).kept)
    resolved = tuple(
        ResolvedPhase(phase, resolve(task, modules, phase.what, train_bn=train_bn, always_frozen=always_frozen))
        for phase in phases
    )
    for before, now in pairwise(resolved):
        if now.phase.rate is not None and not now.unfreezes(before):
            raise StrategyValueError(
                f"phase {now.phase.name!r} unfreezes nothing of {type(task).__name__} and has a rate "
                f"({now.phase.rate}): leave the rate out"
            )
    return resolved


def find_handover(
    task: nn.Module, strategy: FinetuningStrategy, *, max_epochs: int | None, train_bn: bool = True
) -> Handover:
    """What of a task is frozen before its first phase is applied, and what `resolve_phases` makes of it.

    Raises:
        StrategyValueError, StrategyTypeError, ModulesToFreezeError: as `resolve_phases`.
    """
    phases = validated_phases(strategy, max_epochs)
    return handed_over(task, freezable_modules(task) if freezes(phases) else (), phases, train_bn=train_bn)


def phase_at(phases: tuple[ResolvedPhase, ...], epoch: int) -> ResolvedPhase:
    """The phase in which an epoch (from 0) trains."""
    return max((p for p in phases if p.phase.first_epoch <= epoch), key=lambda p: p.phase.first_epoch)
