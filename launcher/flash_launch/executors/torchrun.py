"""The command line and the environment of a torchrun agent, as pure text."""

import sys
from collections.abc import Mapping, Sequence

from flash_launch import rank_guard
from flash_launch.run_folder import RunFolder
from flash_strategies.run_session import ATTEMPT, RUN

__all__ = ["agent_argv", "agent_environment", "worker_argv"]

WORKER = ("-m", "flash_launch.worker")
_NOT_INHERITED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")


def worker_argv(folder: RunFolder) -> tuple[str, ...]:
    """What each rank of a run runs, as arguments of `python`, where that is no script of the user's."""
    return (*WORKER, str(folder.path))


def agent_argv(
    worker: Sequence[str],
    *,
    nodes: int,
    node: int,
    procs_per_node: int,
    address: str,
    port: int,
    run_id: str,
    local_address: str | None = None,
    rendezvous_seconds: int = 300,
    python: str = sys.executable,
) -> list[str]:
    """The command line of the agent of one node.

    The rendezvous is static: node 0 serves the store at address:port, and ranks are numbered by node, so that the names
    of logs say where a rank was. The c10d rendezvous numbers nodes as they come, and every agent on this machine would
    take itself for the host.

    Args:
        worker: what each rank runs, as arguments of `python`, for example ("-m", "flash_launch.worker", "runs/a").
        address: where node 0 is reached from all nodes.
        local_address: this node's address; None: torchrun finds it by the host's name.
        rendezvous_seconds: how long the agents wait for each other before they give up and say so.
    """
    guard = [python, "-u", "-m", "flash_launch.rank_guard"]
    options = {
        "--nnodes": nodes,
        "--nproc-per-node": procs_per_node,
        "--node-rank": node,
        "--rdzv-backend": "static",
        "--master-addr": address,
        "--master-port": port,
        "--rdzv-id": run_id,
        "--rdzv-conf": f"timeout={rendezvous_seconds}",
        "--max-restarts": 0,
        "--shutdown-timeout": rank_guard.SHUTDOWN_SECONDS,
        # SIGTERM and SIGUSR1 ask the ranks to save and stop: rank_guard passes them on.
        "--signals-to-handle": "SIGINT,SIGHUP,SIGQUIT",
        # rank_guard writes the logs and tells of failures; without this, torchrun leaves folders in /tmp.
        "--log-dir": "/dev/null",
    }
    if local_address is not None:
        options["--local-addr"] = local_address
    torchrun = ["-m", "torch.distributed.run", *(f"{key}={value}" for key, value in options.items())]
    return [*guard, *torchrun, "-m", "flash_launch.rank_guard", *worker]


def agent_environment(
    base: Mapping[str, str],
    *,
    folder: RunFolder,
    attempt: int,
    node: int,
    parent: int,
    threads: int,
    gpus: Sequence[str] | None = None,
    interface: str | None = None,
) -> dict[str, str]:
    """The environment of an agent, which its ranks inherit.

    Args:
        base: the environment to start from; what it says about ranks of another launch is left out.
        folder: the run folder, where ranks write their logs, and ranks and agents how they end.
        attempt: the number of this attempt of the run.
        parent: the pid whose end ends the agent.
        threads: OMP_NUM_THREADS, if it is not set.
        gpus: what the node's ranks may use; None: CUDA_VISIBLE_DEVICES is left as it is.
        interface: the network interface gloo uses, if none is set.
    """
    environment = {
        key: value
        for key, value in base.items()
        if key not in _NOT_INHERITED and not key.startswith(("TORCHELASTIC_", "PET_"))
    }
    environment.setdefault("OMP_NUM_THREADS", str(threads))
    if interface is not None:
        environment.setdefault("GLOO_SOCKET_IFNAME", interface)
    if gpus is not None:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    environment |= {RUN: str(folder.path), ATTEMPT: str(attempt)}
    environment |= {rank_guard.LOGS: str(folder.logs), rank_guard.ENDS: str(folder.ends_of(attempt))}
    environment |= {rank_guard.NODE: str(node), rank_guard.PARENT: str(parent)}
    return environment
