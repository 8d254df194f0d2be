"""The launcher's errors, below the root they share with the strategies.

FlashLaunchError (flash_strategies.errors)
├── ConfigError(ValueError)   options, files of options, contradictions
├── SetupError(ValueError)    templates of setups, their keys and their arithmetic
├── TaskError(ValueError)     a task that cannot be found or built
├── DataError(ValueError)     data that are missing, empty or unreadable
├── WeightsError(ValueError)  pretrained weights that are missing or do not fit
├── SlurmError(RuntimeError)  what Slurm says no to, or no Slurm
├── NonFiniteLossError(ArithmeticError) a loss that is not a number, or infinite
├── HostError(RuntimeError)   hosts that ranks cannot be started on
├── LaunchError(RuntimeError) ranks that could not be started
│   └── SlurmUnavailable      the controller does not answer
└── FencedError(RuntimeError) an attempt of a run that another one has superseded

CheckpointError is flash_strategies'.
"""

from flash_strategies.errors import CheckpointError, FlashLaunchError

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "FencedError",
    "FlashLaunchError",
    "HostError",
    "LaunchError",
    "NonFiniteLossError",
    "SetupError",
    "SlurmError",
    "SlurmUnavailable",
    "TaskError",
    "WeightsError",
]


class ConfigError(FlashLaunchError, ValueError):
    """Options that are wrong, unknown or contradict each other."""


class SetupError(FlashLaunchError, ValueError):
    """A setup's template, its keys or its batch arithmetic."""


class TaskError(FlashLaunchError, ValueError):
    """A task that cannot be found or built."""


class DataError(FlashLaunchError, ValueError):
    """Data that are missing, empty or unreadable."""


class WeightsError(FlashLaunchError, ValueError):
    """Pretrained weights that are missing or do not fit."""


class NonFiniteLossError(FlashLaunchError, ArithmeticError):
    """A loss that is not a number, or infinite."""


class LaunchError(FlashLaunchError, RuntimeError):
    """Ranks that could not be started."""


class HostError(FlashLaunchError, RuntimeError):
    """Hosts that cannot be reached, or where ranks cannot be started."""


class SlurmUnavailable(LaunchError):
    """Slurm's controller does not answer."""


class SlurmError(FlashLaunchError, RuntimeError):
    """What Slurm says no to; or its commands are not on this machine."""


class FencedError(FlashLaunchError, RuntimeError):
    """An attempt of a run that another one has superseded."""
