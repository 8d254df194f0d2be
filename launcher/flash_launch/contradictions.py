"""Options against each other, the strategies and the setups: what can be told to be wrong without torch."""

from flash_launch.config import RunConfig
from flash_launch.errors import ConfigError
from flash_launch.metric_goal import MetricGoal
from flash_launch.options import option_name
from flash_launch.trainer_options import check_trainer

__all__ = ["check_options"]

_SUFFIX = "_deepspeed"

_OWN_OPTIONS: dict[str, tuple[str, ...]] = {
    "no_freeze": (),
    "freeze": (),
    "freeze_unfreeze": ("--unfreeze-epoch",),
    "unfreeze_milestones": ("--milestones", "--num-layers"),
}
"""Flash's strategies, which take no --strategy-args, and the options they take."""

_LEAST_EPOCHS = {
    "freeze_unfreeze": (2, "--unfreeze-epoch 0"),
    "unfreeze_milestones": (3, "two epochs of the run with --milestones"),
}
"""Epochs that the defaults of a strategy need, and what to give instead."""


def check_options(config: RunConfig) -> None:
    """Check names, epochs and contradictions.

    Raises:
        FlashLaunchError: StrategyNameError, StrategyTypeError, StrategyValueError, SetupError or ConfigError.
    """
    _check_arguments(config)
    _check_keep_best(config)
    _check_epochs(config)
    check_trainer(config)
    if not config.own_strategy:  # those are looked at where they may import torch
        _check_strategy(config)
    _check_engine(config)


def _check_arguments(config: RunConfig) -> None:
    """Options that would be ignored because of what is, or is not, the user's own."""
    for name in ("backbone", "weights"):
        if config.task is not None and (value := getattr(config, name)) != config.default(name):
            raise ConfigError(
                f"{option_name(name)} {value} is for the built-in image classification, and --task {config.task} "
                f"brings its own: leave {option_name(name)} out, or give it to the task with --task-args"
            )
    if config.task_args and config.task is None:
        raise ConfigError(
            "--task-args was given without --task: name the task that takes them, for example --task my_task:MyTask"
        )
    if config.data_args and ":" not in (config.data or ""):
        raise ConfigError(
            f"--data-args was given, but --data {config.data or 'digits'} takes none: leave them out, or name a "
            "LightningDataModule of your own, for example --data my_data:MyData"
        )
    options = _OWN_OPTIONS.get(config.strategy.removesuffix(_SUFFIX))
    if config.strategy_args and options is not None:
        raise ConfigError(
            f"--strategy-args was given, but --strategy {config.strategy} takes none: leave them out"
            + (f", and give {' and '.join(options)}" if options else "")
        )


def _check_keep_best(config: RunConfig) -> None:
    if config.keep_best is None:
        return
    MetricGoal.parse(config.keep_best)
    if config.checkpoint_every[0] == 0:
        raise ConfigError(
            f"--keep-best {config.keep_best} needs checkpoints, and --checkpoint-every 0 saves none: leave one out"
        )


def _check_epochs(config: RunConfig) -> None:
    """The epochs of Flash's strategies, in the command line's words."""
    last, told = config.unfreeze_epoch, f"--unfreeze-epoch {config.unfreeze_epoch}"
    if config.milestones is not None:
        last, told = config.milestones[1], f"--milestones {config.milestones[0]} {config.milestones[1]}"
    end = config.max_epochs
    if last and last >= end:
        raise ConfigError(
            f"{told} is past the end: epochs count from 0, so --max-epochs {end} ends with epoch {end - 1}: "
            f"give --max-epochs {last + 1} or more, or an earlier epoch"
        )
    least, instead = _LEAST_EPOCHS.get(config.strategy.removesuffix(_SUFFIX), (1, ""))
    if last is None and end < least:
        raise ConfigError(
            f"--max-epochs {end} is too few for --strategy {config.strategy}, which unfreezes during the run: give "
            f"--max-epochs {least} or more, or {instead}"
        )


def _check_strategy(config: RunConfig) -> None:
    from flash_strategies.errors import FlashLaunchError
    from flash_strategies.registry import strategy_names
    from flash_strategies.schedule import validated_phases

    try:
        validated_phases(config.strategy_spec().strategy, config.max_epochs)
    except FlashLaunchError as error:
        if config.strategy in strategy_names():
            raise
        raise ConfigError(f"--strategy {config.strategy}: {error}, or module:Class for one of your own") from error
    except Exception as error:  # one that another package brings
        raise ConfigError(
            f"--strategy {config.strategy} cannot be used: {type(error).__name__}: {error}"
            + (f" (it was given --strategy-args {config.strategy_args})" if config.strategy_args else "")
        ) from error


def _check_engine(config: RunConfig) -> None:
    from flash_launch.setups import load_setup

    engine = load_setup(config.setup_name).engine
    if config.own_strategy:  # has no `_deepspeed` name, so --setup alone decides
        return
    if engine == "deepspeed" and not config.deepspeed:
        raise ConfigError(
            f"--strategy {config.strategy} runs on ddp, but --setup {config.setup} is a DeepSpeed setup: "
            f"give --strategy {config.strategy}{_SUFFIX}, or leave --setup out"
        )
    if engine != "deepspeed" and config.deepspeed:
        raise ConfigError(
            f"--strategy {config.strategy} runs on a ZeRO setup, but --setup {config.setup} is not one: "
            f"give --strategy {config.strategy.removesuffix(_SUFFIX)}, or --setup zero2"
        )
