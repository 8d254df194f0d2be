"""Runs an agent or a rank so that it cannot outlive its parent and tells how it failed. Standard library only.

    python -m flash_launch.rank_guard [-m MODULE | SCRIPT] ARGUMENTS...

Everything here happens before torch is imported. The environment says what to guard against:
FLASH_LAUNCH_PARENT   the pid whose end ends this process
FLASH_LAUNCH_LOGS     the folder for the logs of ranks (processes with RANK set); in .ranks below it, ends are told
FLASH_LAUNCH_NODE     the number of an agent's node; torchrun's GROUP_RANK says it for a rank
"""

import contextlib
import ctypes
import json
import os
import runpy
import signal
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

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

PARENT = "FLASH_LAUNCH_PARENT"
LOGS = "FLASH_LAUNCH_LOGS"
NODE = "FLASH_LAUNCH_NODE"
ENDS = ".ranks"
"""Folder below the logs; per rank `.pid` (it runs, or died), `.failure` (its own words), `.end` (seen by its agent)."""
TRACEBACK_MARK = "[flash-launch] this rank failed:"
"""The line in a rank's log after which the console shows no more of it: the verdict tells which rank failed first."""
SHUTDOWN_SECONDS = 3
"""Seconds that ranks have between SIGTERM and SIGKILL once one of them failed, and a failed one has to end."""

_PR_SET_PDEATHSIG = 1
_told = threading.Event()
_stop = threading.Event()


