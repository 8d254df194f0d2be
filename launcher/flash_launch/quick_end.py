"""Ends a rank that has done its work before Python's teardown, in which gloo may abort it. Standard library only.

A thread of gloo that lets go of a tensor while Python shuts down ends the process by SIGABRT (pytorch/pytorch#179291).
Such threads outlive destroy_process_group() wherever DistributedDataParallel was used, which keeps its group in memory.
"""

import atexit
import contextlib
import gc
import io
import os
import threading
from collections.abc import Callable
from pathlib import Path

__all__ = ["after_exit_handlers"]

_THREADS = Path("/proc/self/task")
_GLOO = "pt_gloo_runloop"
"""The name of the threads in which torch's ProcessGroupGloo works."""


def after_exit_handlers() -> Callable[[], None]:
    """Get ready, before any other exit handler is registered, so that this one runs last.

    Returns:
        To be called when the rank has done its work: the process then ends with exit code 0, after its exit handlers
        and with its files flushed, but without a teardown if there are threads of gloo.
    """
    done = threading.Event()

    def end() -> None:
        if done.is_set() and _gloo_lives():
            _flush_files()
            os._exit(0)

    atexit.register(end)
    return done.set


def _gloo_lives() -> bool:
    """Whether a thread of gloo is there, where the system says so."""
    with contextlib.suppress(OSError):
        return any((thread / "comm").read_text().strip() == _GLOO for thread in _THREADS.iterdir())
    return False


def _flush_files() -> None:
    """What was written to files that are open still, which Python's teardown would close."""
    for one in gc.get_objects():
        if issubclass(type(one), io.IOBase):
            with contextlib.suppress(Exception):  # closed, or read only
                one.flush()
