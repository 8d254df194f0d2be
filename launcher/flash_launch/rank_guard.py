"""Runs an agent or a rank so that it cannot outlive its parent and tells how it failed. Standard library only.

    python -m flash_launch.rank_guard [--script FOLDER] [-m MODULE | SCRIPT] ARGUMENTS...

With --script it is a script of the user's: it runs in FOLDER, and sys.exit(0) is a good end.
Everything here happens before torch is imported. The environment says what to guard against:
FLASH_LAUNCH_PARENT   the pid whose end ends this process
FLASH_LAUNCH_LOGS     the folder for the logs of ranks (processes with RANK set)
FLASH_LAUNCH_ENDS     the folder where ranks and agents of this attempt tell of themselves, see telling.py
FLASH_LAUNCH_NODE     the number of an agent's node; torchrun's GROUP_RANK says it for a rank
"""

import contextlib
import ctypes
import faulthandler
import os
import runpy
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from flash_launch import oom_evidence, progress, telling
from flash_launch.agent_guard import SHUTDOWN_SECONDS, begin_agent, log_start
from flash_launch.quick_end import after_exit_handlers
from flash_launch.script import running
from flash_strategies.run_session import note_stop, stop_requested

__all__ = [
    "ENDS",
    "LOGS",
    "NODE",
    "PARENT",
    "SHUTDOWN_SECONDS",
    "TRACEBACK_MARK",
    "main",
    "note_failure",
    "note_stop",
    "stop_requested",
]

PARENT, LOGS, NODE, ENDS = telling.PARENT, telling.LOGS, telling.NODE, telling.ENDS
TRACEBACK_MARK = "[flash-launch] this rank failed:"
"""The line in a rank's log after which the console shows no more of it: the verdict tells which rank failed first."""
_MOST_CAUSES, _MOST_FRAMES, _MOST_WORDS = 5, 60, 20_000

_PR_SET_PDEATHSIG = 1
_told = threading.Event()


