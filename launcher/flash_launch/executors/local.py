"""Starts the ranks of all nodes on this machine, shows rank 0, and ends them all when one fails or somebody says so."""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import BinaryIO

from flash_launch.errors import LaunchError
from flash_launch.executors.ends import agent_end, rank_ends
from flash_launch.executors.torchrun import agent_argv, agent_environment
from flash_launch.rank_guard import SHUTDOWN_SECONDS, TRACEBACK_MARK
from flash_launch.run_folder import RunFolder
from flash_launch.verdict import Verdict, find_verdict

__all__ = ["LaunchResult", "free_port", "run_local"]

_POLL_SECONDS = 0.05
_KILL_SECONDS = SHUTDOWN_SECONDS + 2
"""From telling the agents to end until they are killed, and their ranks with them."""
_POLITE = (signal.SIGTERM, signal.SIGUSR1)
"""Ask the ranks to finish their step, save and stop; a second one does not wait for that."""
_SIGNALS = (signal.SIGINT, signal.SIGHUP, *_POLITE)
_ASK_SECONDS = 1.0
_PORT_TAKEN = re.compile(r"EADDRINUSE|address already in use", re.IGNORECASE)
_PORTS_TRIED = 3


@dataclass(frozen=True)
class LaunchResult:
    """How a launch ended."""

    exit_code: int
    """0 finished, 1 a rank failed, 128 + N ended by signal N (130 Ctrl-C, 143 SIGTERM)."""
    verdict: Verdict | None
    """Who failed first; None unless the exit code is 1."""
    seconds: float
    """How long it took."""


@dataclass
class _Agent:
    """A torchrun agent that was started."""

    node: int
    process: subprocess.Popen[bytes]
    log: Path
    log_start: int
    told_to_end: bool = False

    def tell(self, number: signal.Signals) -> None:
        if self.process.poll() is None:
            self.told_to_end = True
            self.process.send_signal(number)


