"""The edge to the wandb package: begins, finishes and gives up its runs. Read against wandb 0.31.

Only rank 0 comes here, in a thread of its own: every call may take long, and training waits for none of them.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from flash_launch.tracking.mode import Mode
from flash_launch.tracking.record import Identity

if TYPE_CHECKING:
    from wandb import Run

__all__ = [
    "SessionOptions",
    "add_config",
    "add_weights",
    "begin",
    "discard",
    "finish",
    "prepare_environment",
]

_INIT_SECONDS = 20.0
_FLUSH_SECONDS = 2.0


@dataclass(frozen=True)
class SessionOptions:
    """What a recording begins with."""

    folder: Path
    """The run folder, in which W&B makes its folder wandb/."""
    identity: Identity
    """Who the run is."""
    name: str
    """Name that is shown."""
    group: str | None
    """Group of runs."""
    job_type: str | None
    """Job type."""
    tags: tuple[str, ...]
    """Tags."""
    config: Mapping[str, object]
    """What is shown as the run's configuration."""
    finish_seconds: float
    """How long the end may wait for what is still to be uploaded."""
    stop: Callable[[], None]
    """Called when somebody presses stop on the run's page."""


def prepare_environment(folder: Path, environment: dict[str, str] | os._Environ[str]) -> None:
    """Let W&B write nothing outside of a folder, take no run of another process for its own, and phone nobody."""
    for name, below in (("WANDB_CACHE_DIR", "cache"), ("WANDB_DATA_DIR", "data")):
        environment.setdefault(name, str(folder / below))
    environment.setdefault("WANDB_ERROR_REPORTING", "false")
    for name in ("WANDB_SERVICE", "WANDB_DISABLED", "WANDB_MODE", "WANDB_RESUME", "WANDB_RUN_ID"):
        environment.pop(name, None)


def begin(options: SessionOptions, mode: Mode) -> Run:
    """Begin to record.

    Raises:
        Exception: whatever wandb raises: a wrong key, no right to the project, no answer in time.
    """
    os.environ["WANDB_SILENT"] = "true"  # before the settings are read, at which it tells of the key's place
    import wandb

    identity = options.identity
    settings = wandb.Settings(
        silent=True,
        console="off",  # the logs are ours
        disable_git=True,  # the address of a remote can hold a password
        disable_code=True,
        save_code=False,
        label_disable=True,
        init_timeout=_INIT_SECONDS,
        finish_timeout=options.finish_seconds,
        stop_fn=options.stop,
        x_transaction_log_flush_interval=_FLUSH_SECONDS,
    )
    run = wandb.init(
        dir=str(options.folder),
        id=identity.id,
        project=identity.project,
        entity=identity.entity,
        name=options.name,
        group=options.group,
        job_type=options.job_type,
        tags=options.tags or None,
        resume="allow",
        mode="online" if mode == "online" else "offline",
        settings=settings,
    )
    add_config(run, options.config)
    run.define_metric("step", hidden=True)
    run.define_metric("*", step_metric="step", step_sync=True)
    return run


def add_config(run: Run, values: Mapping[str, object]) -> None:
    """Add to the run's configuration; on a restart, values may differ from those before."""
    run.config.update(dict(values), allow_val_change=True)  # type: ignore[no-untyped-call]


def add_weights(run: Run, weights: Path, step: int) -> None:
    """Record the weights at the end as an artifact.

    Raises:
        Exception: whatever wandb or the disk has against it.
    """
    import wandb

    # A link keeps these bytes when a longer run writes the file anew, until they are uploaded.
    kept = weights.parent / "wandb" / "weights" / f"step_{step}.safetensors"
    kept.parent.mkdir(exist_ok=True)
    kept.unlink(missing_ok=True)
    try:
        os.link(weights, kept)
    except OSError:  # a file system without links
        kept = weights
    artifact = wandb.Artifact(f"weights-{run.id}", type="model", metadata={"step": step})
    artifact.add_file(str(kept), name=weights.name, policy="immutable", skip_cache=True)
    run.log_artifact(artifact)


def finish(run: Run, exit_code: int) -> bool:
    """End the recording; whether everything was uploaded, or written where nothing is uploaded.

    Raises:
        Exception: whatever wandb raises.
    """
    import wandb

    run.finish(exit_code=exit_code)
    done = not getattr(run, "_finish_timed_out", False)
    wandb.teardown()
    return done


def discard() -> None:
    """End W&B's own process at once, whatever it does, and keep this process's end from waiting for it."""
    with contextlib.suppress(Exception):  # private parts: what is not there needs no ending
        from wandb.sdk import wandb_setup

        connection = wandb_setup.singleton()._connection
        if connection is not None:
            if connection._cleanup is not None:
                connection._cleanup()  # its exit handler would wait for the process
            if connection._proc is not None:
                connection._proc._process.kill()
                connection._proc._process.wait(timeout=5)
        wandb_setup._singleton = None
    os.environ.pop("WANDB_SERVICE", None)
