"""Going on with a run, without torch: what may change between attempts, and from which checkpoint it goes on."""

import contextlib
from dataclasses import dataclass

from flash_launch.checkpoint.attempts import read_attempts
from flash_launch.checkpoint.manifest import Manifest
from flash_launch.checkpoint.store import Store
from flash_launch.config import RunConfig
from flash_launch.early_stop import EarlyStop
from flash_launch.errors import ConfigError
from flash_launch.options import option_name
from flash_launch.run_folder import RunFolder, read_json, read_jsonl, rewrite_jsonl
from flash_launch.script.config import AnyConfig, ScriptConfig

__all__ = ["Continuation", "check_can_go_on", "continued", "find", "trim_metrics"]

MAY_CHANGE = frozenset(
    (
        *("nodes", "procs_per_node", "hosts", "hostfile", "accelerator", "timeout", "setup", "nvme_path"),
        *("max_epochs", "batch_size", "accumulate", "num_workers"),
        *("limit_train_batches", "limit_val_batches", "trainer"),
        *("output_dir", "resume", "checkpoint_every", "keep_last", "keep_best", "background_checkpoints"),
        *("wandb", "wandb_name", "wandb_group", "wandb_job_type", "wandb_tags", "wandb_artifact"),
    )
)
"""Options that may change freely; those of the strategy may as far as they concern what is still to come."""
STRATEGY = frozenset(
    ("strategy", "strategy_args", "unfreeze_epoch", "milestones", "num_layers", "layer_count", "train_bn")
)


@dataclass(frozen=True)
class Continuation:
    """Where a run goes on."""

    manifest: Manifest | None
    """The checkpoint; None: nothing was saved yet, the run starts again."""
    finished: bool
    """The run has done all its epochs."""
    notes: tuple[str, ...]
    """What the user should know, a sentence each."""


def continued(old: AnyConfig, new: AnyConfig) -> AnyConfig:
    """The options to go on with.

    Where the strategy's epochs were shares of the run's, they stay where they were, however many epochs there are now.

    Args:
        old: the options of the attempt before.
        new: what is asked for now, resolved.

    Raises:
        ConfigError: something changed that must not.
    """
    if isinstance(old, ScriptConfig) or isinstance(new, ScriptConfig):
        return _continued_script(old, new)
    fixed = [name for name in vars(old) if name not in MAY_CHANGE | STRATEGY]
    if changed := [name for name in fixed if getattr(old, name) != getattr(new, name)]:
        name = changed[0]
        more = f" (and {', '.join(map(option_name, changed[1:]))})" if len(changed) > 1 else ""
        raise ConfigError(
            f"{option_name(name)}{more} cannot change when a run goes on: it was {getattr(old, name)} and is now "
            f"{getattr(new, name)}. Leave it as it was, or start another run with --output-dir"
        )
    if (old.own_strategy or new.own_strategy) and (old.strategy, old.strategy_args) != (
        new.strategy,
        new.strategy_args,
    ):
        raise ConfigError(
            f"--strategy was {old.strategy} and is now {new.strategy}: a strategy of one's own decides epoch by epoch, "
            "so it cannot be changed for another, or get other arguments, when a run goes on"
        )
    base = old.strategy.removesuffix("_deepspeed")
    if old.max_epochs == new.max_epochs or base != new.strategy.removesuffix("_deepspeed"):
        return new
    if base == "freeze_unfreeze" and old.unfreeze_epoch is None and new.unfreeze_epoch is None:
        return new.replace(unfreeze_epoch=_first_epochs(old)[-1])
    if base == "unfreeze_milestones" and old.milestones is None and new.milestones is None:
        epochs = _first_epochs(old)
        return new.replace(milestones=(epochs[-2], epochs[-1])) if len(epochs) > 1 else new
    return new


def _continued_script(old: AnyConfig, new: AnyConfig) -> AnyConfig:
    if not isinstance(old, ScriptConfig) or not isinstance(new, ScriptConfig):
        was, now = (one.command if isinstance(one, ScriptConfig) else "the training of a run" for one in (old, new))
        raise ConfigError(f"--output-dir holds a run of {was}, not of {now}: give another folder")
    if (old.command, old.directory) != (new.command, new.directory):
        raise ConfigError(
            f"the script cannot change when a run goes on: it was {old.command} in {old.directory}, and is now "
            f"{new.command} in {new.directory}. Leave it as it was, or start another run with --output-dir"
        )
    return new


