"""One node of a launch over several machines: starts its agent, passes on stops, and ends it when another node failed.

    python -m flash_launch.executors.node RUN --attempt 2 --node 0 --nodes gpu01,gpu02 --procs 4 --port 12345 ...

Nodes know of each other by the run folder, which they share: in attempts/NNNN/ each tells when it began (nodeI.json)
and how its agent ended (nodeI_agent.end). Slurm's steps and ssh run this; a launch on one machine needs no such thing.
With --control, its stdin says when to stop, and that the launcher still is there: see remote.py.
"""

import argparse
import contextlib
import json
import os
import re
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from flash_launch import telling
from flash_launch.checkpoint.attempts import Fence
from flash_launch.errors import FencedError, LaunchError
from flash_launch.executors.addresses import head_address, interface_of, local_address, source_address
from flash_launch.executors.agent import Agent, Signals, start_agent, watch
from flash_launch.executors.ports import held_port
from flash_launch.executors.torchrun import agent_argv, agent_environment, worker_argv
from flash_launch.processes import usable_cores
from flash_launch.run_folder import RunFolder, write_json

__all__ = ["ALIVE", "BEGAN", "BY_SLURM", "STOP", "NodeTask", "main", "node_argv", "run_node"]

STOP, ALIVE = b"stop\n", b"alive\n"
"""What a launcher says to a node: save and stop; and every few seconds, that it is there."""
BEGAN = "flash-launch: this node has begun"
"""What a node that is steered says first."""
BY_SLURM = -1
"""As a node's number: the one that Slurm gives this task of a step."""
_SILENCE_SECONDS = 180.0
"""A launcher that says nothing for so long is gone, or cut off."""
_LOOK_SECONDS = 2.0
_GRACE_SECONDS = 10.0
"""From another node's failure until this one is ended: its ranks mostly notice by themselves, and say how."""


@dataclass(frozen=True)
class NodeTask:
    """What one node does in a launch."""

    run: str
    """Path of the run folder."""
    attempt: int
    """The attempt's number."""
    node: int
    """This node's number."""
    nodes: tuple[str, ...]
    """Names of all nodes; the ranks meet on the first."""
    procs_per_node: int
    """Ranks on each."""
    port: int
    """Where they meet."""
    stop_seconds: float = 600.0
    """How long the ranks have to save and stop when they are asked to."""
    head: str = ""
    """The address of the first node; empty: it is found by its name, on each node."""
    worker: tuple[str, ...] = ()
    """What each rank runs, as arguments of `python`; empty: flash-launch's worker."""


def node_argv(task: NodeTask, python: str = sys.executable) -> list[str]:
    """The command line that runs `task` on its node."""
    return [
        *(python, "-u", "-m", "flash_launch.executors.node", task.run),
        *("--attempt", str(task.attempt), "--node", str(task.node), "--nodes", ",".join(task.nodes)),
        *("--procs", str(task.procs_per_node), "--port", str(task.port), "--stop-seconds", str(task.stop_seconds)),
        *(("--head", task.head) if task.head else ()),
        *(("--worker", json.dumps(task.worker)) if task.worker else ()),
    ]


def run_node(task: NodeTask, control: int | None = None) -> int:
    """Run this node's agent to its end; 0, or 1 if it failed here, or 128 + the signal that ended it.

    Args:
        control: descriptor by which the launcher steers this node; None: nobody does.

    Raises:
        LaunchError: the first node cannot be reached by its name, or the agent could not be started.
    """
    folder = RunFolder(Path(task.run))
    ends = folder.ends_of(task.attempt)
    ends.mkdir(parents=True, exist_ok=True)
    signals = Signals()
    others = _Others(ends, task.node, Fence(folder.attempts, task.attempt))
    with signals.watch(), contextlib.ExitStack() as held:
        if control is not None:
            print(BEGAN, flush=True)
            threading.Thread(target=_listen, args=(control, signals), daemon=True).start()
        write_json(
            ends / f"node{task.node}.json",
            {"node": task.node, "host": task.nodes[task.node], "pid": os.getpid(), "time": time.time()},
        )
        try:
            address, own = _addresses(task)
            held.enter_context(_port(task, address))
            agent = _start(task, folder, address, own)
        except (LaunchError, OSError) as error:
            write_json(
                ends / f"node{task.node}_agent.end",
                {"exit_code": 1, "time": time.time(), "told_to_end": False, "error": str(error)},
            )
            raise
        try:
            watch([agent], signals, ends, task.stop_seconds, must_end=others.ended)
        finally:
            agent.tell(signal.SIGKILL)
            agent.process.wait()
    if signals.hard is not None:
        return 128 + signals.hard
    return 0 if agent.process.returncode == 0 else 1


