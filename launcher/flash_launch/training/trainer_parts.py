"""A user's callbacks, loggers and flags of Lightning's Trainer (--trainer), built and checked against the run."""

from __future__ import annotations

import os
import sys
import typing
from argparse import ArgumentError
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import pytorch_lightning as pl
from jsonargparse import ArgumentParser, Namespace
from pytorch_lightning.callbacks import (
    BaseFinetuning,
    BatchSizeFinder,
    Checkpoint,
    GradientAccumulationScheduler,
    LearningRateFinder,
    ProgressBar,
)
from pytorch_lightning.loggers import Logger, WandbLogger

from flash_launch.config import RunConfig
from flash_launch.errors import ConfigError
from flash_launch.run_folder import RunFolder
from flash_launch.tasks.own import users_code
from flash_launch.trainer_options import REFUSED_CLASSES, callback_specs, class_name, given, logger_specs
from flash_launch.training.csv_logger import RunCSVLogger
from flash_strategies.lightning import FinetuningCallback
from flash_strategies.parameter_checks import Holding, check_callbacks

__all__ = ["LoggersSaved", "TrainerParts", "build_loggers", "build_parts", "check_parts"]

_REFUSED: dict[type, str] = {
    Checkpoint: REFUSED_CLASSES["ModelCheckpoint"],
    GradientAccumulationScheduler: REFUSED_CLASSES["GradientAccumulationScheduler"],
    LearningRateFinder: REFUSED_CLASSES["LearningRateFinder"],
    BatchSizeFinder: REFUSED_CLASSES["BatchSizeFinder"],
    BaseFinetuning: REFUSED_CLASSES["BackboneFinetuning"],
    FinetuningCallback: "a run has one strategy: give --strategy module:Class",
    WandbLogger: REFUSED_CLASSES["WandbLogger"],
}
"""As trainer_options.py, for classes derived from these."""
_FILE_LOGGERS = ("TensorBoardLogger", "CSVLogger")


@dataclass(frozen=True)
class TrainerParts:
    """What --trainer adds to a run's Trainer."""

    arguments: Mapping[str, object]
    """Arguments of the Trainer, but for callbacks and loggers."""
    callbacks: tuple[pl.Callback, ...] = ()
    """Callbacks, in their order."""
    loggers: tuple[str, ...] = ()
    """Names of the loggers' classes; see `build_loggers`."""

    @property
    def other_bar(self) -> bool:
        """Whether the run's own progress bar is left out: the user has another, or wants none."""
        other = any(isinstance(one, ProgressBar) for one in self.callbacks)
        return other or self.arguments.get("enable_progress_bar") is False

    @property
    def note(self) -> str | None:
        """What is added, in a sentence; None: nothing."""
        said = [f"callback {type(one).__name__}" for one in self.callbacks]
        said += [f"logger {name}" for name in self.loggers]
        said += [f"{name} {str(value).lower()}" for name, value in self.arguments.items()]
        return f"trainer: {', '.join(said)}" if said else None


def build_parts(config: RunConfig, holding: Holding) -> TrainerParts:
    """The callbacks and flags, checked; a user's classes are found from the current folder.

    Raises:
        ConfigError: a value of the wrong type, a class that is not there, or one that contradicts the run.
        ParameterError: a callback that the setup cannot serve.
        TaskError: an error in the user's class.
    """
    if not config.trainer:
        return TrainerParts({})
    arguments = given(config)
    if holding.stage and arguments.get("gradient_clip_algorithm") not in (None, "norm"):
        raise ConfigError(
            f"--trainer.gradient_clip_algorithm {arguments['gradient_clip_algorithm']}: DeepSpeed clips by norm only: "
            "leave it out, or give --setup ddp"
        )
    callbacks = tuple(cast(pl.Callback, _built(spec, pl.Callback, "callbacks")) for spec in callback_specs(config))
    check_callbacks(callbacks, holding)
    if sum(isinstance(one, ProgressBar) for one in callbacks) > 1:
        raise ConfigError("--trainer.callbacks has more than one progress bar: leave one")
    loggers = tuple(class_name(spec) or "" for spec in logger_specs(config))
    types = typing.get_type_hints(pl.Trainer.__init__)
    return TrainerParts(
        {name: _built(value, types[name], name) for name, value in arguments.items()}, callbacks, loggers
    )


