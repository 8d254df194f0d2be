"""Runs a script or module in a rank as `python` does, and ends it well. Standard library only."""

import contextlib
import os
import runpy
import signal
import sys
import threading
import time
import types
from collections.abc import Sequence
from pathlib import Path

from flash_launch import telling
from flash_strategies.run_session import EXIT_STOPPED, looks_for_stops, note_stop

__all__ = ["ended_well", "leave_process_group", "note_or_end", "run_program"]

GRACE_SECONDS = 30.0
"""From the first request to stop until a script that never looks at such requests gets SIGTERM, as by torchrun."""
_OF_RANK_0 = ("WANDB_RUN_ID", "WANDB_RESUME")
_asked = threading.Event()


def run_program(directory: str, argv: Sequence[str]) -> None:
    """Run `python SCRIPT ARGUMENTS` or `python -m MODULE ARGUMENTS` in this process, as `__main__`.

    Args:
        directory: where it runs.
        argv: the script, or -m and the module, and the arguments.
    """
    os.chdir(directory)
    if "GROUP_RANK" in os.environ:
        os.environ["NODE_RANK"] = os.environ["GROUP_RANK"]  # the name that Lightning and others know it by
    if os.environ.get("RANK", "0") != "0":
        for name in _OF_RANK_0:  # two processes that record as one W&B run would overwrite each other
            os.environ.pop(name, None)
    if argv[0] == "-m":
        _set_first_path(directory)
        sys.argv = list(argv[1:])
        runpy.run_module(argv[1], run_name="__main__", alter_sys=True)
        return
    path = os.path.abspath(argv[0])
    _set_first_path(os.path.dirname(os.path.realpath(path)))
    sys.argv = list(argv)
    # kept, with all that the script made, until Python ends: exit handlers and threads of the script use it
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    main.__dict__.update(__file__=path, __cached__=None, __builtins__=__builtins__)
    exec(compile(Path(path).read_bytes(), path, "exec", dont_inherit=True), main.__dict__)


def _set_first_path(folder: str) -> None:
    if not sys.flags.safe_path:
        sys.path[0] = folder


def ended_well(code: object) -> bool:
    """Whether a script that ended with sys.exit(code) has done its work, or saved; the latter is noted."""
    if code == EXIT_STOPPED and telling.ENDS in os.environ:
        telling.write(telling.own_path("exit"), {"exit_code": EXIT_STOPPED, "time": time.time()})
    return code in (None, 0, EXIT_STOPPED)


def leave_process_group() -> None:
    """Destroy a gloo process group that the script left: its threads can abort Python while it shuts down."""
    dist = sys.modules.get("torch.distributed")
    with contextlib.suppress(Exception):
        if dist is not None and dist.is_initialized() and dist.get_backend() == "gloo":
            dist.destroy_process_group()


def note_or_end(*_: object) -> None:
    """As a signal handler, note that this rank shall save and stop; it is ended if it never looks whether it shall.

    Slurm ends its jobs by itself: what it asks for before is left to the script.
    """
    note_stop()
    if not _asked.is_set() and "SLURM_JOB_ID" not in os.environ:
        timer = threading.Timer(GRACE_SECONDS, _end)
        timer.daemon = True
        timer.start()
    _asked.set()


def _end() -> None:
    if looks_for_stops():
        return
    if telling.ENDS in os.environ:
        telling.write(telling.own_path("exit"), {"exit_code": 128 + signal.SIGTERM, "unheeded": True})
    print("flash-launch: asked to stop; the script never calls stop_requested(), so it gets SIGTERM", file=sys.stderr)
    os.kill(os.getpid(), signal.SIGTERM)
