"""Runs a launch in the Slurm allocation this process is in: one srun, and by it one agent, per node."""

import os
from collections.abc import Mapping
from typing import BinaryIO

from flash_launch.cluster.allocation import Allocation
from flash_launch.executors.local import LaunchResult
from flash_launch.executors.node import BY_SLURM, NodeTask, node_argv
from flash_launch.executors.remote import RemoteProcess, boot_argv, boot_line, run_remote
from flash_launch.run_folder import RunFolder

__all__ = ["run_in_allocation", "srun_argv"]


def run_in_allocation(
    folder: RunFolder,
    allocation: Allocation,
    *,
    procs_per_node: int,
    attempt: int = 1,
    environment: Mapping[str, str] | None = None,
    console: BinaryIO | None = None,
    stop_seconds: float = 600.0,
) -> LaunchResult:
    """Run `procs_per_node` ranks on each of an allocation's nodes until all have finished or one has failed.

    Args:
        folder: a run folder that all nodes share.
        allocation: the nodes to use.
        attempt: the number of this attempt of the run.
        environment: what the nodes get besides their own; default: this process's.
        console: where rank 0 is shown; default: standard output.
        stop_seconds: how long the ranks have to save and stop when they are asked to, before they are ended.
    """
    variables = os.environ if environment is None else environment
    ours = {name: value for name, value in variables.items() if name.startswith("FLASH_LAUNCH_")}
    nodes = allocation.nodes
    port = allocation.port(attempt)
    task = NodeTask(str(folder.path), attempt, BY_SLURM, nodes, procs_per_node, port, stop_seconds)
    line = boot_line([*node_argv(task)[3:], "--control"], ours, os.getcwd())
    argv = (*srun_argv(allocation), *boot_argv())
    processes = [RemoteProcess(argv, line, tuple(range(len(nodes))), nodes)]
    return run_remote(folder, processes, attempt=attempt, stop_seconds=stop_seconds, console=console)


def srun_argv(allocation: Allocation) -> list[str]:
    """One task on each node, that has all of the node's CPUs and hears all that is written to srun."""
    count = len(allocation.nodes)
    return [
        *("srun", f"--nodes={count}", f"--ntasks={count}", "--ntasks-per-node=1"),
        *(f"--nodelist={','.join(allocation.nodes)}", f"--cpus-per-task={allocation.cpus_per_node}"),
        # a shell that srun has started holds the resources already
        *("--overlap", "--input=all", "--kill-on-bad-exit=0", "--wait=600"),
    ]
