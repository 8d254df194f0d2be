"""What one machine does: gathers all facts, checks them, and tells what must be equal on all nodes."""

import os
import platform
import socket
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from flash_launch.doctor import extension_locks, folders, gpus, limits, network, slurm_state, tiny_run, variables
from flash_launch.doctor import versions as package_versions
from flash_launch.doctor import wandb_login as wandb
from flash_launch.doctor.findings import Finding, sort_findings
from flash_launch.doctor.interfaces import interface_with
from flash_launch.doctor.later import Later, checked
from flash_launch.doctor.wire import own_name
from flash_launch.errors import ConfigError
from flash_launch.executors.hosts import parse_hosts
from flash_launch.machine import visible_gpus

__all__ = ["NodeFacts", "Request", "node_facts_from_json", "probe"]

_RUN_SECONDS = 60.0
_FOLDER_SECONDS = 15.0
_ASK_SECONDS = 30.0
_MOST_RANKS = 8


@dataclass(frozen=True)
class Request:
    """What is asked of a machine."""

    output_dir: str
    """The folder of the run, absolute."""
    nodes: int = 1
    """Nodes of the run."""
    several: bool = False
    """Whether they are several machines."""
    quick: bool = False
    """Without importing torch."""
    slurm: bool = False
    """Whether the run is to use Slurm."""
    ask_slurm: bool = True
    """Whether Slurm's controller is to be asked from this machine."""
    hosts: tuple[str, ...] = ()
    """Names of other machines, which must resolve."""
    by_name: bool = False
    """Whether they find each other by these names, as in a Slurm job; else by addresses that the launcher tells."""
    token: str = ""
    """A file that must be visible in the output folder; empty: none."""

    @classmethod
    def from_json(cls, values: Mapping[str, object]) -> "Request":
        """The request in an object that `asdict` made."""
        hosts = values["hosts"]
        return cls(
            output_dir=str(values["output_dir"]),
            nodes=int(str(values["nodes"])),
            several=bool(values["several"]),
            quick=bool(values["quick"]),
            slurm=bool(values["slurm"]),
            ask_slurm=bool(values["ask_slurm"]),
            hosts=tuple(str(host) for host in hosts) if isinstance(hosts, list) else (),
            by_name=bool(values["by_name"]),
            token=str(values["token"]),
        )


@dataclass(frozen=True)
class NodeFacts:
    """What is compared between nodes."""

    host: str
    """The machine's own name."""
    packages: Mapping[str, str] = field(default_factory=dict)
    """Version by name; Python is among them."""
    code: str = ""
    """Digest of flash-launch's own code."""
    driver: str = ""
    """Version of the NVIDIA driver; empty: none."""
    gpus: tuple[str, ...] = ()
    """The model of each GPU."""
    kernel: str = ""
    """Version of Linux."""
    glibc: str = ""
    """Version of the C library."""
    time: float = 0.0
    """The machine's clock when it answered, in seconds since 1970."""
    address: str = ""
    """The address at which other machines reach it; empty: none."""
    port: int = 0
    """A port that is free there."""
    sees_token: bool | None = None
    """Whether it sees the caller's file in the output folder; None: it was not asked."""

    def to_json(self) -> dict[str, object]:
        """The facts as an object."""
        return asdict(self)


def node_facts_from_json(values: Mapping[str, object]) -> NodeFacts:
    """The facts in an object that `to_json` made.

    Raises:
        KeyError, ValueError: it is none.
    """
    packages, models = values["packages"], values["gpus"]
    if not isinstance(packages, dict) or not isinstance(models, list):
        raise ValueError("packages must be an object and gpus a list")
    token = values["sees_token"]
    return NodeFacts(
        host=str(values["host"]),
        packages={str(name): str(version) for name, version in packages.items()},
        code=str(values["code"]),
        driver=str(values["driver"]),
        gpus=tuple(str(model) for model in models),
        kernel=str(values["kernel"]),
        glibc=str(values["glibc"]),
        time=float(str(values["time"])),
        address=str(values["address"]),
        port=int(str(values["port"])),
        sees_token=None if token is None else bool(token),
    )