@dataclass
class _Signals:
    """The signals the launcher got; a Ctrl-C, or another one, must not end it before its ranks."""

    received: list[int] = field(default_factory=list)

    def note(self, number: int, _frame: FrameType | None) -> None:
        self.received.append(number)

    @property
    def hard(self) -> int | None:
        """The signal that ends the run at once."""
        if not self.received:
            return None
        if self.received[0] not in _POLITE:
            return self.received[0]
        rest = [number for number in self.received[1:] if number != signal.SIGUSR1]
        return rest[0] if rest else None

    @contextlib.contextmanager
    def watch(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():  # Python takes signals in the main thread only
            yield
            return
        before = {number: signal.signal(number, self.note) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class _Echo:
    """Copies what is added to a log to the console, byte by byte, so that progress bars look as they were written."""

    def __init__(self, log: Path, console: BinaryIO) -> None:
        self._log, self._console = log, console
        self._position = log.stat().st_size if log.exists() else 0
        self._held = b""
        self._open = True
        self._last = b"\n"

    def pump(self, *, last: bool = False) -> None:
        with contextlib.suppress(FileNotFoundError), self._log.open("rb") as file:
            file.seek(self._position)
            new = file.read()
            self._position += len(new)
            text, mark, _ = (self._held + new).partition(b"\n" + TRACEBACK_MARK.encode())
            # A mark that is only half written yet is held back.
            cut = len(text) if mark or last else len(text) - _overlap(text, b"\n" + TRACEBACK_MARK.encode())
            self._held = b"" if mark else text[cut:]
            self._write(text[:cut])
            self._open = self._open and not mark

    def finish(self) -> None:
        self.pump(last=True)
        self._open = True
        if self._last != b"\n":
            self._write(b"\n")

    def _write(self, data: bytes) -> None:
        if data and self._open:
            self._last = data[-1:]
            try:
                self._console.write(data)
                self._console.flush()
            except (OSError, ValueError):  # nobody reads any more: the run goes on, the log has it
                self._open = False


def run_local(
    folder: RunFolder,
    *,
    nodes: int,
    procs_per_node: int,
    worker: Sequence[str] = ("-m", "flash_launch.worker"),
    gpus: Sequence[str] | None = None,
    environment: Mapping[str, str] | None = None,
    console: BinaryIO | None = None,
    choose_port: Callable[[], int] | None = None,
    stop_seconds: float = 600.0,
) -> LaunchResult:
    """Run `nodes` x `procs_per_node` ranks on this machine until all have finished or one has failed.

    Args:
        folder: a run folder that exists; its path is the worker's last argument.
        worker: what each rank runs, as arguments of `python`.
        gpus: one per rank, shared out to the nodes; None leaves CUDA_VISIBLE_DEVICES alone, empty hides all.
        environment: what the agents inherit; default: this process's.
        console: where rank 0 is shown; default: standard output.
        stop_seconds: how long the ranks have to save and stop when they are asked to, before they are ended.
        choose_port: gives a port for the ranks to meet at; another is tried if it is taken by then.

    Raises:
        LaunchError: no port could be had, or an agent could not be started.
    """
    start = time.monotonic()
    shutil.rmtree(folder.ends, ignore_errors=True)
    signals = _Signals()
    with signals.watch():
        for _ in range(_PORTS_TRIED):
            port = (choose_port or free_port)()
            echo = _Echo(folder.rank_log(0, 0), console or sys.stdout.buffer)
            agents: list[_Agent] = []
            try:
                for node in range(nodes):
                    agents.append(_start(folder, nodes, node, procs_per_node, worker, gpus, environment, port))
                _watch(agents, signals, echo, folder, stop_seconds)
            except OSError as error:
                raise LaunchError(f"an agent could not be started: {error}") from error
            finally:
                for agent in agents:
                    agent.tell(signal.SIGKILL)
                    agent.process.wait()
            if signals.hard is not None or not _port_was_taken(agents[0], folder):
                break
        else:
            raise LaunchError(f"{_PORTS_TRIED} ports one after the other were taken by others: start the run again")
        echo.finish()
    seconds = time.monotonic() - start
    if signals.hard is not None:
        return LaunchResult(128 + signals.hard, None, seconds)
    if all(agent.process.returncode == 0 for agent in agents):
        shutil.rmtree(folder.ends, ignore_errors=True)
        return LaunchResult(0, None, seconds)
    ends = [agent_end(a.node, a.process.returncode, a.told_to_end, a.log, a.log_start) for a in agents]
    return LaunchResult(1, find_verdict(rank_ends(folder), ends), seconds)


def free_port() -> int:
    """A port of this machine that nobody listens at now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _start(
    folder: RunFolder,
    nodes: int,
    node: int,
    procs_per_node: int,
    worker: Sequence[str],
    gpus: Sequence[str] | None,
    environment: Mapping[str, str] | None,
    port: int,
) -> _Agent:
    base = dict(os.environ if environment is None else environment)
    if sys.stdout.isatty():  # a rank writes to a file, so its progress bar cannot see how wide the console is
        size = shutil.get_terminal_size()
        base |= {"COLUMNS": str(size.columns), "LINES": str(size.lines)}
    log = folder.agent_log(node)
    argv = agent_argv(
        (*worker, str(folder.path)),
        nodes=nodes,
        node=node,
        procs_per_node=procs_per_node,
        address="127.0.0.1",
        port=port,
        run_id=f"{folder.path.name}-{port}",
        local_address="127.0.0.1",
    )
    with log.open("ab") as output:
        process = subprocess.Popen(
            argv,
            env=agent_environment(
                base,
                node=node,
                logs=str(folder.logs),
                parent=os.getpid(),
                threads=max(1, len(os.sched_getaffinity(0)) // (nodes * procs_per_node)),
                gpus=None if gpus is None else gpus[node * procs_per_node : (node + 1) * procs_per_node],
                interface="lo" if "lo" in (name for _, name in socket.if_nameindex()) else None,
            ),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a Ctrl-C at the console is for the launcher, which ends the others in order
        )
        return _Agent(node, process, log, log_start=output.tell())


def _watch(agents: Sequence[_Agent], signals: _Signals, echo: _Echo, folder: RunFolder, stop_seconds: float) -> None:
    """Until all agents have ended. A failed one, or a signal, ends the others; a second Ctrl-C ends them at once."""
    ending: float | None = None
    asked = first_asked = 0.0
    while None in (codes := [agent.process.poll() for agent in agents]):
        if signals.hard is None:
            echo.pump()
        now = time.monotonic()
        if ending is None and (signals.hard is not None or any(codes)):
            ending = now
            for agent in agents:
                agent.tell(signal.SIGHUP)
        elif ending is None and signals.received and now - asked > _ASK_SECONDS:
            first_asked = first_asked or now
            if now - first_asked > stop_seconds:
                signals.received.append(signals.received[0])
            asked = now  # again and again: a rank that had not started yet did not hear it
            for agent in agents:
                # before its ranks have told their pids, an agent may not know the signal
                if agent.process.poll() is None and any(folder.ends.glob(f"node{agent.node}_rank*.pid")):
                    agent.process.send_signal(signal.SIGUSR1)
        at_once = signals.received.count(signal.SIGINT) > 1
        if ending is not None and (at_once or now - ending > _KILL_SECONDS):
            for agent in agents:
                agent.tell(signal.SIGKILL)  # its ranks asked the kernel to be killed with it
        time.sleep(_POLL_SECONDS)


def _port_was_taken(agent: _Agent, folder: RunFolder) -> bool:
    if agent.process.returncode == 0 or any(folder.ends.glob("*_rank*")):
        return False
    with agent.log.open("rb") as file:
        file.seek(agent.log_start)
        return _PORT_TAKEN.search(file.read().decode(errors="replace")) is not None


def _overlap(text: bytes, mark: bytes) -> int:
    """How many bytes at the end of the text are the beginning of the mark."""
    return next(
        (length for length in range(min(len(text), len(mark) - 1), 0, -1) if mark.startswith(text[-length:])), 0
    )
