"""The Lightning front door: callbacks that run a strategy, and two Lightning strategies that can be rebuilt."""

from flash_strategies.lightning import one_lightning  # noqa: F401 - first, as all others import Lightning

# isort: split
from flash_strategies.lightning.callback import FinetuningCallback, ScheduledFinetuning, finetuning_callback
from flash_strategies.lightning.custom import FlashBaseFinetuning
from flash_strategies.lightning.strategies import FinetuningDDPStrategy, FinetuningDeepSpeedStrategy

__all__ = [
    "FinetuningCallback",
    "FinetuningDDPStrategy",
    "FinetuningDeepSpeedStrategy",
    "FlashBaseFinetuning",
    "ScheduledFinetuning",
    "finetuning_callback",
]
