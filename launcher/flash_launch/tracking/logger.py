"""Lightning's WandbLogger over a recording: on all ranks, but W&B is imported and written to on rank 0 only."""

from __future__ import annotations

import functools
import json
import operator
import os
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

import pytorch_lightning as pl
from pytorch_lightning.loggers import WandbLogger
from tqdm.auto import tqdm

from flash_launch.checkpoint.attempts import Attempt
from flash_launch.config import RunConfig
from flash_launch.rank_guard import note_stop
from flash_launch.run_folder import RunFolder, read_json
from flash_launch.telling import tell_stop_by_hand
from flash_launch.tracking.mode import resolve_mode
from flash_launch.tracking.record import ARRAY, identify
from flash_launch.tracking.recording import ARTIFACT_SECONDS, FINISH_SECONDS, Recording
from flash_launch.tracking.session import SessionOptions

if TYPE_CHECKING:
    from wandb import Run

__all__ = ["RunLogger", "start_tracking"]

_READY_SECONDS = 30.0


class RunLogger(WandbLogger):
    """What `self.log` and `self.logger` of a task reach; it only hands on, and waits for nothing."""

    def __init__(
        self, folder: RunFolder, recording: Recording | None, *, say: Callable[[str], None] | None = None
    ) -> None:
        """Over a recording.

        Args:
            folder: the run folder.
            recording: None: on other ranks, and where there is none.
            say: is given a sentence for each of W&B's methods that a task calls where there is no recording.
        """
        super().__init__(save_dir=str(folder.path))
        self._nothing = _Nothing(say)
        self._recording = recording
        self._position: Callable[[], int] = lambda: 0

    def follow(self, trainer: pl.Trainer) -> None:
        """Take optimizer steps from a trainer."""
        self._position = lambda: int(trainer.global_step)

    def close(self) -> None:
        """End the recording, as the summary of the run says that the run ended; waits a bounded time."""
        if self._recording is None:
            return
        status = "failed"
        try:
            summary = read_json(RunFolder(self._recording.path).summary_json)
            if isinstance(summary, dict):
                status = str(summary.get("status"))
        except (OSError, json.JSONDecodeError):
            pass
        self._recording.close(status if status in FINISH_SECONDS else "failed")

    # ---- what Lightning calls

    @property
    def experiment(self) -> Run:
        """W&B's run, which a task may want; an object that does nothing where there is none."""
        run = self._recording.run(_READY_SECONDS) if self._recording is not None else None
        if run is None or self._recording is None:
            return self._nothing  # type: ignore[return-value]
        return _Shielded(run, self._recording.complain, whole=True)  # type: ignore[return-value]

    def log_metrics(self, metrics: Mapping[str, object], step: int | None = None) -> None:
        """Hand values on; they are recorded at the optimizer step, whatever Lightning counts."""
        if self._recording is not None:
            self._recording.submit(dict(metrics), self._position())

    def log_hyperparams(self, params: dict[str, object] | Namespace) -> None:
        """Hand the task's hyperparameters on."""
        if self._recording is not None:
            values = vars(params) if isinstance(params, Namespace) else params
            self._recording.submit_config({f"task/{name}": _shown(value) for name, value in values.items()})

    def finalize(self, status: str) -> None:
        """The recording ends when the run does, not with the fit."""


class _Shielded:
    """W&B's run, or a part of it, whose failures do not reach the task: its process may have ended, with a signal."""

    _target: object
    _complain: Callable[[Exception], None]
    _whole: bool

    def __init__(self, target: object, complain: Callable[[Exception], None], *, whole: bool = False) -> None:
        """Over the run (`whole`), which a task may take for another logger's, or a part of it."""
        self.__dict__.update(_target=target, _complain=complain, _whole=whole)

    def __getattr__(self, name: str) -> object:
        if self._whole and not name.startswith("__") and not hasattr(self._target, name):
            _say_once(f"note: self.logger.experiment is W&B's run, which has no {name}: nothing is recorded by it")
            return _Nothing()
        found = self._try(lambda: getattr(self._target, name))
        return found if found is None or isinstance(found, (bool, int, float, str, bytes)) else self._part(found)

    def __setattr__(self, name: str, value: object) -> None:
        self._try(lambda: setattr(self._target, name, value))

    def __getitem__(self, key: object) -> object:
        return self._try(lambda: self._target[key])  # type: ignore[index]

    def __setitem__(self, key: object, value: object) -> None:
        self._try(lambda: operator.setitem(self._target, key, value))  # type: ignore[call-overload]

    def __contains__(self, key: object) -> bool:
        return bool(self._try(lambda: key in self._target))  # type: ignore[operator]

    def __call__(self, *args: object, **kwargs: object) -> object:
        return self._try(lambda: self._target(*args, **kwargs))  # type: ignore[operator]

    def _part(self, found: object) -> object:
        return found if isinstance(found, _Nothing) else _Shielded(found, self._complain)

    def _try(self, call: Callable[[], object]) -> object:
        try:
            return call()
        except (AttributeError, TypeError, KeyError):  # the task's own mistakes
            raise
        except Exception as error:
            self._complain(error)
            return _Nothing()


