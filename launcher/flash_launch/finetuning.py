"""What trains when: the run's strategy as a Lightning callback, or the user's own, and its phases on the task."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

import pytorch_lightning as pl
from pytorch_lightning.callbacks import BaseFinetuning

from flash_launch.config import RunConfig
from flash_launch.errors import ConfigError, FlashLaunchError, TaskError
from flash_launch.tasks.own import build_own, load_named, users_code
from flash_strategies import reporting
from flash_strategies.handover import Handover, handed_over
from flash_strategies.lightning import FinetuningCallback, FlashBaseFinetuning, ScheduledFinetuning
from flash_strategies.phases import ResolvedPhase, find_handover, resolve_phases
from flash_strategies.schedule import Counting, FinetuningStrategy, freezes, validated_phases
from flash_strategies.selection import Layer, freezable_layers, freezable_modules

__all__ = ["build_finetuning", "first_trainable", "handover_on", "phases_on"]

_WANTED = "finetuning callback or strategy"


def build_finetuning(config: RunConfig) -> FinetuningCallback:
    """The callback that carries out the run's strategy.

    Raises:
        FlashLaunchError: a strategy of one's own that cannot be found or built, or is no strategy and no callback.
    """
    if not config.own_strategy:
        return ScheduledFinetuning(config.strategy_spec(), train_bn=config.train_bn, timeout=config.timeout)
    given = _built(config)
    if isinstance(given, FinetuningCallback):
        if not config.train_bn:
            raise ConfigError(
                f"--train-bn false does not reach --strategy {config.strategy}, which freezes by itself: leave it out, "
                "and give train_bn to the callback"
            )
        if config.backbone_rate() is not None:
            raise ConfigError(
                f"--backbone-lr and --backbone-lr-ratio do not reach --strategy {config.strategy}, which unfreezes by "
                "itself: leave them out, and let the callback unfreeze with unfreeze_and_add_param_group(..., lr=...)"
            )
        given.timeout = config.timeout
        return given
    if not isinstance(given, FinetuningStrategy):
        raise TaskError(
            f"--strategy {config.strategy} gives a {type(given).__name__}, which is no strategy: it needs a `name`, a "
            "text, and a method phases(max_epochs) that gives a tuple of flash_strategies.Phase"
        )
    rate = config.backbone_rate()
    return ScheduledFinetuning(given, train_bn=config.train_bn, rate=rate, timeout=config.timeout)


def phases_on(task: pl.LightningModule, config: RunConfig, finetuning: FinetuningCallback) -> tuple[ResolvedPhase, ...]:
    """The strategy's phases on a task; none for a callback of the user's own, which decides epoch by epoch.

    Raises:
        FlashLaunchError: the strategy does not fit the run or the task.
    """
    if not isinstance(finetuning, ScheduledFinetuning):
        return ()
    strategy = finetuning.spec.strategy
    # once more inside resolve_phases; here what fails is known to be the user's code
    with users_code(f"--strategy {config.strategy}, phases({config.max_epochs}) failed"):
        try:
            phases = validated_phases(strategy, config.max_epochs)
        except FlashLaunchError as error:
            raise type(error)(f"--strategy {config.strategy}: {error}") from error
    if freezes(phases):
        with users_code(f"{type(task).__name__}.modules_to_freeze() failed"):
            modules = freezable_modules(task)
        if config.num_layers is not None:
            kept = frozenset(handover_on(task, config, finetuning).kept)
            _check_num_layers(
                config.num_layers,
                freezable_layers(task, modules, config.layer_count, always_frozen=kept),
                config.layer_count,
            )
    return resolve_phases(task, strategy, max_epochs=config.max_epochs, train_bn=finetuning.train_bn)


def handover_on(task: pl.LightningModule, config: RunConfig, finetuning: FinetuningCallback) -> Handover:
    """What of the task is frozen before the run freezes anything, and what becomes of it.

    Raises:
        FlashLaunchError: the strategy does not fit the run or the task.
    """
    if not isinstance(finetuning, ScheduledFinetuning):
        return handed_over(task, ())
    strategy = finetuning.spec.strategy
    return find_handover(task, strategy, max_epochs=config.max_epochs, train_bn=finetuning.train_bn)


def first_trainable(finetuning: FinetuningCallback, config: RunConfig, task: pl.LightningModule) -> set[str]:
    """Names of what a callback leaves trainable before training; what it does later is not known beforehand.

    Raises:
        FlashLaunchError: it does not fit the task, or fails.
    """
    trainer = pl.Trainer(
        max_epochs=config.max_epochs,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    # what it finds frozen is among the notes
    with reporting.silenced(), users_code(f"--strategy {config.strategy} cannot freeze {type(task).__name__}"):
        finetuning.prepare(trainer, task)
    trainable = {name for name, parameter in task.named_parameters() if parameter.requires_grad}
    if not trainable:
        raise TaskError(
            f"--strategy {config.strategy} freezes all of {type(task).__name__} before training: leave its head out, "
            "so that there is something to train"
        )
    return trainable


def _check_num_layers(count: int, layers: Sequence[Layer], counting: Counting) -> None:
    given = f"--num-layers {count}" + (" --layer-count flash" if counting == "flash" else "")
    if layers and count > len(layers):
        raise ConfigError(f"{given}: there are {len(layers)} layers to freeze: give 1 to {len(layers)}")
    needed = next((number for number, layer in enumerate(reversed(layers), 1) if layer.parameters), None)
    if needed is not None and count < needed:
        raise ConfigError(
            f"{given} would unfreeze nothing, the last layer with parameters is {layers[-needed].name}: give "
            f"--num-layers {needed} or more, or --layer-count parameters"
        )


def _built(config: RunConfig) -> object:
    found, _ = load_named(config.strategy, _may_be_meant, _WANTED)
    if not inspect.isclass(found):
        if config.strategy_args:
            raise ConfigError(
                f"--strategy {config.strategy} is an object, which takes no --strategy-args: leave them out, or name "
                "its class"
            )
        return found
    if issubclass(found, FlashBaseFinetuning) and found.finetune_function is FlashBaseFinetuning.finetune_function:
        raise TaskError(
            f"--strategy {config.strategy} does not say what unfreezes when: override "
            "finetune_function(self, pl_module, epoch, optimizer)"
        )
    if not issubclass(found, FinetuningCallback):
        if issubclass(found, BaseFinetuning):
            raise TaskError(
                f"--strategy {config.strategy} derives from Lightning's BaseFinetuning, whose unfreezing leaves ranks "
                "with different weights: derive it from flash_strategies.FlashBaseFinetuning, which has the same "
                "methods to override"
            )
        if not callable(getattr(found, "phases", None)):
            raise TaskError(
                f"--strategy {config.strategy} is neither a finetuning callback nor a strategy: derive it from "
                "flash_strategies.FlashBaseFinetuning and write finetune_function(), or give it a `name` and a method "
                "phases(max_epochs)"
            )
    return build_own(found, config.strategy_args, "--strategy-args")


def _may_be_meant(value: object) -> bool:
    if inspect.isclass(value) and value.__module__.partition(".")[0] == "flash_strategies":
        return False  # only imported, to derive from
    return (inspect.isclass(value) and issubclass(value, FinetuningCallback)) or callable(
        getattr(value, "phases", None)
    )
