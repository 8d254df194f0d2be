"""Agents of a launch: started, watched until all have ended, asked to stop, and ended when one fails."""

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from flash_launch import oom_evidence, telling
from flash_launch.rank_guard import SHUTDOWN_SECONDS
from flash_launch.telling import ask_for_stacks

__all__ = ["Agent", "Signals", "start_agent", "watch"]

_POLL_SECONDS = 0.05
_KILL_SECONDS = SHUTDOWN_SECONDS + 2
"""From telling the agents to end until they are killed, and their ranks with them."""
_POLITE = (signal.SIGTERM, signal.SIGUSR1)
"""Ask the ranks to finish their step, save and stop; a second SIGTERM does not wait for that."""
_SIGNALS = (signal.SIGINT, signal.SIGHUP, *_POLITE)
_ASK_SECONDS = 1.0
_BURST_SECONDS = 0.2


@dataclass
class Agent:
    """A torchrun agent that was started."""

    node: int
    """Its node's number."""
    process: subprocess.Popen[bytes]
    """The process."""
    log: Path
    """Its log, which attempts append to."""
    log_start: int
    """Where this attempt begins in it."""
    told_time: float | None = None
    """When it was told to end; None: it was not, and ends by itself."""

    def tell(self, number: signal.Signals) -> None:
        """End it by a signal, if it runs."""
        if self.process.poll() is None:
            self.told_time = self.told_time or time.time()
            self.process.send_signal(number)


@dataclass
class Signals:
    """The signals this process got; a Ctrl-C, or another one, must not end it before its ranks."""

    received: list[int] = field(default_factory=list)
    """Numbers, in order."""
    overdue: bool = False
    """Whether the ranks were asked to stop, and did not in time."""
    _terminated: float | None = None

    def note(self, number: int, _frame: FrameType | None) -> None:
        """Handle a signal."""
        if number == signal.SIGTERM:
            now = time.monotonic()
            # slurmd ends a job by several in a row, and so does who signals both a process and its group
            burst = self._terminated is not None and now - self._terminated < _BURST_SECONDS
            self._terminated = now
            if burst:
                return
        self.received.append(number)

    @property
    def hard(self) -> int | None:
        """The signal that ends the run at once.

        In a Slurm job, none that is polite does: Slurm itself kills what has not ended by its KillWait.
        """
        if self.overdue:
            return self.received[0]
        if rude := [number for number in self.received if number not in _POLITE]:
            return rude[0]
        asked = [number for number in self.received if number == signal.SIGTERM]
        return asked[1] if len(asked) > 1 and "SLURM_JOB_ID" not in os.environ else None

    @contextlib.contextmanager
    def watch(self) -> Iterator[None]:
        """Take the signals, until the end of the context."""
        if threading.current_thread() is not threading.main_thread():  # Python takes signals in the main thread only
            yield
            return
        before = {number: signal.signal(number, self.note) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def start_agent(node: int, argv: Sequence[str], environment: Mapping[str, str], log: Path) -> Agent:
    """Start an agent whose output goes to a log.

    Raises:
        OSError: it could not be started.
    """
    with log.open("ab") as output:
        start = output.tell()
        process = subprocess.Popen(
            argv,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a Ctrl-C at the console is for the launcher, which ends the others in order
        )
    return Agent(node, process, log, start)


def watch(
    agents: Sequence[Agent],
    signals: Signals,
    ends: Path,
    stop_seconds: float,
    *,
    poll: Callable[[], None] = lambda: None,
    must_end: Callable[[], bool] = lambda: False,
) -> None:
    """Wait until all agents have ended. A failed one, or a signal, ends the others; a second Ctrl-C ends them at once.

    How each ended is written to `ends`, as nodeI_agent.end.

    Args:
        stop_seconds: how long the ranks have to save and stop when they are asked to, before they are ended.
        poll: called many times a second.
        must_end: asked as often; whether something elsewhere ends this launch.
    """
    ending: float | None = None
    asked = first_asked = 0.0
    while None in (codes := [agent.process.poll() for agent in agents]):
        if signals.hard is None:
            poll()
        now = time.monotonic()
        if ending is None and (signals.hard is not None or any(codes) or must_end()):
            ending = now
            for agent in agents if signals.hard is None else ():
                ask_for_stacks(ends, agent.node)  # where the others are explains a hang
            for agent in agents:
                agent.tell(signal.SIGHUP)
        elif ending is None and signals.received and now - asked > _ASK_SECONDS:
            first_asked = first_asked or now
            signals.overdue = now - first_asked > stop_seconds
            asked = now  # again and again: a rank that had not started yet did not hear it
            for agent in agents:
                # before its ranks have told their pids, an agent may not know the signal
                if agent.process.poll() is None and any(ends.glob(f"node{agent.node}_rank*.pid")):
                    agent.process.send_signal(signal.SIGUSR1)
        at_once = signals.received.count(signal.SIGINT) > 1
        if ending is not None and (at_once or now - ending > _KILL_SECONDS):
            for agent in agents:
                agent.tell(signal.SIGKILL)  # its ranks asked the kernel to be killed with it
        time.sleep(_POLL_SECONDS)
    for agent in agents:
        told = _told(agent, ends) | ({} if signals.hard is None else {"signal": signals.hard})
        telling.write(ends / f"node{agent.node}_agent.end", told)


def _told(agent: Agent, ends: Path) -> dict[str, object]:
    """How an agent ended, as its .end file has it."""
    before = telling.read(ends / f"node{agent.node}_agent.begin").get("oom_kills")
    return {
        "exit_code": agent.process.returncode,
        "time": time.time(),
        "told_to_end": agent.told_time is not None,
        "told_time": agent.told_time,
        "log_start": agent.log_start,
        "oom_kills": oom_evidence.more_than(before),
    }
