"""Runs a launch in the Slurm allocation this process is in: one srun, and by it one agent, per node."""

import os
from collections.abc import Mapping, Sequence
from typing import BinaryIO

from flash_launch.cluster.allocation import Allocation
from flash_launch.executors.local import LaunchResult
from flash_launch.executors.node import BY_SLURM, NodeTask, node_argv
from flash_launch.executors.remote import RemoteProcess, boot_argv, boot_line, run_remote
from flash_launch.run_folder import RunFolder

__all__ = ["run_in_allocation", "srun_argv", "srun_environment"]


def run_in_allocation(
    folder: RunFolder,
    allocation: Allocation,
    *,
    procs_per_node: int,
    worker: Sequence[str] = (),
    attempt: int = 1,
    environment: Mapping[str, str] | None = None,
    console: BinaryIO | None = None,
    stop_seconds: float = 600.0,
) -> LaunchResult:
    """Run `procs_per_node` ranks on each of an allocation's nodes until all have finished or one has failed.

    Args:
        folder: a run folder that all nodes share.
        allocation: the nodes to use.
        worker: what each rank runs, as arguments of `python`; empty: flash-launch's worker.
        attempt: the number of this attempt of the run.
        environment: what the nodes get besides their own, as far as it is ours or srun would not hand it on; default:
            this process's.
        console: where rank 0 is shown; default: standard output.
        stop_seconds: how long the ranks have to save and stop when they are asked to, before they are ended.
    """
    variables = os.environ if environment is None else environment
    ours = {
        name: value
        for name, value in variables.items()
        if name.startswith("FLASH_LAUNCH_") or os.environ.get(name) != value
    }
    nodes = allocation.nodes
    port = allocation.port(attempt)
    place = (str(folder.path), attempt, BY_SLURM, nodes, procs_per_node, port, stop_seconds)
    task = NodeTask(*place, worker=tuple(worker))
    line = boot_line([*node_argv(task)[3:], "--control"], ours, os.getcwd())
    argv = (*srun_argv(allocation), *boot_argv())
    processes = [RemoteProcess(argv, line, tuple(range(len(nodes))), nodes, srun_environment(os.environ))]
    return run_remote(folder, processes, attempt=attempt, stop_seconds=stop_seconds, console=console)


_OF_OTHER_STEPS = (
    *("SLURM_CPU_BIND", "SLURM_MEM_BIND", "SLURM_GPU_BIND", "SLURM_NTASKS", "SLURM_GPUS_PER_TASK", "SLURM_EXACT"),
    *("SLURM_CPUS_PER_TASK", "SLURM_TRES_PER_TASK", "SLURM_DISTRIBUTION", "SLURM_EXPORT_ENV", "SRUN_CPUS_PER_TASK"),
)
"""Begin variables that srun takes options from, meant for the script's own tasks or the step around this process."""


def srun_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables of srun: those of this process, without the options of other steps."""
    return {name: value for name, value in environment.items() if not name.startswith(_OF_OTHER_STEPS)}


def srun_argv(allocation: Allocation) -> list[str]:
    """One task on each node, that has all that the job has of the node and hears all that is written to srun."""
    count = len(allocation.nodes)
    return [
        *("srun", f"--nodes={count}", f"--ntasks={count}", "--ntasks-per-node=1"),
        # --cpus-per-task would limit it to these
        *(f"--nodelist={','.join(allocation.nodes)}", "--cpu-bind=none", "--export=ALL"),
        # a shell that srun has started holds the resources already
        *("--overlap", "--input=all", "--kill-on-bad-exit=0", "--wait=600"),
    ]
