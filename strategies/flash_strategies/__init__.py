"""Finetuning strategies: schedules of what trains when, and the transitions that rebuild the engines across ranks."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flash_strategies.errors import (
        AgreementError,
        FlashLaunchError,
        ModulesToFreezeError,
        ProofError,
        StrategyNameError,
        StrategyTypeError,
        StrategyValueError,
        TransitionError,
        UnsupportedVersionError,
    )
    from flash_strategies.freeze import Freeze
    from flash_strategies.freeze_unfreeze import FreezeUnfreeze
    from flash_strategies.lightning.callback import ScheduledFinetuning, finetuning_callback
    from flash_strategies.lightning.custom import FlashBaseFinetuning
    from flash_strategies.no_freeze import NoFreeze
    from flash_strategies.plain import Finetuner
    from flash_strategies.rate import Rate
    from flash_strategies.registry import StrategySpec, parse_strategy, register_strategy, strategy_names, with_rate
    from flash_strategies.schedule import (
        Everything,
        FinetuningStrategy,
        LastLayers,
        Matching,
        Nothing,
        Phase,
        freezes,
        validated_phases,
    )
    from flash_strategies.selection import (
        Layer,
        Selection,
        freezable_layers,
        freezable_modules,
        frozen_by_user,
        resolve,
    )
    from flash_strategies.unfreeze_milestones import UnfreezeMilestones

__all__ = [
    "AgreementError",
    "Everything",
    "Finetuner",
    "FinetuningStrategy",
    "FlashBaseFinetuning",
    "FlashLaunchError",
    "Freeze",
    "FreezeUnfreeze",
    "LastLayers",
    "Layer",
    "Matching",
    "ModulesToFreezeError",
    "NoFreeze",
    "Nothing",
    "Phase",
    "ProofError",
    "Rate",
    "ScheduledFinetuning",
    "Selection",
    "StrategyNameError",
    "StrategySpec",
    "StrategyTypeError",
    "StrategyValueError",
    "TransitionError",
    "UnfreezeMilestones",
    "UnsupportedVersionError",
    "finetuning_callback",
    "freezable_layers",
    "freezable_modules",
    "freezes",
    "frozen_by_user",
    "parse_strategy",
    "register_strategy",
    "resolve",
    "strategy_names",
    "validated_phases",
    "with_rate",
]

# Which module has which names. They are imported when asked for: the launcher's processes read flash_strategies.errors
# and the schedules, and must never import torch.
_HOMES = {
    "errors": (
        "AgreementError",
        "FlashLaunchError",
        "ModulesToFreezeError",
        "ProofError",
        "StrategyNameError",
        "StrategyTypeError",
        "StrategyValueError",
        "TransitionError",
        "UnsupportedVersionError",
    ),
    "freeze": ("Freeze",),
    "freeze_unfreeze": ("FreezeUnfreeze",),
    "lightning.callback": ("ScheduledFinetuning", "finetuning_callback"),
    "lightning.custom": ("FlashBaseFinetuning",),
    "no_freeze": ("NoFreeze",),
    "plain": ("Finetuner",),
    "rate": ("Rate",),
    "registry": ("StrategySpec", "parse_strategy", "register_strategy", "strategy_names", "with_rate"),
    "schedule": (
        "Everything",
        "FinetuningStrategy",
        "LastLayers",
        "Matching",
        "Nothing",
        "Phase",
        "freezes",
        "validated_phases",
    ),
    "selection": ("Layer", "Selection", "freezable_layers", "freezable_modules", "frozen_by_user", "resolve"),
    "unfreeze_milestones": ("UnfreezeMilestones",),
}


if not TYPE_CHECKING:  # else a type checker would take any name for one of ours

    def __getattr__(name: str) -> object:
        for home, names in _HOMES.items():
            if name in names:
                return getattr(import_module(f"{__name__}.{home}"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