def _first_epochs(config: RunConfig) -> list[int]:
    return [phase.first_epoch for phase in config.strategy_spec().strategy.phases(config.max_epochs)]


def check_can_go_on(folder: RunFolder) -> None:
    """Check that a run folder has attempts.

    Raises:
        ConfigError: it is of a version without.
    """
    if not read_attempts(folder.attempts):
        raise ConfigError(
            f"{folder.path} holds a run without {folder.attempts.name}/, of a version of flash-launch that saved no "
            "checkpoints: start it again in another folder, with --config and its config.yaml"
        )


def find(folder: RunFolder, config: AnyConfig, checkpoint: str | None = None) -> Continuation:
    """Where the run in a folder goes on.

    Args:
        folder: of a run that was started.
        config: the options to go on with.
        checkpoint: go on from this one; None: from the newest that is as it was written.

    Raises:
        CheckpointError: there are checkpoints, and none that can be used.
        ConfigError: more epochs have begun than the run is to have.
    """
    if isinstance(config, ScriptConfig):
        return _find_script(folder, checkpoint)
    attempts = read_attempts(folder.attempts)
    run = next((one.run for one in reversed(attempts) if one.run), "")
    stop = _early_stop(folder)
    if checkpoint is None and stop is not None and stop.ends(config.max_epochs):
        return Continuation(None, True, (f"the run was {stop}: that is its end, a larger --max-epochs resumes it",))
    if checkpoint is None and _finished_epochs(folder) >= config.max_epochs:
        return Continuation(
            None, True, (f"the run has finished its {config.max_epochs} epochs: give a larger --max-epochs to go on",)
        )
    found = Store(folder.checkpoints).newest(run, attempts, checkpoint)
    if found is None:
        return Continuation(None, False, ("no checkpoint was saved yet: the run starts again",))
    at = found.manifest.position
    if (begun := at.epoch + (at.batch > 0)) > config.max_epochs:
        raise ConfigError(
            f"--max-epochs is {config.max_epochs}, but the run has begun {begun} epochs: give {begun} or more, or an "
            "earlier checkpoint with --checkpoint"
        )
    notes = found.notes
    stop = EarlyStop.from_json(found.manifest.stopped_early)
    if stop is not None and not stop.ends(config.max_epochs):
        notes = (*notes, f"the run was {stop}: it resumes with the state of {stop.by}, which may stop it again")
    return Continuation(found.manifest, False, notes)


def _find_script(folder: RunFolder, checkpoint: str | None) -> Continuation:
    if checkpoint is not None:
        raise ConfigError("--checkpoint is for the training of `flash-launch run`: a script finds what it saved itself")
    if _status(folder) == "finished":
        return Continuation(None, True, ("the script has ended well: start it again in another folder",))
    return Continuation(None, False, ("the script starts again, with its arguments",))


def _status(folder: RunFolder) -> object:
    with contextlib.suppress(OSError, ValueError):
        summary = read_json(folder.summary_json)
        return summary.get("status") if isinstance(summary, dict) else None
    return None


def _early_stop(folder: RunFolder) -> EarlyStop | None:
    """How the task ended the run, if it did."""
    with contextlib.suppress(OSError, ValueError):
        summary = read_json(folder.summary_json)
        if isinstance(summary, dict) and summary.get("status") == "finished":
            return EarlyStop.from_json(summary.get("stopped_early"))
    return None


def _finished_epochs(folder: RunFolder) -> int:
    with contextlib.suppress(OSError, ValueError):
        summary = read_json(folder.summary_json)
        if isinstance(summary, dict) and summary.get("status") == "finished":
            return int(summary.get("epochs", 0))
    return -1


def trim_metrics(folder: RunFolder, manifest: Manifest | None) -> None:
    """Drop the rows of metrics.jsonl that the coming attempt will write again."""

    def stays(row: dict[str, object]) -> bool:
        if manifest is None:
            return False
        at = manifest.position
        step, epoch = row.get("step"), row.get("epoch")
        if not isinstance(step, int) or not isinstance(epoch, int):
            return True
        return epoch < at.epoch if row.get("kind") == "epoch" else step <= at.step

    rows = list(read_jsonl(folder.metrics_jsonl))
    if len(kept := [row for row in rows if stays(row)]) != len(rows):
        rewrite_jsonl(folder.metrics_jsonl, kept)
