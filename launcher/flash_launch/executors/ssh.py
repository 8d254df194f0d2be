"""Runs a launch on hosts that ssh reaches: one ssh, and by it one agent, per host."""

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import BinaryIO

from flash_launch.executors.hosts import Host
from flash_launch.executors.local import LaunchResult
from flash_launch.executors.node import NodeTask, node_argv
from flash_launch.executors.remote import RemoteProcess, boot_argv, boot_line, passed_on, run_remote
from flash_launch.executors.ssh_connection import by_hand, explain_connection, ssh_argv
from flash_launch.run_folder import RunFolder

__all__ = ["explain", "run_ssh"]


def run_ssh(
    folder: RunFolder,
    hosts: Sequence[Host],
    *,
    head: str,
    port: int,
    procs_per_node: int,
    worker: Sequence[str] = (),
    attempt: int = 1,
    environment: Mapping[str, str] | None = None,
    console: BinaryIO | None = None,
    stop_seconds: float = 600.0,
) -> LaunchResult:
    """Run `procs_per_node` ranks on each host until all have finished or one has failed.

    Args:
        folder: a run folder that all hosts share; the current folder and Python are where they are here.
        head: the address at which the first host is reached from the others.
        port: a free port there.
        worker: what each rank runs, as arguments of `python`; empty: flash-launch's worker.
        attempt: the number of this attempt of the run.
        environment: of which variables travel, see `passed_on`; default: this process's.
        console: where rank 0 is shown; default: standard output.
        stop_seconds: how long the ranks have to save and stop when they are asked to, before they are ended.
    """
    names = tuple(host.name for host in hosts)
    variables = passed_on(os.environ if environment is None else environment)
    if sys.stdout.isatty():  # a rank writes to a file, so its progress bar cannot see how wide the console is
        size = shutil.get_terminal_size()
        variables |= {"COLUMNS": str(size.columns), "LINES": str(size.lines)}
    processes = []
    for number, host in enumerate(hosts):
        place = (str(folder.path), attempt, number, names, procs_per_node, port, stop_seconds, head)
        task = NodeTask(*place, worker=tuple(worker))
        line = boot_line([*node_argv(task)[3:], "--control"], variables, os.getcwd())
        processes.append(RemoteProcess(tuple(ssh_argv(host, boot_argv())), line, (number,), (host.name,)))
    return run_remote(folder, processes, attempt=attempt, stop_seconds=stop_seconds, console=console)


def explain(host: Host, code: int | None, said: str, python: str) -> str:
    """Why a command did not run on a host, and what to do, by ssh's exit code (None: none yet) and what it printed."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    last = lines[-1] if lines else "it said nothing"
    trial = f"try by hand: {by_hand(host)} {python} -V"
    if code is None:
        return f"it gave no answer in time ({last}): {trial}; a shared folder that hangs there holds it up, too"
    if code == 255:
        return ": ".join(explain_connection(host, said))
    if code in (126, 127) or (python in said and "o such file" in said):
        return (
            f"there is no {python} there: use an environment in a folder that all hosts share, or make one at the same "
            "path there"
        )
    if "No module named" in said and "flash_" in said:
        return (
            f"flash-launch is not installed there, or in another version: {python} -m pip install the same version, "
            "or use an environment that all hosts share"
        )
    return f"Python did not run there ({last}): {trial}"
