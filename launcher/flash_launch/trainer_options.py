"""The option --trainer.NAME: which of Lightning's Trainer arguments a run takes, and why it refuses the others."""

import difflib
from collections.abc import Mapping

from flash_launch.config import RunConfig
from flash_launch.errors import ConfigError

__all__ = [
    "REFUSED",
    "REFUSED_CLASSES",
    "TAKEN",
    "callback_specs",
    "check_trainer",
    "class_name",
    "given",
    "logger_specs",
]

TAKEN = (
    *("logger", "callbacks", "min_epochs", "min_steps", "max_time", "check_val_every_n_epoch"),
    *("log_every_n_steps", "enable_progress_bar", "enable_model_summary", "gradient_clip_algorithm", "deterministic"),
    *("benchmark", "inference_mode", "profiler", "detect_anomaly", "enable_autolog_hparams"),
)
"""What reaches the Trainer of every rank as it is given."""

_SAMPLES = "each sample counts once over all ranks, and a run resumes inside of an epoch"

REFUSED: dict[str, tuple[object, str]] = {
    "accelerator": ("auto", "the command starts the ranks: give --accelerator"),
    "strategy": ("auto", "transitions rebuild the engine on all ranks: give --setup, and --strategy for what trains"),
    "devices": ("auto", "the command starts the ranks: give --procs-per-node"),
    "num_nodes": (1, "the command starts the ranks: give --nodes"),
    "precision": (None, "the setup resolves it for the engine: give --precision"),
    "fast_dev_run": (False, "it saves nothing: give --max-epochs 1 --limit-train-batches 1 --limit-val-batches 1"),
    "max_epochs": (None, "the strategy's phases are counted in it: give --max-epochs"),
    "max_steps": (-1, "a run ends with an epoch: give --max-epochs, and --limit-train-batches"),
    "limit_train_batches": (None, "give --limit-train-batches"),
    "limit_val_batches": (None, "give --limit-val-batches"),
    "limit_test_batches": (None, "a run does not test: use flash_launch.Trainer in a script, which does"),
    "limit_predict_batches": (None, "a run does not predict: use flash_launch.Trainer in a script, which does"),
    "overfit_batches": (0.0, f"{_SAMPLES}: give --limit-train-batches and --limit-val-batches"),
    "val_check_interval": (
        None,
        "an epoch ends with its validation, which --keep-best and resuming count on: leave it",
    ),
    "num_sanity_val_steps": (None, "ranks are proved equal before they validate: try it with --limit-train-batches 1"),
    "enable_checkpointing": (None, "a run saves by itself: give --checkpoint-every, --keep-last and --keep-best"),
    "accumulate_grad_batches": (1, "the setup resolves it for the engine: give --accumulate"),
    "gradient_clip_val": (None, "the setup resolves it for the engine: give --gradient-clip"),
    "use_distributed_sampler": (True, f"{_SAMPLES}: the run deals the samples out, leave it out"),
    "barebones": (False, "it turns off what the run records: leave it out"),
    "plugins": (None, "they replace what makes the ranks equal: give --precision and --setup"),
    "sync_batchnorm": (
        False,
        "convert the task's norms: torch.nn.SyncBatchNorm.convert_sync_batchnorm in its __init__",
    ),
    "reload_dataloaders_every_n_epochs": (0, f"{_SAMPLES}: leave it out, samplers draw anew in each epoch"),
    "default_root_dir": (None, "a run writes into its run folder: give --output-dir"),
    "model_registry": (None, "a run saves by itself: give --checkpoint-every, and `flash-launch export` afterwards"),
}
"""What contradicts a run: Lightning's default, which is taken as not given, and the reason with what to do."""

REFUSED_CLASSES = {
    "ModelCheckpoint": "a run saves by itself: give --checkpoint-every, --keep-last and --keep-best",
    "GradientAccumulationScheduler": "the setup resolves accumulation for the engine: give --accumulate",
    "LearningRateFinder": "it trains outside of the run's epochs and loads a file of its own: give --lr",
    "BatchSizeFinder": "it trains outside of the run's epochs and loads a file of its own: give --batch-size",
    "BackboneFinetuning": "its unfreezing leaves ranks with different weights: give --strategy",
    "ScheduledFinetuning": "a run has one strategy: give --strategy",
    "WandbLogger": "the run records itself there: give --wandb online, --wandb-project and --wandb-name",
}
"""Callbacks and loggers that contradict a run, by the name of their class."""