def check_parts(config: RunConfig, parts: TrainerParts) -> None:
    """What Lightning itself refuses, before the ranks start: a Trainer is built; loggers of services only parsed.

    Raises:
        ConfigError: it does.
    """
    for spec in logger_specs(config):
        placed = _with_places(spec, ".", "", 0)
        if placed is spec:
            _parsed(_parser(Logger, "logger"), "logger", spec)
        else:  # those that write files write none until they log; whether TensorBoard is installed is known then
            _built(placed, Logger, "logger")
    bar = {} if parts.other_bar else {"enable_progress_bar": False}
    arguments = {"enable_model_summary": False, **bar, **parts.arguments}
    try:
        pl.Trainer(
            max_epochs=config.max_epochs,
            accelerator="cpu",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            callbacks=list(parts.callbacks),
            **arguments,  # type: ignore[arg-type]
        )
    except Exception as error:  # its errors have no common class
        raise ConfigError(f"--trainer: Lightning's Trainer refuses it: {' '.join(str(error).split())}") from error


def build_loggers(config: RunConfig, folder: RunFolder, *, resumed_step: int) -> list[Logger]:
    """The loggers beside W&B; files go to the run folder where no other place is given, and are continued there.

    Args:
        config: the run's options.
        folder: the run folder.
        resumed_step: optimizer steps done when this attempt begins.

    Raises:
        ConfigError, TaskError: as build_parts.
    """
    found: list[Logger] = []
    for spec in logger_specs(config):
        placed = _with_places(spec, str(folder.path), folder.path.name, resumed_step)
        logger = cast(Logger, _built(placed, Logger, "logger"))
        if isinstance(logger, RunCSVLogger):
            logger.resume_at(resumed_step)
        found.append(logger)
    return found


class LoggersSaved(pl.Callback):
    """With each checkpoint, loggers write what they hold: an attempt that resumes from it finds all before it."""

    def __init__(self, loggers: Sequence[Logger]) -> None:
        self._loggers = loggers

    def state_dict(self) -> dict[str, object]:
        """Nothing, when the loggers have written."""
        for logger in self._loggers:
            logger.save()
        return {}


def _with_places(spec: object, folder: str, run: str, resumed_step: int) -> object:
    """A logger that writes files, with where it writes and where it resumes; another as it is."""
    name, whole = class_name(spec), dict(spec) if isinstance(spec, Mapping) else {"class_path": spec}
    path, arguments, writer = str(whole["class_path"]), whole.get("init_args") or {}, whole.get("dict_kwargs") or {}
    lightnings = path == name or path.startswith(("pytorch_lightning.", "lightning.pytorch."))
    if name not in _FILE_LOGGERS or not lightnings or not isinstance(arguments, Mapping):
        return spec
    if arguments.get("save_dir") is None:
        arguments = {"name": name.removesuffix("Logger").lower(), **arguments, "save_dir": folder}
        run = ""
    if arguments.get("version") is None:
        arguments = {**arguments, "version": run}  # the same for each attempt
    if name == "CSVLogger":
        return {"class_path": f"{RunCSVLogger.__module__}.{RunCSVLogger.__qualname__}", "init_args": arguments}
    writer = {"purge_step": resumed_step, **writer} if resumed_step and isinstance(writer, Mapping) else writer
    return {"class_path": path, "init_args": arguments, **({"dict_kwargs": writer} if writer else {})}


def _parser(kind: object, option: str) -> ArgumentParser:
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    parser = ArgumentParser(exit_on_error=False, add_help=False)
    parser.add_argument(f"--{option}", type=kind)
    return parser


def _parsed(parser: ArgumentParser, option: str, spec: object) -> Namespace:
    try:
        return cast(Namespace, parser.parse_object({option: spec}))
    except ArgumentError as error:
        lines = [" ".join(line.split()) for line in str(error).splitlines()]
        shown = class_name(spec) or spec
        raise ConfigError(f"--trainer.{option} {shown}: {' '.join(filter(None, lines))}") from error


def _built(spec: object, kind: object, option: str) -> object:
    """An object of a class_path, or a value of a type that the Trainer declares."""
    parser = _parser(kind, option)
    namespace = _parsed(parser, option, spec)
    with users_code(f"--trainer.{option} {class_name(spec)} cannot be built"):
        built: object = getattr(parser.instantiate(namespace), option)
    for refused, reason in _REFUSED.items():
        if isinstance(built, refused):
            raise ConfigError(f"--trainer.{option} {type(built).__name__} is not taken: {reason}")
    return built
