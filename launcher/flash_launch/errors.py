"""The launcher's errors, below the root they share with the strategies.

FlashLaunchError (flash_strategies.errors)
├── ConfigError(ValueError)   options, files of options, contradictions
├── SetupError(ValueError)    templates of setups, their keys and their arithmetic
├── TaskError(ValueError)     a task that cannot be found or built
├── DataError(ValueError)     data that are missing, empty or unreadable
├── WeightsError(ValueError)  pretrained weights that are missing or do not fit
├── LaunchError(RuntimeError) ranks that could not be started
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
    "LaunchError",
    "SetupError",
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


class LaunchError(FlashLaunchError, RuntimeError):
    """Ranks that could not be started."""


class FencedError(FlashLaunchError, RuntimeError):
    """An attempt of a run that another one has superseded."""
