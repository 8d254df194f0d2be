"""Starts the ranks of all nodes on this machine, shows rank 0, and ends them all when one fails or somebody says so."""

import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from flash_launch.checkpoint.attempts import Fence, FenceWatch
from flash_launch.errors import LaunchError
from flash_launch.executors.addresses import loopback
from flash_launch.executors.agent import Agent, Signals, start_agent, watch
from flash_launch.executors.echo import Echo
from flash_launch.executors.ports import held_port
from flash_launch.executors.torchrun import agent_argv, agent_environment, worker_argv
from flash_launch.processes import usable_cores
from flash_launch.run_folder import RunFolder

if TYPE_CHECKING:
    from flash_launch.verdict import Verdict

__all__ = ["LaunchResult", "run_local"]

_PORT_TAKEN = re.compile(r"EADDRINUSE|address already in use", re.IGNORECASE)
_PORTS_TRIED = 3


@dataclass(frozen=True)
class LaunchResult:
    """How a launch ended."""

    exit_code: int
    """0 finished, 1 a rank failed, 128 + N ended by signal N (130 Ctrl-C, 143 SIGTERM)."""
    verdict: "Verdict | None"
    """Who failed first; None unless the exit code is 1."""
    seconds: float
    """How long it took."""


def run_local(
    folder: RunFolder,
    *,
    nodes: int,
    procs_per_node: int,
    worker: Sequence[str] | None = None,
    gpus: Sequence[str] | None = None,
    environment: Mapping[str, str] | None = None,
    console: BinaryIO | None = None,
    choose_port: Callable[[], int] | None = None,
    stop_seconds: float = 600.0,
    attempt: int = 1,
) -> LaunchResult:
    """Run `nodes` x `procs_per_node` ranks on this machine until all have finished or one has failed.

    Args:
        folder: a run folder that exists.
        worker: what each rank runs, as arguments of `python`; default: flash-launch's worker.
        gpus: one per rank, shared out to the nodes; None leaves CUDA_VISIBLE_DEVICES alone, empty hides all.
        environment: what the agents inherit; default: this process's.
        console: where rank 0 is shown; default: standard output.
        stop_seconds: how long the ranks have to save and stop when they are asked to, before they are ended.
        choose_port: gives a port for the ranks to meet at; another is tried if it is taken by then.
        attempt: the number of this attempt of the run.

    Raises:
        LaunchError: no port could be had, or an agent could not be started.
    """
    start = time.monotonic()
    ends = folder.ends_of(attempt)
    signals = Signals()
    worker = worker or worker_argv(folder)
    fenced = FenceWatch(Fence(folder.attempts, attempt))
    with signals.watch():
        for _ in range(_PORTS_TRIED):
            echo = Echo(folder.rank_log(0, 0), console or sys.stdout.buffer)
            agents: list[Agent] = []
            with held_port() if choose_port is None else nullcontext(choose_port()) as port:
                try:
                    for node in range(nodes):
                        agents.append(
                            _start(folder, nodes, node, procs_per_node, worker, gpus, environment, port, attempt)
                        )
                    watch(agents, signals, ends, stop_seconds, poll=echo.pump, must_end=fenced.ended)
                except OSError as error:
                    raise LaunchError(f"an agent could not be started: {error}") from error
                finally:
                    for agent in agents:
                        agent.tell(signal.SIGKILL)
                        agent.process.wait()
            if signals.hard is not None or not _port_was_taken(agents[0], ends):
                break
        else:
            raise LaunchError(f"{_PORTS_TRIED} ports one after the other were taken by others: start the run again")
        echo.finish()
    seconds = time.monotonic() - start
    if signals.hard is not None:
        return LaunchResult(128 + signals.hard, None, seconds)
    if all(agent.process.returncode == 0 for agent in agents):
        return LaunchResult(0, None, seconds)
    from flash_launch.executors.ends import attempt_verdict  # what most launches never need

    return LaunchResult(1, attempt_verdict(folder, attempt), seconds)


def _start(
    folder: RunFolder,
    nodes: int,
    node: int,
    procs_per_node: int,
    worker: Sequence[str],
    gpus: Sequence[str] | None,
    environment: Mapping[str, str] | None,
    port: int,
    attempt: int,
) -> Agent:
    base = dict(os.environ if environment is None else environment)
    if sys.stdout.isatty():  # a rank writes to a file, so its progress bar cannot see how wide the console is
        size = shutil.get_terminal_size()
        base |= {"COLUMNS": str(size.columns), "LINES": str(size.lines)}
    log = folder.agent_log(node)
    argv = agent_argv(
        worker,
        nodes=nodes,
        node=node,
        procs_per_node=procs_per_node,
        address="127.0.0.1",
        port=port,
        run_id=f"{folder.path.name}-{port}",
        local_address="127.0.0.1",
    )
    return start_agent(
        node,
        argv,
        agent_environment(
            base,
            folder=folder,
            attempt=attempt,
            node=node,
            parent=os.getpid(),
            threads=max(1, usable_cores() // (nodes * procs_per_node)),
            gpus=None if gpus is None else gpus[node * procs_per_node : (node + 1) * procs_per_node],
            interface=loopback(),
        ),
        log,
    )


def _port_was_taken(agent: Agent, ends: Path) -> bool:
    if agent.process.returncode == 0 or any(ends.glob("*_rank*")):
        return False
    with agent.log.open("rb") as file:
        file.seek(agent.log_start)
        return _PORT_TAKEN.search(file.read().decode(errors="replace")) is not None
