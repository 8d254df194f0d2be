"""Runs a launch's nodes through processes that reach them, ssh or srun: starts them, steers them by their stdin.

The first line of a process's stdin says what to run there, with which variables and in which folder: values of any kind
survive, and no command line or log shows a key. Then come control lines: "stop" asks to save and stop, "alive" says
that the launcher is there, and the end of the stream ends the node at once. So ranks end with their launcher, however
that ends.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from flash_launch import telling
from flash_launch.executors.agent import Signals
from flash_launch.executors.echo import Echo
from flash_launch.executors.ends import attempt_verdict
from flash_launch.executors.local import LaunchResult
from flash_launch.executors.node import ALIVE, BEGAN, STOP
from flash_launch.executors.outcome import outcome
from flash_launch.rank_guard import SHUTDOWN_SECONDS
from flash_launch.run_folder import RunFolder

__all__ = ["Pipe", "RemoteProcess", "boot_argv", "boot_line", "last_line", "passed_on", "run_remote"]

_BOOT = (
    "import json,os,sys;"
    'r=json.loads(b"".join(iter(lambda:os.read(0,1)or b"\\n",b"\\n"))or b"{}")or sys.exit(1);'
    'os.environ.update(r["environment"]);f=r["folder"];os.path.isdir(f)and os.chdir(f);'
    'os.execv(sys.executable,[sys.executable,"-u","-m",*r["argv"]])'
)
"""Reads its first line and not a byte more, then becomes what that says. One line, for shells that know no other."""

_PREFIXES = (
    *("FLASH_LAUNCH_", "WANDB_", "NCCL_", "GLOO_", "UCX_", "FI_", "CUDA_", "OMP_", "MKL_", "KMP_", "OPENBLAS_"),
    *("TORCH_", "TORCHINDUCTOR_", "PYTORCH_", "TRITON_", "DS_", "DEEPSPEED_", "HF_", "HUGGINGFACE_", "TRANSFORMERS_"),
    "TOKENIZERS_",
)
_NAMES = (
    *("PYTHONPATH", "PYTHONWARNINGS", "PYTHONFAULTHANDLER", "PYTHONHASHSEED", "PYTHONDONTWRITEBYTECODE"),
    *("COLUMNS", "LINES", "http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"),
)
_OWN = ("CUDA_VISIBLE_DEVICES", telling.PARENT, telling.LOGS, telling.ENDS, telling.NODE)
"""Stay what they are on each host."""
PASS = "FLASH_LAUNCH_PASS"
"""Names more variables that travel, with commas between; NAME_* is all that begin so."""

_POLL_SECONDS = 0.05
_ALIVE_SECONDS = 5.0
_BEGIN_SECONDS = 120.0
_GRACE_SECONDS = 20.0
"""From the end of one node that failed until the others are ended: they mostly notice by themselves, and say how."""
_END_SECONDS = SHUTDOWN_SECONDS + 12.0
"""From telling nodes to end until the processes that reach them are killed."""
_STOP_SLACK_SECONDS = 30.0
_TOLD_SECONDS = 5.0
"""How long a shared file system may take to show what a node wrote when it ended."""


@dataclass(frozen=True)
class RemoteProcess:
    """A process that reaches one node, or several."""

    argv: tuple[str, ...]
    """Its command line here; at the other end it runs `boot_argv()`."""
    line: bytes
    """The first line of its stdin, by `boot_line`."""
    nodes: tuple[int, ...]
    """Numbers of the nodes it runs."""
    hosts: tuple[str, ...]
    """Their names."""
    environment: Mapping[str, str] | None = None
    """Its own variables here; None: this process's."""


class Pipe:
    """The stdin of a process, written to without ever waiting for it."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None
        self._stream = process.stdin
        self._left = b""
        os.set_blocking(self._stream.fileno(), False)

    def write(self, data: bytes) -> None:
        """Write, now or when there is room."""
        self._left += data
        self.pump()

    def pump(self) -> None:
        """Write what is left."""
        try:
            while self._left and not self._stream.closed:
                self._left = self._left[os.write(self._stream.fileno(), self._left) :]
        except BlockingIOError:
            pass
        except OSError:  # nobody reads any more: its exit code tells
            self.close()

    def close(self) -> None:
        """End the stream."""
        self._left = b""
        with suppress(OSError):
            self._stream.close()


@dataclass
class _Running:
    """A process that runs, or ran."""

    plan: RemoteProcess
    process: subprocess.Popen[bytes]
    pipe: Pipe
    log: Path
    """What the process, and who it runs, say."""
    begun: bool = False
    lost: str = field(default="")
    """Why it is given up, in words."""

    @property
    def who(self) -> str:
        return ", ".join(self.plan.hosts)


def boot_argv(python: str = sys.executable) -> list[str]:
    """The command line to run at the other end."""
    return [python, "-u", "-c", _BOOT]


def boot_line(argv: Sequence[str], environment: Mapping[str, str], folder: str) -> bytes:
    """The first line for it: run module `argv` with these variables, in this folder if it is there."""
    return json.dumps({"argv": list(argv), "environment": dict(environment), "folder": folder}).encode() + b"\n"


def passed_on(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that travel to other hosts; PATH and the like stay what they are there."""
    more = [name.strip() for name in environment.get(PASS, "").split(",") if name.strip()]
    names = (*_NAMES, *(name for name in more if not name.endswith("*")))
    prefixes = (*_PREFIXES, *(name[:-1] for name in more if name.endswith("*") and name != "*"))
    return {
        name: value
        for name, value in environment.items()
        if (name in names or name.startswith(prefixes)) and (name not in _OWN or name in more)
    }


