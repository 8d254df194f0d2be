"""The errors a user can cause or meet, as one tree.

FlashLaunchError
├── StrategyNameError(ValueError)       a strategy nobody registered
├── StrategyTypeError(TypeError)        a strategy or its metadata of the wrong type or shape
├── StrategyValueError(ValueError)      metadata of the right type that make no sense
├── ModulesToFreezeError(AttributeError) a task that does not say what its backbone is
├── ParameterError(ValueError)          a parameter, or a module, that an engine cannot hold
├── TransitionError(RuntimeError)       a transition that could not be made
│   ├── AgreementError                  ranks that differ about the plan, or did not come in time
│   └── ProofError                      ranks, frozen or newly unfrozen parameters that are not as promised
├── CheckpointError(RuntimeError)  a checkpoint that cannot be written or read, or does not fit
└── UnsupportedVersionError(RuntimeError) a library whose private parts were not read at this version

`flash_launch.errors` carries the tree on for the launcher.
"""


class FlashLaunchError(Exception):
    """Root of every error that is told to the user without a traceback."""


class StrategyNameError(FlashLaunchError, ValueError):
    """A strategy name that nobody registered."""


class StrategyTypeError(FlashLaunchError, TypeError):
    """A strategy, or its metadata, of the wrong type or shape."""


class StrategyValueError(FlashLaunchError, ValueError):
    """Metadata of the right type whose values make no sense."""


class ModulesToFreezeError(FlashLaunchError, AttributeError):
    """A task with neither `modules_to_freeze()` nor a `backbone`."""


class ParameterError(FlashLaunchError, ValueError):
    """A parameter, buffer or module that the ranks cannot hold in the way that was asked for."""


class TransitionError(FlashLaunchError, RuntimeError):
    """A transition that could not be made."""


class AgreementError(TransitionError):
    """Ranks differ about the plan, or did not come in time."""


class ProofError(TransitionError):
    """Ranks are not equal, a frozen parameter moved, or an unfrozen one did not."""


class CheckpointError(FlashLaunchError, RuntimeError):
    """A checkpoint that cannot be written, or that is damaged, or that does not fit."""


class UnsupportedVersionError(FlashLaunchError, RuntimeError):
    """A library at a version whose private parts were not read."""