def main(argv: Sequence[str]) -> None:
    """Guard this process, then run the module or script as `python` would."""
    _die_with_parent()
    if LOGS in os.environ:
        (_begin_rank if "RANK" in os.environ else _begin_agent)()
    try:
        if argv[0] == "-m":
            sys.argv = list(argv[1:])
            runpy.run_module(argv[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = list(argv)
            sys.path[0] = str(Path(argv[0]).absolute().parent)
            runpy.run_path(argv[0], run_name="__main__")
    except SystemExit as end:
        if end.code not in (None, 0):
            # sys.exit takes a text too: it is printed, and the code is 1.
            text = "" if isinstance(end.code, int) else str(end.code)
            _tell("failure", error=text, user_fault=bool(text), exit_code=end.code if not text else 1)
            raise
    except BaseException as error:
        note_failure(error)
        _print_failure(error)
        # Exit handlers and destructors may hang on a rank that is gone; those that do not shall have their time. The
        # kernel's alarm reaches where no Python thread runs any more.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, SHUTDOWN_SECONDS)
        raise SystemExit(1) from None
    if "RANK" in os.environ and LOGS in os.environ:
        _path("pid").unlink(missing_ok=True)  # from here on, that this process is gone is no failure


def note_failure(error: BaseException) -> None:
    """Tell the launcher what this process fails of, and when. Only the first call counts.

    A rank that cleans up after an error calls this before, so that it is not taken for a victim of those who notice.
    """
    user_fault = any(kind.__module__ == "flash_strategies.errors" for kind in type(error).__mro__)
    failures = getattr(error, "failures", None)  # of torch's ChildFailedError: how the agent's ranks ended
    _tell(
        "failure",
        error=str(error) if user_fault else "".join(traceback.format_exception_only(error)).strip(),
        user_fault=user_fault,
        ranks=[
            {"rank": rank, "exit_code": one.exitcode, "time": one.timestamp}
            for rank, one in (failures.items() if isinstance(failures, dict) else ())
        ],
    )


def note_stop(*_: object) -> None:
    """Note, as a signal handler, that somebody asks this rank to save and stop."""
    _stop.set()


def stop_requested() -> bool:
    """Whether somebody did."""
    return _stop.is_set()


def _begin_rank() -> None:
    """Send both streams to the log, in order: one description, opened to append, so attempts follow each other."""
    log = Path(os.environ[LOGS]) / f"{_name()}.log"
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.close(handle)
    signal.signal(signal.SIGUSR1, note_stop)  # before its pid is told, at which the signal is sent
    _write(_path("pid"), os.getpid())


def _begin_agent() -> None:
    """Watch this node's ranks: tell at once which one died, and kill the others if they do not end.

    torchrun cuts times to seconds, and gives ranks that ignore SIGTERM (as one waiting for a dead rank in native code
    does) a fixed 30 seconds. Python runs the handler in the main thread, before torchrun's loop there reaps the rank.
    """
    ends = Path(os.environ[LOGS]) / ENDS
    ends.mkdir(parents=True, exist_ok=True)
    node = os.environ.get(NODE, "0")
    for stale in ends.glob(f"node{node}_*"):
        stale.unlink(missing_ok=True)
    dead: set[Path] = set()

    def look(*_: object) -> None:
        for file in set(ends.glob(f"node{node}_rank*.pid")) - dead:
            if code := _exit_code(file):
                dead.add(file)
                _write(file.with_suffix(".end"), {"time": time.time(), "exit_code": code})
                if len(dead) == 1:
                    timer = threading.Timer(SHUTDOWN_SECONDS, kill)
                    timer.daemon = True
                    timer.start()

    def kill() -> None:
        for file in ends.glob(f"node{node}_rank*.pid"):
            with contextlib.suppress(OSError, ValueError):
                if _exit_code(file) is None:
                    os.killpg(int(file.read_text()), signal.SIGKILL)  # a rank is the head of a session of its own

    def ask_to_stop(*_: object) -> None:
        for file in ends.glob(f"node{node}_rank*.pid"):
            with contextlib.suppress(OSError, ValueError):
                if _exit_code(file) is None:
                    os.kill(int(file.read_text()), signal.SIGUSR1)

    signal.signal(signal.SIGCHLD, look)
    for number in (signal.SIGTERM, signal.SIGUSR1):  # torchrun is told to leave these two alone
        signal.signal(number, ask_to_stop)


def _exit_code(file: Path) -> int | None:
    """The exit code of a child that ended and was not yet reaped, by its .pid file; None if it runs or was reaped."""
    with contextlib.suppress(OSError, ValueError):
        end = os.waitid(os.P_PID, int(file.read_text()), os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if end is not None:
            return end.si_status if end.si_code == os.CLD_EXITED else -end.si_status
    return None


def _name() -> str:
    node = os.environ.get("GROUP_RANK") or os.environ.get(NODE, "0")
    return f"node{node}_rank{os.environ['RANK']}" if "RANK" in os.environ else f"node{node}_agent"


def _path(kind: str) -> Path:
    return Path(os.environ[LOGS]) / ENDS / f"{_name()}.{kind}"


def _tell(kind: str, **facts: object) -> None:
    if LOGS in os.environ and not _told.is_set():
        _write(_path(kind), {"time": time.time(), **facts})
    _told.set()


def _write(path: Path, obj: object) -> None:
    # Nothing that goes wrong here may hide the error that is being told, or stop a rank that is well.
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_text(json.dumps(obj), encoding="utf-8")
        temporary.replace(path)


def _print_failure(error: BaseException) -> None:
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        if "RANK" in os.environ:
            print(f"\n{TRACEBACK_MARK}", file=sys.stderr)
        frames = error.__traceback__
        while frames is not None and frames.tb_frame.f_code.co_filename in (__file__, "<frozen runpy>"):
            frames = frames.tb_next  # how the program was started tells nobody anything
        traceback.print_exception(type(error), error, frames)
        sys.stderr.flush()


def _die_with_parent() -> None:
    expected = os.environ.get(PARENT)
    if expected is None:
        return
    os.environ[PARENT] = str(os.getpid())  # for what this process starts, if it is guarded
    if sys.platform != "linux" or ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        threading.Thread(target=_watch_parent, args=(int(expected),), daemon=True).start()
    if os.getppid() != int(expected):  # it ended before this process asked to be told
        os._exit(1)


def _watch_parent(expected: int) -> None:
    while os.getppid() == expected:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    # The module by its name, not this copy of it called __main__: a worker that imports note_failure shares its state.
    from flash_launch import rank_guard

    rank_guard.main(sys.argv[1:])
