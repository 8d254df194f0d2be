"""Flash's import path of what trains when: its names, over this project's strategies and callbacks."""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar

from flash_strategies.lightning import FlashBaseFinetuning, ScheduledFinetuning
from flash_strategies.registry import DEEPSPEED_SUFFIX

__all__ = [
    "FinetuningStrategies",
    "FlashBaseFinetuning",
    "FlashDeepSpeedFinetuning",
    "Freeze",
    "FreezeDeepSpeed",
    "FreezeUnfreeze",
    "FreezeUnfreezeDeepSpeed",
    "NoFreeze",
    "NoFreezeDeepSpeed",
    "UnfreezeMilestones",
    "UnfreezeMilestonesDeepSpeed",
]


class FinetuningStrategies(StrEnum):
    """The names of Flash's strategies, which are strings, too."""

    NO_FREEZE = "no_freeze"
    FREEZE = "freeze"
    FREEZE_UNFREEZE = "freeze_unfreeze"
    UNFREEZE_MILESTONES = "unfreeze_milestones"


class _Named(ScheduledFinetuning):
    """A strategy of Flash's as a callback."""

    strategy: ClassVar[FinetuningStrategies]
    suffix: ClassVar[str] = ""

    def __init__(self, strategy_metadata: object = None, train_bn: bool = True) -> None:
        name = f"{self.strategy}{self.suffix}"
        super().__init__(name if strategy_metadata is None else (name, strategy_metadata), train_bn=train_bn)
        self.strategy_metadata = strategy_metadata


class NoFreeze(_Named):
    """Everything trains from the start."""

    strategy = FinetuningStrategies.NO_FREEZE

    def __init__(self, train_bn: bool = True) -> None:
        """Nothing is frozen, so `train_bn` changes nothing."""
        super().__init__(None, train_bn)


class Freeze(_Named):
    """The backbone stays frozen."""

    strategy = FinetuningStrategies.FREEZE

    def __init__(self, train_bn: bool = True) -> None:
        """With `train_bn`, the backbone's batch norms train all the same."""
        super().__init__(None, train_bn)


class FreezeUnfreeze(_Named):
    """The backbone is frozen until an epoch."""

    strategy = FinetuningStrategies.FREEZE_UNFREEZE

    def __init__(self, strategy_metadata: int, train_bn: bool = True) -> None:
        """Take the epoch.

        Args:
            strategy_metadata: the first epoch that trains the backbone.
            train_bn: the backbone's batch norms train before, too.

        Raises:
            StrategyTypeError, StrategyValueError: no epoch.
        """
        super().__init__(_needed(strategy_metadata), train_bn)


class UnfreezeMilestones(_Named):
    """The last layers unfreeze at one epoch, the rest at a later one."""

    strategy = FinetuningStrategies.UNFREEZE_MILESTONES

    def __init__(self, strategy_metadata: tuple[tuple[int, int], int], train_bn: bool = True) -> None:
        """Take the two epochs and the number of layers.

        Args:
            strategy_metadata: ((3, 8), 2): the last 2 layers unfreeze at epoch 3, the rest at epoch 8.
            train_bn: the backbone's batch norms train before, too.

        Raises:
            StrategyTypeError, StrategyValueError: something else.
        """
        super().__init__(_needed(strategy_metadata), train_bn)


class NoFreezeDeepSpeed(NoFreeze):
    """NoFreeze, under DeepSpeed only."""

    suffix = DEEPSPEED_SUFFIX


class FreezeDeepSpeed(Freeze):
    """Freeze, under DeepSpeed only."""

    suffix = DEEPSPEED_SUFFIX


class FreezeUnfreezeDeepSpeed(FreezeUnfreeze):
    """FreezeUnfreeze, under DeepSpeed only."""

    suffix = DEEPSPEED_SUFFIX


class UnfreezeMilestonesDeepSpeed(UnfreezeMilestones):
    """UnfreezeMilestones, under DeepSpeed only."""

    suffix = DEEPSPEED_SUFFIX


class FlashDeepSpeedFinetuning(FlashBaseFinetuning):
    """Base of custom strategies, as FlashBaseFinetuning: that one stores and restores under DeepSpeed, too."""


def _needed(metadata: object) -> object:
    """The metadata of a strategy that needs some: None is refused, and does not stand for defaults."""
    return () if metadata is None else metadata
