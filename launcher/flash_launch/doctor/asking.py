"""Asks a program: runs it with a time limit and without a terminal, and tells how it answered."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Answer", "ask", "end_all"]

_running: set[subprocess.Popen[str]] = set()
"""What threads are waiting for."""


@dataclass(frozen=True)
class Answer:
    """How a program answered."""

    code: int | None
    """Its exit code; None: it was not there, or did not answer in time."""
    out: str = ""
    """What it wrote to standard output."""
    err: str = ""
    """What it wrote to standard error."""
    problem: str = ""
    """Why there is no exit code, or what was wrong, in words; empty if all went well."""
    fix: str = ""
    """What to do about the problem, where that is known."""


def ask(
    argv: Sequence[str], *, timeout: float, given: str = "", environment: Mapping[str, str] | None = None
) -> Answer:
    """Run a program; at the time limit it is killed with all it started.

    Args:
        timeout: seconds.
        given: its standard input.
        environment: its environment; None: this process's.
    """
    try:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            text=True,
            errors="replace",
            start_new_session=True,  # so that all it starts can be ended with it
        )
    except OSError as error:
        return Answer(None, problem=f"{argv[0]} cannot be run: {error.strerror}")
    _running.add(process)
    try:
        out, err = process.communicate(given, timeout=timeout)
    except subprocess.TimeoutExpired:
        _end(process)
        return Answer(None, problem=f"{argv[0]} did not answer within {timeout:g} s")
    except BaseException:  # Ctrl-C: nothing may be left running
        _end(process)
        raise
    finally:
        _running.discard(process)
    return Answer(process.returncode, out, err)


def end_all() -> None:
    """End every program that a thread is waiting for: for a signal, which only the main thread gets."""
    for process in list(_running):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)


def _end(process: subprocess.Popen[str]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):  # on SIGTERM, srun ends what it started
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=1)  # a process that cannot be killed now must not hold us
