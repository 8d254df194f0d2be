"""What this machine has, counted without torch, and how a run's ranks are placed on it."""

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from flash_launch.config import RunConfig
from flash_launch.errors import ConfigError

__all__ = ["Placement", "place", "visible_gpus"]

_NVIDIA_DRIVER = Path("/proc/driver/nvidia/gpus")


@dataclass(frozen=True)
class Placement:
    """Where the ranks of a run go on this machine."""

    nodes: int
    """Nodes, of which this machine plays all."""
    procs_per_node: int
    """Ranks per node."""
    accelerator: Literal["cpu", "cuda"]
    """What they compute on."""
    gpus: tuple[str, ...] = ()
    """Identifiers for CUDA_VISIBLE_DEVICES, one per rank in the order of ranks; empty on the CPU."""
    note: str = ""
    """Why it is the CPU although there are GPUs; empty otherwise."""

    def describe(self) -> str:
        """One line for the console."""
        how = "nccl, GPU" if self.accelerator == "cuda" else "gloo, CPU"
        nodes = f"{self.nodes} node{'s' * (self.nodes != 1)}"
        ranks = f"{self.procs_per_node} rank{'s' * (self.procs_per_node != 1)}"
        where = "no cluster here: running" if self.nodes > 1 else "running"
        return f"{where} {nodes} x {ranks} on this machine ({how}){self.note and '; ' + self.note}"


def place(config: RunConfig, gpus: tuple[str, ...]) -> Placement:
    """Place a run's ranks on this machine, one GPU each where there are any.

    Raises:
        ConfigError: fewer GPUs than ranks.
    """
    nodes, procs = config.nodes, config.procs_per_node
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


def visible_gpus(environment: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """Identifiers of the NVIDIA GPUs that a process started here may use. Importing torch would take seconds."""
    environment = os.environ if environment is None else environment
    listed = environment.get("CUDA_VISIBLE_DEVICES")
    if listed is not None:
        names = [name.strip() for name in listed.split(",")]
        end = next((index for index, name in enumerate(names) if name in ("", "-1")), len(names))
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