def run_remote(
    folder: RunFolder,
    processes: Sequence[RemoteProcess],
    *,
    attempt: int,
    stop_seconds: float = 600.0,
    console: BinaryIO | None = None,
) -> LaunchResult:
    """Run all nodes until all have ended. A failed or lost one, or a signal, ends the others; never waits for ever.

    Args:
        folder: a run folder that exists here and there.
        processes: reach all nodes, each of which runs executors/node.py with --control.
        attempt: the attempt's number.
        stop_seconds: how long the ranks have to save and stop when they are asked to.
        console: where rank 0 is shown; default: standard output.
    """
    start = time.monotonic()
    ends = folder.ends_of(attempt)
    ends.mkdir(parents=True, exist_ok=True)
    signals = Signals()
    echo = Echo(folder.rank_log(0, 0), console or sys.stdout.buffer)
    running: list[_Running] = []
    with signals.watch():
        try:
            for plan in processes:
                running.append(_start(plan, ends))
            _Watch(running, signals, ends, stop_seconds, echo).run()
        finally:
            for one in running:
                one.pipe.close()
                one.process.kill()
                one.process.wait()
        _tell_missing_ends(running, ends)
        echo.finish()
    seconds = time.monotonic() - start
    if signals.hard is not None:
        return LaunchResult(128 + signals.hard, None, seconds)
    nodes = sum(len(plan.nodes) for plan in processes)
    return outcome(folder, attempt, nodes, seconds, attempt_verdict(folder, attempt))


def last_line(log: Path) -> str:
    """The last thing that a process said."""
    with suppress(OSError):
        lines = [line.strip() for line in log.read_text(errors="replace").splitlines()]
        return next((line for line in reversed(lines) if line and BEGAN not in line), "")
    return ""


def _start(plan: RemoteProcess, ends: Path) -> _Running:
    log = ends / f"reach_node{'-'.join(str(node) for node in plan.nodes[:1])}.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            plan.argv,
            env=plan.environment,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    running = _Running(plan, process, Pipe(process), log)
    running.pipe.write(plan.line)
    return running


class _Watch:
    """Waits for all processes, and ends those that are left when one fails or somebody says so."""

    def __init__(
        self, running: Sequence[_Running], signals: Signals, ends: Path, stop_seconds: float, echo: Echo
    ) -> None:
        self._running, self._signals, self._ends, self._echo = running, signals, ends, echo
        self._stop_seconds = stop_seconds
        self._began = self._alive = time.monotonic()
        self._failed: float | None = None
        self._asked: float | None = None
        self._ending: float | None = None

    def run(self) -> None:
        while any(one.process.poll() is None for one in self._running):
            now = time.monotonic()
            if self._signals.hard is None:
                self._echo.pump()
            self._look(now)
            self._steer(now)
            for one in self._running:
                one.pipe.pump()
            time.sleep(_POLL_SECONDS)

    def _look(self, now: float) -> None:
        """Whether one failed, or did not begin in time."""
        for one in self._running:
            code = one.process.poll()
            one.begun = one.begun or BEGAN in _text(one.log)
            if code:
                # a node that did not even begin leaves the others nothing to say
                self._failed = self._failed or (now if one.begun else now - _GRACE_SECONDS)
            elif code is None and not one.begun and now - self._began > _BEGIN_SECONDS and not one.lost:
                one.lost = f"{one.who} did not begin within {_BEGIN_SECONDS:g} s"
                self._failed = self._failed or now - _GRACE_SECONDS

    def _steer(self, now: float) -> None:
        if now - self._alive > _ALIVE_SECONDS:
            self._alive = now
            self._say(ALIVE)
        if self._signals.received and self._signals.hard is None:
            if self._asked is None:
                self._asked = now
                self._say(STOP)
            else:
                self._signals.overdue = now - self._asked > self._stop_seconds + _STOP_SLACK_SECONDS
        late = self._failed is not None and now - self._failed > _GRACE_SECONDS
        if self._ending is None and (self._signals.hard is not None or late):
            self._ending = now
            for one in self._running:
                one.pipe.close()
        at_once = self._signals.received.count(signal.SIGINT) > 1
        if self._ending is not None and (at_once or now - self._ending > _END_SECONDS):
            for one in self._running:
                if one.process.poll() is None:
                    one.lost = one.lost or f"{one.who} did not end within {_END_SECONDS:g} s of being told to"
                    one.process.kill()

    def _say(self, line: bytes) -> None:
        for one in self._running:
            one.pipe.write(line)


def _tell_missing_ends(running: Sequence[_Running], ends: Path) -> None:
    """Write, for nodes that told nothing of their end, what is known here."""
    until = time.monotonic() + _TOLD_SECONDS
    for one in running:
        for node, host in zip(one.plan.nodes, one.plan.hosts, strict=True):
            file = ends / f"node{node}_agent.end"
            code = one.process.returncode
            # ssh's own failure: nothing is to come
            while not file.exists() and code >= 0 and code != 255 and time.monotonic() < until:
                os.listdir(ends)  # makes a network file system look again
                time.sleep(_POLL_SECONDS)
            if file.exists():
                continue
            told: dict[str, object] = {"time": time.time(), "told_to_end": False}
            if code == 0:
                telling.write(file, {**told, "exit_code": 0})
                continue
            words = one.lost or last_line(one.log) or f"the process that reaches it ended with {code}"
            if not one.begun:
                telling.write(ends / f"node{node}.json", {"node": node, "host": host, "time": time.time()})
            how = "was lost" if one.begun else "never began"
            telling.write(file, {**told, "exit_code": None, "error": f"{host} {how}: {words}"})


def _text(log: Path) -> str:
    with suppress(OSError):
        return log.read_text(errors="replace")
    return ""