def _listen(control: int, signals: Signals) -> None:
    """Do as the launcher says, and end this node if it is gone."""
    heard, line = time.monotonic(), b""
    while time.monotonic() - heard < _SILENCE_SECONDS:
        if not select.select([control], [], [], 1.0)[0]:
            continue
        if not (data := os.read(control, 4096)):
            break
        heard = time.monotonic()
        *lines, line = (line + data).split(b"\n")
        if STOP.strip() in lines and not signals.received:  # Slurm may have told it already
            signals.received.append(signal.SIGTERM)
    signals.received.append(signal.SIGHUP)


class _Others:
    """Looks, every few seconds, whether another node failed or another attempt took over."""

    def __init__(self, ends: Path, node: int, fence: Fence) -> None:
        self._ends, self._node, self._fence = ends, node, fence
        self._looked = time.monotonic()
        self._failed: float | None = None

    def ended(self) -> bool:
        now = time.monotonic()
        if self._failed is not None:
            return now - self._failed > _GRACE_SECONDS
        if now - self._looked < _LOOK_SECONDS:
            return False
        self._looked = now
        try:
            self._fence.check()
        except FencedError as error:
            with contextlib.suppress(OSError):  # who started this node may be gone
                print(f"node {self._node}: {error}", file=sys.stderr, flush=True)
            return True
        for file in self._ends.glob("node*_agent.end"):
            match = re.fullmatch(r"node(\d+)_agent\.end", file.name)
            if match and int(match[1]) != self._node and _exit_code(file) != 0:
                self._failed = now
        return False


def _exit_code(file: Path) -> int:
    code = telling.read(file).get("exit_code")
    return code if isinstance(code, int) else 0


def _addresses(task: NodeTask) -> tuple[str, str]:
    """Where the first node is reached, and this node's own address."""
    if task.head:
        return task.head, task.head if task.node == 0 else source_address(task.head, task.nodes[task.node])
    if len(set(task.nodes)) == 1:
        return "127.0.0.1", "127.0.0.1"
    return head_address(task.nodes, task.node), local_address(task.nodes, task.node)


def _start(task: NodeTask, folder: RunFolder, address: str, own: str) -> Agent:
    argv = agent_argv(
        task.worker or worker_argv(folder),
        nodes=len(task.nodes),
        node=task.node,
        procs_per_node=task.procs_per_node,
        address=address,
        port=task.port,
        run_id=f"{folder.path.name}-{task.attempt}",
        local_address=own,
    )
    environment = agent_environment(
        {**os.environ, "FLASH_LAUNCH_HOST": task.nodes[task.node]},
        folder=folder,
        attempt=task.attempt,
        node=task.node,
        parent=os.getpid(),
        threads=max(1, usable_cores() // task.procs_per_node),
        interface=interface_of(own),
    )
    return start_agent(task.node, argv, environment, folder.agent_log(task.node))


@contextlib.contextmanager
def _port(task: NodeTask, address: str) -> Iterator[None]:
    """On the first node, hold the port. Two jobs on one node, or an attempt before, may have it.

    Raises:
        LaunchError: it is taken.
    """
    with contextlib.ExitStack() as held:
        try:
            if task.node == 0:
                held.enter_context(held_port(task.port, ipv6=":" in address))
        except OSError as error:
            raise LaunchError(
                f"node {task.nodes[0]}: port {task.port}, where the ranks were to meet, cannot be used: "
                f"{error.strerror} (EADDRINUSE: address already in use)"
            ) from error
        yield


def main(argv: Sequence[str]) -> int:
    """Run one node, as `node_argv` asks for it."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("run")
    for name, kind in (("attempt", int), ("node", int), ("nodes", str), ("procs", int), ("port", int)):
        parser.add_argument(f"--{name}", type=kind, required=True)
    parser.add_argument("--stop-seconds", type=float, default=600.0)
    parser.add_argument("--head", default="")
    parser.add_argument("--worker", default="[]")
    parser.add_argument("--control", action="store_true")
    given = parser.parse_args(argv)
    task = NodeTask(
        *(given.run, given.attempt, given.node, tuple(given.nodes.split(","))),
        *(given.procs, given.port, given.stop_seconds, given.head),
        worker=tuple(json.loads(given.worker)),
    )
    if task.node == BY_SLURM:
        task = replace(task, node=int(os.environ["SLURM_NODEID"]))
    try:
        return run_node(task, control=0 if given.control else None)
    except (LaunchError, OSError) as error:
        print(f"flash-launch: error: {error}", file=sys.stderr, flush=True)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
