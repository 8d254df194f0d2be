"""Runs the command `flash-launch` as a user does: in a folder, with a time limit, and looks for what is left of it."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

COMMAND = Path(sys.executable).with_name("flash-launch")
_MARK = "FLASH_LAUNCH_TEST"


@dataclass(frozen=True)
class Answer:
    """How a command ended."""

    code: int
    """Its exit code."""
    out: str
    """Standard output."""
    err: str
    """Standard error."""
    seconds: float
    """Until it ended."""
    alive: tuple[str, ...]
    """Command lines of processes it started that are still there."""


def flash_launch(
    folder: Path,
    *argv: str,
    timeout: float = 280,
    python_path: Path | None = None,
    send: signal.Signals | None = None,
    when: Callable[[], bool] = lambda: True,
) -> Answer:
    """Run `flash-launch ARGV` in a folder, on a machine without GPUs; at the time limit it is killed, and fails.

    Args:
        send: a signal that the command gets once `when` is true.
    """
    mark = secrets.token_hex(8)
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", _MARK: mark}
    environment.pop("PYTHONPATH", None)
    # the user's own, and the edited code of the mutation run
    found = [str(one) for one in (python_path, os.environ.get("MUTANT_SOURCES")) if one]
    environment |= {"PYTHONPATH": os.pathsep.join(found)} if found else {}
    before = os.times().elapsed
    command = subprocess.Popen(
        [COMMAND, *argv],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while send is not None and command.poll() is None:
        if when():
            command.send_signal(send)
            break
        time.sleep(0.02)
    try:
        out, err = command.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        command.kill()  # its agents and ranks end with it
        out, err = command.communicate()
        raise AssertionError(f"flash-launch {' '.join(argv)} took over {timeout} s:\n{out[-3000:]}\n{err}") from None
    seconds = os.times().elapsed - before
    return Answer(command.returncode, out, err, seconds, marked(mark))


def marked(mark: str) -> tuple[str, ...]:
    """Command lines of the processes with this mark in their environment."""
    found: list[str] = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(_MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.cmdline()))
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
    return tuple(found)


def working_in(folder: Path) -> tuple[str, ...]:
    """Command lines of the processes below this one that work in a folder."""
    found: list[str] = []
    for process in psutil.Process().children(recursive=True):
        # others may end meanwhile, or be dead and not waited for, as in the containers of a test cluster
        with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            if Path(process.cwd()) == folder:
                found.append(" ".join(process.cmdline()))
    return tuple(found)


def files(folder: Path) -> dict[str, bytes | None]:
    """Everything below a folder: contents of files by path, None for what is no file."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}
