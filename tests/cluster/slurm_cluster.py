"""A real Slurm cluster on this machine, in one folder: Debian's slurmctld and slurmd, on loopback or in namespaces.

Nodes on loopback (127.0.0.11, ...) run for any user. Nodes in network namespaces of their own (n1, n2, ... with
addresses 10.77.0.11, ... on a bridge) need root, and can be powered off: all that is on them ends at once.
"""

from __future__ import annotations

import contextlib
import ctypes
import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

DAEMONS = ("slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "sinfo")
SUBNET = "10.77.0"
_BRIDGE = "flbr0"

CONF = """
ClusterName=tests
SlurmctldHost={controller}
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/none
CredType=cred/none
AuthInfo=cred_expire=5
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerNode=500
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1,sched_min_interval=0
SlurmdParameters=config_overrides
SlurmctldTimeout=5
SlurmdTimeout={slurmd_timeout}
KillWait={kill_wait}
MinJobAge=3600
ReturnToService=1
JobCompType=jobcomp/filetxt
JobCompLoc={folder}/jobcomp.txt
MpiDefault=none
MailProg=/bin/true
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
GresTypes=gpu
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=60 State=UP PreemptMode=OFF
PartitionName=short Nodes=ALL MaxTime=5 State=UP PreemptMode=OFF
PartitionName=low Nodes=ALL MaxTime=60 State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=20
PartitionName=rude Nodes=ALL MaxTime=60 State=UP PriorityTier=1 PreemptMode=REQUEUE
PartitionName=urgent Nodes=ALL MaxTime=60 State=UP PriorityTier=10 PreemptMode=OFF
PartitionName=off Nodes=ALL State=DOWN
"""


def missing() -> list[str]:
    """What of Slurm is not installed here."""
    return [name for name in DAEMONS if shutil.which(name) is None and shutil.which(name, path="/usr/sbin") is None]


def may_use_namespaces() -> bool:
    """Whether nodes can have network namespaces of their own here."""
    return os.geteuid() == 0 and shutil.which("ip") is not None and shutil.which("unshare") is not None


@dataclass
class Node:
    """One node."""

    name: str
    """Its name in Slurm, which resolves."""
    address: str
    """Its address."""
    process: subprocess.Popen[bytes] | None = None
    """slurmd, or the process that holds the node's namespaces."""


@dataclass
class SlurmCluster:
    """A cluster that runs."""

    folder: Path
    """Everything of it."""
    count: int = 2
    """Number of nodes."""
    kind: Literal["loopback", "namespaces"] = "loopback"
    """Where nodes live."""
    kill_wait: int = 15
    """Seconds between SIGTERM and SIGKILL."""
    slurmd_timeout: int = 10
    """Seconds until a node that does not answer is down."""
    nodes: list[Node] = field(default_factory=list)
    """Its nodes."""
    controller: subprocess.Popen[bytes] | None = None
    """slurmctld."""

    @property
    def environment(self) -> dict[str, str]:
        """What a login shell of this cluster has."""
        keep = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "FLASH_LAUNCH_"))}
        return {
            **keep,
            "SLURM_CONF": str(self.folder / "slurm.conf"),
            "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin",
            "CUDA_VISIBLE_DEVICES": "",
            "OMP_NUM_THREADS": "1",
            "WANDB_MODE": "disabled",
        }

    def start(self) -> None:
        """Write the configuration and start all daemons; ready when all nodes are idle."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "state").mkdir(exist_ok=True)
        if self.kind == "namespaces":
            _make_bridge()
            self.nodes = [Node(f"n{i}", f"{SUBNET}.{10 + i}") for i in range(1, self.count + 1)]
            hosts = "".join(f"{node.address} {node.name}\n" for node in self.nodes)
            (self.folder / "nsswitch").write_text("passwd: files\ngroup: files\nhosts: files\n")  # no name server there
            (self.folder / "hosts").write_text(f"127.0.0.1 localhost\n{SUBNET}.1 controller\n{hosts}")
        else:
            self.nodes = [Node(f"127.0.0.{10 + i}", f"127.0.0.{10 + i}") for i in range(1, self.count + 1)]
        self._configure()
        self.start_controller()
        for node in self.nodes:
            self.start_node(node)
        self.wait(lambda: self.states() == ["idle"] * self.count, 60, "all nodes idle")

    def _configure(self) -> None:
        gres = "Name=gpu File=/dev/null\nName=gpu File=/dev/zero\n"
        (self.folder / "gres.conf").write_text(gres)
        (self.folder / "cgroup.conf").write_text("CgroupAutomount=no\n")
        ports = _free_ports(1 + self.count)
        shape = "CPUs=8 RealMemory=8000 Gres=gpu:2 State=UNKNOWN"
        if self.kind == "namespaces":
            lines = [f"NodeName={node.name} NodeAddr={node.address} Port=16818 {shape}" for node in self.nodes]
            controller = f"controller({SUBNET}.1)"
        else:
            lines = [
                f"NodeName={node.name} NodeHostname=localhost NodeAddr={node.address} Port={port} {shape}"
                for node, port in zip(self.nodes, ports[1:], strict=True)
            ]
            controller = "localhost(127.0.0.1)"
        (self.folder / "slurm.conf").write_text(
            CONF.format(
                controller=controller,
                port=ports[0],
                user=getpass.getuser(),
                folder=self.folder,
                nodes="\n".join(lines),
                kill_wait=self.kill_wait,
                slurmd_timeout=self.slurmd_timeout,
            )
        )

    def start_controller(self) -> None:
        """Start slurmctld, also after `stop_controller`."""
        host = "controller" if self.kind == "namespaces" else "localhost"
        command = ["slurmctld", "-D", "-f", str(self.folder / "slurm.conf")]
        # slurmctld compares SlurmctldHost with the host's name, so it gets a name of its own
        if os.geteuid() == 0:
            command = ["unshare", "--uts", "sh", "-c", f'hostname {host}; exec "$@"', "sh", *command]
        self.controller = self._popen(command)

    def stop_controller(self) -> None:
        """An outage of the controller."""
        assert self.controller is not None
        _end(self.controller)

    def start_node(self, node: Node) -> None:
        """Start a node's slurmd, also after `power_off`."""
        slurmd = ["slurmd", "-D", "-N", node.name, "-f", str(self.folder / "slurm.conf")]
        if self.kind == "loopback":
            node.process = self._popen(slurmd)
            return
        script = f"""
            mount --bind {self.folder}/hosts /etc/hosts
            mount --bind {self.folder}/nsswitch /etc/nsswitch.conf; hostname {node.name}; ip link set lo up
            while ! ip link show veth0 >/dev/null 2>&1; do sleep 0.02; done
            ip addr add {node.address}/24 dev veth0; ip link set veth0 up; ip route add default via {SUBNET}.1
            exec "$@" """
        flags = ["--net", "--uts", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        node.process = self._popen(["unshare", *flags, "sh", "-c", script, "sh", *slurmd])
        inside = _child_of(node.process.pid)
        host_side = f"fl{node.name}"
        subprocess.run(["ip", "link", "del", host_side], capture_output=True)
        for command in (
            f"ip link add {host_side} type veth peer name veth0 netns {inside}",
            f"ip link set {host_side} master {_BRIDGE} up",
        ):
            subprocess.run(command.split(), check=True, capture_output=True)

    def power_off(self, node: Node) -> None:
        """End everything on a node at once, its network first."""
        assert self.kind == "namespaces"
        assert node.process is not None
        subprocess.run(["ip", "link", "del", f"fl{node.name}"], capture_output=True)
        node.process.kill()
        node.process.wait()

    def unplug(self, node: Node) -> None:
        """Cut a node's network; what runs there goes on."""
        assert self.kind == "namespaces"
        subprocess.run(["ip", "link", "set", f"fl{node.name}", "down"], check=True)

    def plug_in(self, node: Node) -> None:
        """Undo `unplug`."""
        subprocess.run(["ip", "link", "set", f"fl{node.name}", "up"], check=True)

    def stop(self) -> None:
        """End all jobs and daemons."""
        with contextlib.suppress(Exception):
            self.run(["scancel", "--full", f"--user={getpass.getuser()}"], timeout=10)
            self.wait(lambda: not self.run(["squeue", "-h", "-t", "R,CG"]).stdout.strip(), 20, "jobs gone")
        for node in self.nodes:
            if node.process is not None:
                if self.kind == "namespaces":
                    self.power_off(node)
                else:
                    _end(node.process)
        if self.controller is not None:
            _end(self.controller)
        if self.kind == "namespaces":
            subprocess.run(["ip", "link", "del", _BRIDGE], capture_output=True)

    # ---- asking

    def run(
        self, argv: Sequence[str], *, timeout: float = 60, env: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on the login node."""
        return subprocess.run(
            [*argv],
            env={**self.environment, **(env or {})},
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
        )

    def states(self) -> list[str]:
        """States of all nodes."""
        return self.run(["sinfo", "-h", "-N", "-p", "main", "-o", "%t"]).stdout.split()

    def job(self, job_id: str) -> dict[str, str]:
        """Slurm's record of a job, by key."""
        out = self.run(["scontrol", "show", "job", "-o", job_id]).stdout
        return dict(word.split("=", 1) for word in out.split() if "=" in word)

    def wait_for_state(self, job_id: str, *states: str, seconds: float = 240) -> str:
        """Wait until a job is in one of these states."""
        found: list[str] = []

        def there() -> bool:
            found[:] = [self.job(job_id).get("JobState", "?")]
            return found[0] in states

        self.wait(there, seconds, f"job {job_id} {' or '.join(states)}", lambda: found)
        return found[0]

    @staticmethod
    def wait(holds: Callable[[], bool], seconds: float, what: str, seen: Callable[[], object] = lambda: "") -> None:
        """Wait until something holds."""
        end = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < end, f"waited {seconds} s for {what} in vain {seen()}"
            time.sleep(0.1)

    def _popen(self, argv: Sequence[str]) -> subprocess.Popen[bytes]:
        with (self.folder / "daemons.log").open("ab") as log:
            return subprocess.Popen(
                argv,
                env=self.environment,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )


def _die_with_parent() -> None:
    """Tests that are killed leave no cluster behind."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)


def _end(process: subprocess.Popen[bytes]) -> None:
    for child in _children(process.pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGTERM)
    process.terminate()
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def _child_of(pid: int) -> int:
    for _ in range(200):
        if children := _children(pid):
            return children[0]
        time.sleep(0.02)
    raise AssertionError(f"process {pid} has no child")


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def _make_bridge() -> None:
    subprocess.run(["ip", "link", "del", _BRIDGE], capture_output=True)
    for command in (
        f"ip link add {_BRIDGE} type bridge",
        f"ip addr add {SUBNET}.1/24 dev {_BRIDGE}",
        f"ip link set {_BRIDGE} up",
    ):
        subprocess.run(command.split(), check=True, capture_output=True)