_LOGGERS = {
    "tensorboard": "pytorch_lightning.loggers.TensorBoardLogger",
    "csv": "pytorch_lightning.loggers.CSVLogger",
}


def check_trainer(config: RunConfig) -> None:
    """Check what --trainer was given, as far as that needs no Lightning.

    Raises:
        ConfigError: an argument, a callback or a logger that contradicts the run, or an unknown name.
    """
    for name, value in config.trainer.items():
        if name in REFUSED:
            default, reason = REFUSED[name]
            if value is not None and (value != default or isinstance(value, bool) != isinstance(default, bool)):
                raise ConfigError(f"--trainer.{name} {value} is not taken: {reason}")
        elif name not in TAKEN:
            near = difflib.get_close_matches(name, [*TAKEN, *REFUSED], n=1)
            hint = f": did you mean --trainer.{near[0]}?" if near else f": it takes {', '.join(TAKEN)}"
            raise ConfigError(f"--trainer.{name} is no argument of Lightning's Trainer{hint}")
    if config.trainer.get("check_val_every_n_epoch") not in (None, 1) and config.keep_best is not None:
        raise ConfigError(
            f"--keep-best {config.keep_best} needs a value in each epoch, and --trainer.check_val_every_n_epoch "
            f"{config.trainer['check_val_every_n_epoch']} leaves epochs without: leave one out"
        )
    for option, specs in (("callbacks", callback_specs(config)), ("logger", logger_specs(config))):
        for spec in specs:
            shown = class_name(spec)
            if shown is None:
                raise ConfigError(
                    f"--trainer.{option} was given {spec}: give a class_path and init_args, as in "
                    "{class_path: my_module.MyClass, init_args: {patience: 3}}"
                )
            if shown in REFUSED_CLASSES:
                raise ConfigError(f"--trainer.{option} {shown} is not taken: {REFUSED_CLASSES[shown]}")


def given(config: RunConfig) -> dict[str, object]:
    """What reaches the Trainer, but for callbacks and loggers; Lightning's null is not given."""
    return {
        name: value
        for name, value in config.trainer.items()
        if name in TAKEN and name not in ("callbacks", "logger") and value is not None
    }


def callback_specs(config: RunConfig) -> list[object]:
    """The callbacks, each with class_path and init_args."""
    return _listed(config.trainer.get("callbacks"))


def logger_specs(config: RunConfig) -> list[object]:
    """The loggers beside W&B, each with class_path and init_args; `tensorboard` and `csv` are written out.

    Raises:
        ConfigError: `false`, as W&B is turned off in another way.
    """
    value = config.trainer.get("logger")
    if value is False:
        raise ConfigError(
            "--trainer.logger false is not taken: without --trainer.logger there is W&B's only; give --wandb disabled"
        )
    return [
        {"class_path": _LOGGERS[one]} if isinstance(one, str) and one in _LOGGERS else one
        for one in _listed("tensorboard" if value is True else value)
    ]


def class_name(spec: object) -> str | None:
    """The class that a class_path names; None where there is none."""
    path = spec.get("class_path") if isinstance(spec, Mapping) else spec
    return path.rpartition(".")[2] if isinstance(path, str) and path else None


def _listed(value: object) -> list[object]:
    items = [] if value is None else list(value) if isinstance(value, list | tuple) else [value]
    return [_dotted(one) for one in items]


def _dotted(spec: object) -> object:
    """A class_path written as module:Class, as other options of the command are, in Lightning's way."""
    if isinstance(spec, Mapping) and isinstance(path := spec.get("class_path"), str):
        return {**spec, "class_path": path.replace(":", ".")}
    return spec.replace(":", ".") if isinstance(spec, str) else spec