def probe(request: Request, environment: Mapping[str, str] = os.environ) -> tuple[NodeFacts, list[Finding]]:
    """Check this machine. Takes a few seconds; what can wait has a time limit, and no check stops another."""
    torch_folder = package_versions.package_folder("torch")
    # What waits for others goes on beside what computes.
    token = Later(lambda: os.path.exists(request.token), _FOLDER_SECONDS, f"the folder of {request.token}")
    net_later = Later(
        lambda: network.gather_network(
            environment, request.hosts, several=request.several, own=_plain(own_name(environment))
        ),
        _ASK_SECONDS,
        "the network",
    )
    gpus_later = Later(lambda: gpus.gather_gpus(environment, torch_folder), _ASK_SECONDS, "nvidia-smi")
    slurm_later = Later(lambda: slurm_state.gather_slurm(environment), _ASK_SECONDS, "Slurm")
    output = _folder(request.output_dir)
    temporary = _folder(environment.get("TMPDIR") or "/tmp")
    variable_facts = Later(
        lambda: variables.gather_variables(environment, Path.cwd()), _FOLDER_SECONDS, "a folder of PYTHONPATH"
    )
    locks = Later(
        lambda: extension_locks.gather_locks(environment, torch_folder),
        _FOLDER_SECONDS,
        "the folder of torch extensions",
    )
    packages = package_versions.gather_packages()
    wandb_later = Later(
        lambda: wandb.gather_wandb(environment, installed="wandb" in packages.installed), _FOLDER_SECONDS, "W&B"
    )
    sees_token = token.result_or(False) if request.token else None
    net = net_later.result_or(network.NetworkFacts(socket.gethostname()))
    gpu_facts = gpus_later.result_or(gpus.GpuFacts("missing"))
    findings = [
        *checked("versions", lambda: package_versions.check_versions(packages)),
        *checked("GPUs", lambda: gpus.check_gpus(gpus_later.result())),
        *checked(
            "network",
            lambda: network.check_network(net_later.result(), several=request.several, by_name=request.by_name),
        ),
        *checked("folders", lambda: folders.check_output(output.result(), several=request.several and not sees_token)),
        *checked("folders", lambda: [folders.check_temporary(temporary.result())]),
        *checked("folders", lambda: extension_locks.check_locks(locks.result())),
        *checked("limits", lambda: limits.check_limits(limits.gather_limits(infiniband=bool(net.infiniband)))),
        *checked("environment", lambda: variables.check_variables(variable_facts.result())),
        *checked("W&B", lambda: wandb.check_wandb(wandb_later.result())),
    ]
    if request.ask_slurm:
        findings += checked(
            "Slurm",
            lambda: slurm_state.check_slurm(slurm_later.result(), asked=request.slurm, nodes=request.nodes),
        )
    if not request.quick:
        findings += checked("ranks", lambda: tiny_run.check_tiny_run(_tiny_run(request, environment, net, gpu_facts)))
    compared = {name: packages.installed[name] for name in package_versions.PACKAGES if name in packages.installed}
    compared |= {"python": packages.python, "flash-launch": packages.ours or "not installed"}
    return NodeFacts(
        host=net.host,
        packages=compared,
        code=package_versions.code_digest(),
        driver=gpu_facts.driver,
        gpus=tuple(gpu.name for gpu in gpu_facts.gpus),
        kernel=platform.release(),
        glibc=platform.libc_ver()[1],
        address=net.address,
        port=net.port or 0,
        sees_token=sees_token,
        time=time.time(),
    ), sort_findings(findings)


def _folder(path: str) -> Later[folders.FolderFacts]:
    return Later(lambda: folders.gather_folder(path), _FOLDER_SECONDS, path)


def _plain(name: str) -> str:
    """The name of a host without the user and the port by which ssh reaches it."""
    try:
        return parse_hosts(name)[0].name
    except ConfigError:  # Slurm may have names that ssh has not
        return name


def _tiny_run(
    request: Request, environment: Mapping[str, str], net: network.NetworkFacts, gpu_facts: gpus.GpuFacts
) -> tiny_run.TinyRunFacts:
    listed = len(visible_gpus(environment))
    here = 1 if request.several else request.nodes
    ranks = min(_MOST_RANKS, max(2, here if listed < 2 else listed))
    interface = interface_with(net.interfaces, net.address)
    return tiny_run.gather_tiny_run(
        environment,
        ranks=ranks,
        backend="nccl" if listed >= 2 else "gloo",
        address=net.address,
        interface=interface.name if interface is not None else "lo",
        listed=listed,
        smi=not gpu_facts.smi,
        limit=_RUN_SECONDS,
    )
