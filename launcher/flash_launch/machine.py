"""What this machine has, counted without torch, and how a run's ranks are placed on it."""

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from flash_launch.cluster.allocation import Allocation
from flash_launch.errors import ConfigError
from flash_launch.executors.hosts import Host
from flash_launch.options import RankOptions

__all__ = ["Placement", "place", "place_in_allocation", "place_on_cluster", "visible_gpus"]

_NVIDIA_DRIVER = Path("/proc/driver/nvidia/gpus")


@dataclass(frozen=True)
class Placement:
    """Where the ranks of a run go."""

    nodes: int
    """Nodes, of which this machine plays all if there are no hosts."""
    procs_per_node: int
    """Ranks per node."""
    accelerator: Literal["cpu", "cuda"]
    """What they compute on."""
    gpus: tuple[str, ...] = ()
    """Identifiers for CUDA_VISIBLE_DEVICES, one per rank in the order of ranks; empty on the CPU."""
    note: str = ""
    """Why it is the CPU although there are GPUs; empty otherwise."""
    hosts: tuple[Host, ...] = ()
    """The nodes, where ssh reaches them."""
    head: str = ""
    """The address at which the other hosts reach the first one."""
    port: int = 0
    """A free port there."""
    allocation: Allocation | None = None
    """The nodes, where Slurm has given them."""

    def describe(self) -> str:
        """One line for the console."""
        how = "nccl, GPU" if self.accelerator == "cuda" else "gloo, CPU"
        nodes = f"{self.nodes} node{'s' * (self.nodes != 1)}"
        ranks = f"{self.procs_per_node} rank{'s' * (self.procs_per_node != 1)}"
        if self.allocation is not None:
            return f"job {self.allocation.job_id}: {nodes} x {ranks} on {', '.join(self.allocation.nodes)} ({how})"
        if self.hosts:
            return f"running {nodes} x {ranks} on {', '.join(host.name for host in self.hosts)} ({how})"
        where = "no cluster here: running" if self.nodes > 1 else "running"
        return f"{where} {nodes} x {ranks} on this machine ({how}){self.note and '; ' + self.note}"


def place(config: RankOptions, gpus: tuple[str, ...]) -> Placement:
    """Place a run's ranks on this machine, one GPU each where there are any.

    Raises:
        ConfigError: fewer GPUs than ranks.
    """
    nodes, procs = config.nodes or 1, config.procs_per_node
    if config.accelerator == "cpu" or (config.accelerator == "auto" and not gpus):
        return Placement(nodes, procs or 1, "cpu")
    if not gpus:
        raise ConfigError("--accelerator cuda was given, but no NVIDIA GPU is visible here: give --accelerator cpu")
    if config.accelerator == "auto" and procs is None and nodes > len(gpus):
        # `--nodes 2` must work as it stands on a laptop with one GPU too.
        have = f"{len(gpus)} GPU{'s' * (len(gpus) != 1)}"
        return Placement(nodes, 1, "cpu", note=f"{have} cannot be shared by {nodes} nodes")
    procs = procs or max(1, len(gpus) // nodes)
    if nodes * procs > len(gpus):
        raise ConfigError(
            f"--nodes {nodes} with --procs-per-node {procs} needs {nodes * procs} GPUs, but {len(gpus)} "
            f"{'is' if len(gpus) == 1 else 'are'} visible here: ask for fewer ranks, or give --accelerator cpu"
        )
    return Placement(nodes, procs, "cuda", gpus[: nodes * procs])


def place_on_cluster(config: RankOptions, gpus_per_node: int | None) -> Placement:
    """Place a run's ranks on nodes of a cluster, which this machine knows only by what is asked of it.

    Args:
        gpus_per_node: GPUs asked for on each node; None or 0: none.

    Raises:
        ConfigError: more ranks than GPUs, or GPUs that were not asked for.
    """
    nodes, procs = config.nodes or 1, config.procs_per_node
    if config.accelerator == "cpu" or (config.accelerator == "auto" and not gpus_per_node):
        return Placement(nodes, procs or 1, "cpu")
    if not gpus_per_node:
        raise ConfigError("--accelerator cuda was given, but no GPUs are asked for: give --slurm.gpus-per-node")
    if procs is not None and procs > gpus_per_node:
        raise ConfigError(
            f"--procs-per-node {procs} needs as many GPUs, but --slurm.gpus-per-node is {gpus_per_node}: ask for more, "
            "for fewer ranks, or give --accelerator cpu"
        )
    return Placement(nodes, procs or gpus_per_node, "cuda")


def place_in_allocation(config: RankOptions, allocation: Allocation) -> Placement:
    """Place a run's ranks on the nodes that Slurm has given.

    Raises:
        ConfigError: fewer nodes or GPUs than are asked for; or this is one of many tasks of a step.
    """
    if allocation.tasks_of_step > 1:
        raise ConfigError(
            f"srun has started this command {allocation.tasks_of_step} times: start it once, without srun; in an "
            "allocation it starts its ranks on all nodes by itself"
        )
    have = len(allocation.nodes)
    nodes = config.nodes or have
    if nodes > have:
        raise ConfigError(
            f"--nodes {nodes} was given, but job {allocation.job_id} has {have} node{'s' * (have != 1)}: leave --nodes "
            "out, or ask Slurm for more"
        )
    placement = place_on_cluster(replace(config, nodes=nodes), allocation.gpus_per_node)
    return replace(placement, allocation=replace(allocation, nodes=allocation.nodes[:nodes]))


def visible_gpus(environment: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """Identifiers of the NVIDIA GPUs that a process started here may use. Importing torch would take seconds."""
    environment = os.environ if environment is None else environment
    listed = environment.get("CUDA_VISIBLE_DEVICES")
    if listed is not None:
        names = [name.strip() for name in listed.split(",")]
        # CUDA takes names up to the first that is none; NoDevFiles is Slurm's word for none
        end = next((index for index, name in enumerate(names) if name in ("", "-1", "NoDevFiles")), len(names))
        return tuple(names[:end])
    return tuple(str(index) for index in range(_count_gpus()))


def _count_gpus() -> int:
    try:
        told = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20, check=True).stdout
        return sum(line.startswith("GPU ") for line in told.splitlines())
    except (OSError, subprocess.SubprocessError):
        pass  # no nvidia-smi in many containers, or one that does not answer: the driver's folder tells as well
    try:
        return len(list(_NVIDIA_DRIVER.iterdir()))
    except OSError:
        return 0
