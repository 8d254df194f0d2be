"""flash-launch: finetuning of large backbones over many ranks. `import flash_launch as flash` gives Flash's API."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flash_launch.training.trainer import Trainer

__version__ = "0.1.0"
__all__ = ["Trainer"]


if not TYPE_CHECKING:  # else a type checker would take any name for one of ours

    def __getattr__(name: str) -> object:
        # when it is asked for: the command imports this package and must never import torch
        if name == "Trainer":
            import flash_strategies.lightning  # noqa: F401 - before all that imports Lightning under one of its names

            # isort: split
            from flash_launch.training.trainer import Trainer

            return Trainer
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
