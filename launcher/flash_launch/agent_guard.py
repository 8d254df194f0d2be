"""What an agent does for its node's ranks: says what it starts, tells at once which one died, and ends the others."""

import contextlib
import importlib.metadata
import os
import platform
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from flash_launch import oom_evidence, telling

__all__ = ["SHUTDOWN_SECONDS", "begin_agent", "log_start"]

SHUTDOWN_SECONDS = 3
"""Seconds that ranks have between SIGTERM and SIGKILL once one of them failed, and a failed one has to end."""

_SLACK_SECONDS = 0.5
_PACKAGES = ("flash-launch", "torch", "torchvision", "deepspeed", "pytorch-lightning", "numpy")


def begin_agent(argv: Sequence[str]) -> None:
    """Watch this node's ranks: tell at once which one died, and kill the others if they do not end.

    torchrun cuts times to seconds, and gives ranks that ignore SIGTERM (as one waiting for a dead rank in native code
    does) a fixed 30 seconds. Python runs the handler in the main thread, before torchrun's loop there reaps the rank.

    Args:
        argv: torchrun's, which say how many ranks are to come.
    """
    ends = Path(os.environ[telling.ENDS])
    ends.mkdir(parents=True, exist_ok=True)
    node = os.environ.get(telling.NODE, "0")
    for stale in (*ends.glob(f"node{node}_*"), *ends.glob(f".node{node}_*")):
        stale.unlink(missing_ok=True)
    _tell_begin(argv)
    telling.keep_spare()
    _Watch(ends, node).start()


def log_start() -> int:
    """Where this process's part of its log begins: the end of what is there."""
    with contextlib.suppress(OSError):
        return os.fstat(1).st_size
    return 0


class _Watch:
    """The watch over one node's ranks, by signals."""

    def __init__(self, ends: Path, node: str) -> None:
        self._ends, self._node = ends, node
        self._dead: set[Path] = set()
        self._first = 0.0

    def start(self) -> None:
        signal.signal(signal.SIGCHLD, self._look)
        for number in (signal.SIGTERM, signal.SIGUSR1):  # torchrun is told to leave these two alone
            signal.signal(number, self._ask_to_stop)

    def _files(self) -> set[Path]:
        return set(self._ends.glob(f"node{self._node}_rank*.pid"))

    def _look(self, *_: object) -> None:
        for file in self._files() - self._dead:
            if code := _exit_code(file):
                self._dead.add(file)
                now = time.time()
                if len(self._dead) == 1:
                    self._first = now
                    # before torchrun ends them: where the others are explains a hang
                    telling.ask_for_stacks(self._ends, self._node)
                    timer = threading.Timer(SHUTDOWN_SECONDS, self._kill)
                    timer.daemon = True
                    timer.start()
                # who does not heed SIGTERM is killed, by torchrun or here: that is no failure of its own
                late = now - self._first > SHUTDOWN_SECONDS - _SLACK_SECONDS and code == -signal.SIGKILL
                told = {"time": now, "exit_code": code, "ended": late, **_evidence(file, code)}
                telling.write(file.with_suffix(".end"), told)

    def _kill(self) -> None:
        for file in self._files():
            with contextlib.suppress(OSError, ValueError):
                if _exit_code(file) is None:
                    os.killpg(int(file.read_text()), signal.SIGKILL)  # a rank is the head of a session of its own

    def _ask_to_stop(self, *_: object) -> None:
        for file in self._files():
            with contextlib.suppress(OSError, ValueError):
                if _exit_code(file) is None:
                    os.kill(int(file.read_text()), signal.SIGUSR1)


def _tell_begin(argv: Sequence[str]) -> None:
    matches = (re.fullmatch(r"--([\w-]+)=(.*)", one, re.DOTALL) for one in argv)
    given = {str(match[1]): str(match[2]) for match in matches if match is not None}
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    nodes, each = (int(given.get(name, "1")) for name in ("nnodes", "nproc-per-node"))
    node = int(given.get("node-rank", os.environ.get(telling.NODE, "0")))
    told = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "time": time.time(),
        "log_start": log_start(),
        "nodes": nodes,
        "ranks": list(range(node * each, (node + 1) * each)),
        "address": f"{given.get('master-addr', '')}:{given.get('master-port', '')}",
        "python": sys.executable,
        "versions": versions,
        "oom_kills": oom_evidence.own_counts(),
    }
    telling.write(telling.own_path("begin"), told)


def _evidence(file: Path, code: int) -> dict[str, object]:
    """What this machine knows of a rank's end beyond its exit code."""
    begin = telling.read(file.with_suffix(".begin"))
    pid = begin.get("pid")
    says = oom_evidence.kernel_says(pid) if code == -signal.SIGKILL and isinstance(pid, int) else ""
    return {"oom_kills": oom_evidence.more_than(begin.get("oom_kills")), "kernel": says}


def _exit_code(file: Path) -> int | None:
    """The exit code of a child that ended and was not yet reaped, by its .pid file; None if it runs or was reaped."""
    if not hasattr(os, "waitid"):  # macOS before Python 3.13: torchrun, which reaps them, says how its ranks ended
        return None
    with contextlib.suppress(OSError, ValueError):
        end = os.waitid(os.P_PID, int(file.read_text()), os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if end is not None:
            return end.si_status if end.si_code == os.CLD_EXITED else -end.si_status
    return None
