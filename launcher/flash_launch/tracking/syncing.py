"""Uploads what a run recorded offline, by `wandb sync`: one recording after the other, in the order they were made."""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from flash_launch.errors import ConfigError, FlashLaunchError
from flash_launch.run_folder import RunFolder
from flash_launch.tracking.mode import find_login, without_key
from flash_launch.tracking.probe import why_unreachable
from flash_launch.tracking.record import read_identity, recordings, wandb_folder
from flash_launch.tracking.session import prepare_environment

__all__ = ["SyncError", "Uploaded", "Waiting", "check_server", "find_waiting", "run_folders", "upload"]


_CUT = "ends with an incomplete record"
_UNREADABLE = r"Failed to read|invalid chunk|\bEOF\b"
_FATAL = "Fatal error while uploading"
_LOOK_SECONDS = 10.0
_MISSES = 3


class SyncError(FlashLaunchError, RuntimeError):
    """An upload failed; what was recorded is still there."""


@dataclass(frozen=True)
class Waiting:
    """A recording that was not uploaded."""

    folder: RunFolder
    """Its run."""
    file: Path
    """What wandb wrote."""
    number: int
    """Its place among the run's recordings, from 1."""
    of: int
    """How many the run has."""


@dataclass(frozen=True)
class Uploaded:
    """A recording that was uploaded."""

    url: str
    """Address of the run; empty: wandb did not tell it."""
    whole: bool
    """Whether it ends as a recording does; else the attempt was killed, or is still running."""


def run_folders(path: Path) -> list[RunFolder]:
    """The run folder of that path, or those in it if it is a sweep's.

    Raises:
        ConfigError: there is none.
    """
    if not path.is_dir():
        raise ConfigError(f"sync was given {path}, which is no folder: give a run folder, or that of a sweep")
    whole = path.absolute()
    found = [one for one in (whole, *sorted(whole.iterdir())) if (one / "config.yaml").exists()]
    if not found:
        raise ConfigError(
            f"sync was given {path}, which is no run folder and holds none: one has a config.yaml, see `run folder` "
            "in what flash-launch printed"
        )
    return [RunFolder(one) for one in found]


def find_waiting(folders: Sequence[RunFolder]) -> list[Waiting]:
    """What was not uploaded, in order.

    Raises:
        ConfigError: none of the runs was ever recorded.
    """
    waiting: list[Waiting] = []
    for folder in folders:
        files = recordings(folder)
        waiting += [
            Waiting(folder, file, number, len(files)) for number, file in enumerate(files, 1) if not _is_synced(file)
        ]
    if not waiting and all(read_identity(folder) is None for folder in folders):
        raise ConfigError(
            f"nothing was recorded for W&B in {', '.join(str(folder.path) for folder in folders[:3])}: the run was "
            "started with --wandb disabled, or WANDB_MODE=disabled"
        )
    return waiting


def _is_synced(file: Path) -> bool:
    """Whether wandb, or this module, has marked it as uploaded since anything was last written to it."""
    marker = file.with_name(f"{file.name}.synced")
    return marker.exists() and marker.stat().st_mtime >= file.stat().st_mtime


def check_server(environment: Mapping[str, str]) -> str:
    """The server's name, if there is a login for it and it answers.

    Raises:
        ConfigError: no login.
        SyncError: no answer.
    """
    login = find_login(environment)
    if login.source is None:
        raise ConfigError(
            f"there is no login for {login.host}: set WANDB_API_KEY, or run `wandb login`, and sync again"
        )
    why = why_unreachable(login.server)
    if why is not None:
        raise SyncError(
            f"{login.host} cannot be reached from here ({why}): run the same command where there is a network. Nothing "
            "is lost"
        )
    return login.host


def upload(waiting: Waiting, environment: Mapping[str, str]) -> Uploaded:
    """Upload one recording.

    Raises:
        SyncError: wandb could not.
    """
    own = dict(environment)
    prepare_environment(wandb_folder(waiting.folder), own)
    own |= {"WANDB_MODE": "online", "WANDB_RESUME": "allow"}  # so that it is appended to what is there
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "wandb", "sync", "--include-online", "--include-synced", str(waiting.file)],
            env=own,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=waiting.folder.path,
        )
        try:
            _watch(process, find_login(own).server)
        finally:
            process.kill()  # W&B's own process ends with it
            process.wait()
        output.seek(0)
        lines = without_key(output.read().decode(errors="replace"), own).splitlines()
    words = [line.removeprefix("wandb: ").strip() for line in lines if line.startswith("wandb: ")]
    marker = waiting.file.with_name(f"{waiting.file.name}.synced")
    whole = not any(_CUT in word for word in words)
    fatal = any(_FATAL in word for word in words)  # wandb 0.31 may mark even this as done
    if waiting.number < waiting.of and any(re.search(_UNREADABLE, word) for word in (*words, *lines[-1:])):
        marker.touch()  # of an attempt that was killed: what can be read of it was sent
        return Uploaded("", False)
    if fatal or process.returncode != 0 or (whole and not marker.exists()):
        marker.unlink(missing_ok=True)
        told = " ".join([*words, *lines[-1:]] if process.returncode else words)[-1000:]
        raise SyncError(f"{os.path.relpath(waiting.file)} was not uploaded; wandb says: {told}")
    if not whole and waiting.number < waiting.of:
        marker.touch()  # of an attempt that was killed: nothing is added to it, and the next one went on from there
    urls = [word for line in words for word in line.split() if word.startswith("http") and "/runs/" in word]
    return Uploaded(urls[0] if urls else "", whole)


def _watch(process: subprocess.Popen[bytes], server: str) -> None:
    """Wait for the upload as long as there is somebody to upload to: wandb itself would go on trying for long.

    Raises:
        SyncError: the server has not answered for a while.
    """
    missed = 0
    while missed < _MISSES:
        try:
            process.wait(_LOOK_SECONDS)
            return
        except subprocess.TimeoutExpired:
            why = why_unreachable(server)
            missed = missed + 1 if why is not None else 0
    raise SyncError(
        f"the network went away in the middle ({why}): run the same command again. Nothing is lost; what had been sent "
        "by then may be shown twice"  # wandb appends
    )