def main(argv: Sequence[str]) -> None:
    """Guard this process, then run the module or script as `python` would."""
    _die_with_parent()
    done = after_exit_handlers() if "RANK" in os.environ else None
    script = argv[0] == "--script"
    if telling.ENDS in os.environ:
        if "RANK" in os.environ:
            _begin_rank(running.note_or_end if script else note_stop)
        else:
            begin_agent(argv)
    try:
        if script:
            running.run_program(argv[1], argv[2:])
        elif argv[0] == "-m":
            sys.argv = list(argv[1:])
            runpy.run_module(argv[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = list(argv)
            sys.path[0] = str(Path(argv[0]).absolute().parent)
            runpy.run_path(argv[0], run_name="__main__")
    except SystemExit as end:
        good = script and running.ended_well(end.code)
        if end.code not in (None, 0) and not good:
            # sys.exit takes a text too: it is printed, and the code is 1.
            text = "" if isinstance(end.code, int) else str(end.code)
            _tell("failure", error=text, user_fault=bool(text), exit_code=end.code if not text else 1)
            raise
        if "RANK" in os.environ and not good:  # a worker that has done its work returns
            note_failure(end)
            _print_failure(end)
            raise SystemExit(1) from None
    except BaseException as error:
        note_failure(error)
        _print_failure(error)
        # Exit handlers and destructors may hang on a rank that is gone; those that do not shall have their time. The
        # kernel's alarm reaches where no Python thread runs any more.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, SHUTDOWN_SECONDS)
        raise SystemExit(1) from None
    if script:
        running.leave_process_group()
    if telling.ENDS in os.environ:
        _end_well()
    if done is not None:
        done()


def note_failure(error: BaseException) -> None:
    """Tell the launcher what this process fails of, and when. Only the first call counts.

    A rank that cleans up after an error calls this before, so that it is not taken for a victim of those who notice.
    """
    user_fault = any(kind.__module__ == "flash_strategies.errors" for kind in type(error).__mro__)
    failures = getattr(error, "failures", None)  # of torch's ChildFailedError: how the agent's ranks ended
    _tell(
        "failure",
        error=(str(error) if user_fault else _words(error))[-_MOST_WORDS:],
        type=f"{type(error).__module__}.{type(error).__qualname__}",
        causes=[_words(cause)[-_MOST_WORDS:] for cause in _chain(error)],
        frames=_frames((_chain(error) or [error])[-1] if user_fault else error),
        user_fault=user_fault,
        ranks=[
            {"rank": rank, "exit_code": one.exitcode, "time": one.timestamp}
            for rank, one in (failures.items() if isinstance(failures, dict) else ())
        ],
    )


def _end_well() -> None:
    for number in (signal.SIGTERM, signal.SIGUSR1):  # Python forgets its handlers first: asked to stop, it would die
        signal.signal(number, signal.SIG_IGN)
    with contextlib.suppress(OSError):
        telling.own_path("pid").unlink(missing_ok=True)  # from here on, that this process is gone is no failure
        for kind in ("spare", "stack"):
            telling.own_path(kind).unlink(missing_ok=True)


def _begin_rank(asked_to_stop: Callable[..., None]) -> None:
    """Send both streams to the log, in order: one description, opened to append, so attempts follow each other."""
    log = Path(os.environ[telling.LOGS]) / telling.own_path("log").name
    with contextlib.suppress(OSError):  # a full disk: what it says goes where its agent's words go
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        os.close(handle)
    faulthandler.enable(2)
    with contextlib.suppress(OSError):
        stack = os.open(telling.own_path("stack"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        faulthandler.register(telling.STACK_SIGNAL, stack, all_threads=True)  # in C: it answers in a native call, too
    signal.signal(signal.SIGUSR1, asked_to_stop)  # before its pid is told, at which the signal is sent
    if "SLURM_JOB_ID" in os.environ:  # Slurm sends its SIGTERM to every process of a job
        signal.signal(signal.SIGTERM, note_stop)
        os.register_at_fork(after_in_child=_heed_only_parent)
    telling.keep_spare()
    begin = {"host": socket.gethostname(), "pid": os.getpid(), "time": time.time(), "log_start": log_start()}
    telling.write(telling.own_path("begin"), {**begin, "oom_kills": oom_evidence.own_counts()})
    telling.write(telling.own_path("pid"), os.getpid())


def _heed_only_parent() -> None:
    """In a data worker: end by its rank's SIGTERM, as torch has it, and not by Slurm's, of which torch's handler dies.

    It would take its rank with it, which is to save.
    """
    parent = os.getppid()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def wait() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
            pass
        os._exit(0)

    threading.Thread(target=wait, name="SIGTERM", daemon=True).start()


def _tell(kind: str, **facts: object) -> None:
    if telling.ENDS in os.environ and not _told.is_set():
        telling.write(telling.own_path(kind), {"time": time.time(), **facts}, spare=telling.own_path("spare"))
        progress.flush()
    _told.set()


def _chain(error: BaseException) -> list[BaseException]:
    """The errors it came from, the nearest first."""
    found: list[BaseException] = []
    while (cause := error.__cause__ or (None if error.__suppress_context__ else error.__context__)) is not None:
        if cause in found or len(found) == _MOST_CAUSES:
            break
        found.append(cause)
        error = cause
    return found


def _words(error: BaseException) -> str:
    return "".join(traceback.format_exception_only(error)).strip()


def _frames(error: BaseException) -> list[str]:
    """Where it was raised, outermost first, in the words of a traceback."""
    frames = traceback.extract_tb(error.__traceback__)[-_MOST_FRAMES:]
    return [f'File "{frame.filename}", line {frame.lineno} in {frame.name}' for frame in frames]


def _print_failure(error: BaseException) -> None:
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        if "RANK" in os.environ:
            print(f"\n{TRACEBACK_MARK}", file=sys.stderr)
        frames = error.__traceback__
        ours = (__file__, running.__file__, "<frozen runpy>")
        while frames is not None and frames.tb_frame.f_code.co_filename in ours:
            frames = frames.tb_next  # how the program was started tells nobody anything
        traceback.print_exception(type(error), error, frames)
        sys.stderr.flush()


def _die_with_parent() -> None:
    expected = os.environ.get(telling.PARENT)
    if expected is None:
        return
    os.environ[telling.PARENT] = str(os.getpid())  # for what this process starts, if it is guarded
    if not _killed_with_parent():
        threading.Thread(target=_watch_parent, args=(int(expected),), daemon=True).start()
    if os.getppid() != int(expected):  # it ended before this process asked to be told
        os._exit(1)


def _killed_with_parent() -> bool:
    """Ask the kernel to kill this process with its parent; False: it cannot, as any but Linux."""
    try:
        return bool(ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) == 0)
    except (AttributeError, OSError):
        return False


def _watch_parent(expected: int) -> None:
    while os.getppid() == expected:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    # The module by its name, not this copy of it called __main__: a worker that imports note_failure shares its state.
    from flash_launch import rank_guard

    rank_guard.main(sys.argv[1:])
