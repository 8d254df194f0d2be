"""Where a run runs: on this machine, on another, in a Slurm job; and how it is asked to end."""

import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from flash_launch.checkpoint.attempts import Attempt, launcher_runs, read_attempts
from flash_launch.cluster.client import Job, cancel, show_jobs
from flash_launch.cluster.job_file import read_job_file
from flash_launch.errors import ConfigError
from flash_launch.run_folder import RunFolder

__all__ = ["Place", "ask_to_end", "find_place", "open_run"]


@dataclass(frozen=True)
class Place:
    """Where the newest attempt of a run is, or its job waits."""

    attempt: Attempt | None
    """The newest attempt; None: none has begun."""
    ended: bool
    """Whether it has ended, as far as the run folder tells."""
    alive: bool | None
    """Whether its launcher runs on this machine; None: it began on another one, or in a job."""
    job_id: str | None
    """The newest Slurm job that was submitted for the run."""


def open_run(given: str) -> RunFolder:
    """The run folder, or folder of a sweep, that a command was given.

    Raises:
        ConfigError: it is none.
    """
    folder = RunFolder(Path(given).absolute())
    if not folder.config_yaml.exists() and not (folder.path / "sweep.json").exists():
        what = "is no run folder: it has no config.yaml" if folder.path.is_dir() else "does not exist"
        raise ConfigError(f"{given} {what}: give the folder that `flash-launch` named as `run folder`")
    return folder


def find_place(folder: RunFolder) -> Place:
    """Where a run is."""
    attempts = read_attempts(folder.attempts)
    newest = attempts[-1] if attempts else None
    ended = newest is not None and (folder.ends_of(newest.number) / "end.json").exists()
    jobs = read_job_file(folder).jobs
    in_job = newest is not None and (folder.ends_of(newest.number) / "slurm.json").exists()
    alive = None
    if newest is not None and not in_job and newest.host == socket.gethostname():
        alive = not ended and launcher_runs(newest)
    return Place(newest, ended, alive, jobs[-1].job_id if jobs else None)


def ask_to_end(folder: RunFolder, note: Callable[[str], None]) -> str:
    """Ask a run to save and end; what was done, as a sentence.

    Raises:
        FlashLaunchError: it runs elsewhere, it is over, or Slurm says no or nothing.
    """
    place = find_place(folder)
    if place.job_id is not None:
        jobs = show_jobs(place.job_id, note=note)
        if live := [job for job in jobs if not job.ended]:
            cancel(place.job_id, note=note)
            return f"job {place.job_id} ({_states(live)}) is cancelled: what runs saves first, and can go on"
        if place.alive is None:
            raise ConfigError(f"job {place.job_id} is over: there is nothing to end")
    if place.alive and place.attempt is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(place.attempt.pid, signal.SIGTERM)
        _wait_for_end(folder, place.attempt, note)
        return "the run was asked to save and end"
    if place.attempt is not None and place.alive is None and not place.ended:
        raise ConfigError(
            f"the run began on {place.attempt.host}, process {place.attempt.pid}: end it there, with "
            f"`flash-launch cancel` or kill -TERM {place.attempt.pid}"
        )
    raise ConfigError("the run is over: there is nothing to end")


def _wait_for_end(folder: RunFolder, attempt: Attempt, note: Callable[[str], None], seconds: float = 60) -> None:
    note("waiting until it has saved")
    end = time.monotonic() + seconds
    while time.monotonic() < end and launcher_runs(attempt):
        if (folder.ends_of(attempt.number) / "end.json").exists():
            return
        time.sleep(0.2)


def _states(jobs: list[Job]) -> str:
    return ", ".join(dict.fromkeys(job.state.lower() for job in jobs))