class _Nothing:
    """Takes every call and does nothing but say so, once for each method."""

    _say: Callable[[str], None] | None
    _path: str

    def __init__(self, say: Callable[[str], None] | None = None, path: str = "self.logger.experiment") -> None:
        self.__dict__.update(_say=say, _path=path)

    def __getattr__(self, name: str) -> _Nothing:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Nothing(self._say, f"{self._path}.{name}")

    def __setattr__(self, name: str, value: object) -> None: ...

    def __call__(self, *args: object, **kwargs: object) -> _Nothing:
        if self._say is not None:
            self._say(f"note: the task calls {self._path}(), and --wandb is disabled: nothing is recorded by it")
        return _Nothing()

    def __getitem__(self, key: object) -> _Nothing:
        return _Nothing()

    def __setitem__(self, key: object, value: object) -> None: ...

    def __contains__(self, key: object) -> bool:
        return False

    def __iter__(self) -> Iterator[object]:
        return iter(())

    def __enter__(self) -> _Nothing:
        return self

    def __exit__(self, *error: object) -> None: ...


@functools.cache
def _say_once(text: str) -> None:
    tqdm.write(text)


def start_tracking(config: RunConfig, folder: RunFolder, attempt: Attempt) -> RunLogger:
    """Begin to record a run, as far as this rank does. Tasks and callbacks have a logger in any case."""
    mode = resolve_mode(config.wandb, os.environ)
    if mode == "disabled":
        return RunLogger(folder, None, say=_say_once if os.environ["RANK"] == "0" else None)
    if os.environ["RANK"] != "0":
        return RunLogger(folder, None)
    array = os.environ.get(ARRAY)
    artifact = config.wandb_artifact
    options = SessionOptions(
        folder.path,
        identify(folder, config, os.environ),
        config.wandb_name or os.environ.get("WANDB_NAME") or folder.path.name,
        config.wandb_group or os.environ.get("WANDB_RUN_GROUP") or array,
        config.wandb_job_type or os.environ.get("WANDB_JOB_TYPE") or ("array" if array else None),
        tuple(tag.strip() for tag in (config.wandb_tags or "").split(",") if tag.strip()),
        _shown_config(config, folder, attempt),
        ARTIFACT_SECONDS if artifact else FINISH_SECONDS["finished"],
        _stop_by_hand,
    )
    asked = config.wandb == "offline" or bool(os.environ.get("WANDB_MODE"))
    recording = Recording(folder, options, mode, step=attempt.resumed_step, artifact=artifact, told=asked)
    return RunLogger(folder, recording)


def _stop_by_hand() -> None:
    """Somebody pressed stop on the run's page."""
    tell_stop_by_hand("W&B")
    note_stop()


def _shown_config(config: RunConfig, folder: RunFolder, attempt: Attempt) -> dict[str, object]:
    """The options as they are resolved, and the plan without its lists of names."""
    values: dict[str, object] = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in vars(config).items()
        if not name.startswith("wandb")
    }
    plan = read_json(folder.plan_json)
    if isinstance(plan, dict):
        phases = [
            {key: value for key, value in phase.items() if key != "trainable_names"} for phase in plan.get("phases", ())
        ]
        values |= {"plan": {**plan, "phases": phases}}
    return {**values, "attempt": attempt.number, "world_size": int(os.environ["WORLD_SIZE"])}


def _shown(value: object) -> object:
    return value if value is None or isinstance(value, (int, float, str, bool, list, dict)) else str(value)
