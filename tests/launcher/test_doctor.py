"""flash-launch doctor: every check with made-up facts, the readers with what tools write, and the command itself."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from flash_launch.cli import main
from flash_launch.doctor import limits
from flash_launch.doctor.asking import Answer, ask
from flash_launch.doctor.extension_locks import BuildLock, LockFacts, check_locks, gather_locks
from flash_launch.doctor.findings import Finding, Status, fail, finding_from_json, ok, warn
from flash_launch.doctor.folders import FolderFacts, check_output, check_temporary, file_system, gather_folder
from flash_launch.doctor.gpus import Gpu, GpuFacts, GpuProcess, check_driver, check_gpus, gather_gpus, read_gpus
from flash_launch.doctor.interfaces import Interface, best_interface, matching
from flash_launch.doctor.limits import (
    LimitFacts,
    check_memlock,
    check_memory,
    check_open_files,
    check_shared_memory,
    gather_limits,
)
from flash_launch.doctor.meeting import Peer, meet
from flash_launch.doctor.network import NetworkFacts, check_infiniband, check_interfaces, check_names, check_port
from flash_launch.doctor.nodes import (
    ClockWindow,
    check_clocks,
    check_equal,
    check_meeting,
    check_shared_folder,
    check_unanswered,
    merge_findings,
)
from flash_launch.doctor.options import DoctorOptions, read_doctor_options
from flash_launch.doctor.probe import NodeFacts, Request, node_facts_from_json, probe
from flash_launch.doctor.remote import SshRemote, explain_ssh, srun_argv
from flash_launch.doctor.report import render_json, render_text
from flash_launch.doctor.slurm_state import Partition, SlurmFacts, check_slurm, gather_slurm, read_partitions
from flash_launch.doctor.tiny_run import RankEnd, TinyRunFacts, check_tiny_run, gather_tiny_run
from flash_launch.doctor.variables import VariableFacts, check_variables, gather_variables
from flash_launch.doctor.versions import (
    PackageFacts,
    check_bounds,
    check_pairing,
    check_private_parts,
    code_digest,
    gather_packages,
)
from flash_launch.doctor.wandb_login import WandbFacts, check_wandb, gather_wandb
from flash_launch.doctor.wire import pack, unpack
from flash_launch.errors import ConfigError
from flash_launch.executors.hosts import Host

OK, WARN, FAIL = Status.OK, Status.WARN, Status.FAIL
GIB = 2**30
KEY = "0123456789abcdef0123456789abcdef01234567"
ETH = Interface("eth0", ("10.0.0.5",))
LO = Interface("lo", ("127.0.0.1",))


def worst(found: list[Finding]) -> Finding:
    """The worst finding; each that is not OK must have a fix."""
    assert found
    for finding in found:
        assert bool(finding.fix) == (finding.status is not OK), finding
    return max(found, key=lambda finding: list(Status).index(finding.status))


def expect(found: list[Finding], status: Status, *words: str) -> None:
    finding = worst(found)
    assert finding.status is status, finding
    for word in words:
        assert word in f"{finding.text} | {finding.fix}", (word, finding)


# ---- versions


def packages(**changes: object) -> PackageFacts:
    values: dict[str, object] = {
        "python": "3.11.7",
        "ours": "0.1.0",
        "python_bound": ">=3.11",
        "installed": {"torch": "2.15.0+cu132", "torchvision": "0.29.2", "deepspeed": "0.19.8", "wandb": "0.31.0"},
        "bounds": {"torch": ">=2.11", "deepspeed": ">=0.19.8,<0.20", "accelerate": ">=1.15"},
        "optional": ("accelerate",),
        "torchvision_needs": ">=2.14.0",
        "read_against": {"deepspeed": ("0.19.8",)},
    }
    return PackageFacts(**{**values, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("facts", "status", "words"),
    [
        (packages(), OK, ["flash-launch 0.1.0", "torch 2.15.0+cu132"]),
        (packages(ours=None, bounds={}), WARN, ["not installed", "pip install -e ."]),
        (packages(python="3.10.4"), FAIL, ["Python 3.10.4 does not fit >=3.11"]),
        (packages(installed={"torch": "2.10.0", "deepspeed": "0.19.8"}), FAIL, ["torch 2.10.0", "'torch>=2.11'"]),
        (packages(installed={"torch": "2.15.0"}), FAIL, ["deepspeed is not installed", "pip install"]),
        (packages(installed={"torch": "odd", "deepspeed": "0.19.8"}), FAIL, ["torch odd"]),
    ],
)
def test_bounds(facts: PackageFacts, status: Status, words: list[str]) -> None:
    expect(check_bounds(facts), status, *words)


def test_pairing_of_torchvision_and_torch() -> None:
    expect(check_pairing(packages()), OK, "fits torch")
    expect(check_pairing(packages(torchvision_needs=None)), WARN, "does not say")
    expect(check_pairing(packages(torchvision_needs="==2.13.0")), FAIL, "was built for torch ==2.13.0", "2.15.0")
    assert check_pairing(packages(installed={})) == []


def test_private_parts() -> None:
    expect(check_private_parts(packages()), OK, "deepspeed 0.19.8")
    other = packages(installed={"deepspeed": "0.19.9"})
    expect(check_private_parts(other), FAIL, "read at 0.19.8; 0.19.9", "pip install deepspeed==0.19.8")


def test_gathered_packages_are_those_of_this_environment() -> None:
    facts = gather_packages()
    assert facts.read_against["deepspeed"][-1] == "0.19.8"
    assert set(facts.read_against) == {"deepspeed", "pytorch-lightning"}
    assert facts.bounds["pytorch-lightning"]
    assert "pytest" not in facts.bounds
    assert facts.torchvision_needs
    assert worst([*check_bounds(facts), *check_pairing(facts), *check_private_parts(facts)]).status is OK
    assert code_digest() == code_digest()
    assert len(code_digest()) == 16


# ---- GPUs


def gpus(*items: Gpu, **changes: object) -> GpuFacts:
    values: dict[str, object] = {"smi": "", "gpus": items, "driver": "580.65.06", "torch_cuda": "13.2"}
    return GpuFacts(**{**values, **changes})  # type: ignore[arg-type]


H200 = Gpu(0, "NVIDIA H200", 143771, 4, "GPU-a", True, 0)


@pytest.mark.parametrize(
    ("facts", "status", "words"),
    [
        (GpuFacts("missing"), OK, ["no NVIDIA GPU"]),
        (GpuFacts("missing", driver="580.1"), WARN, ["no nvidia-smi"]),
        (GpuFacts("Failed to initialize NVML: Driver/library version mismatch"), FAIL, ["mismatch", "administrator"]),
        (GpuFacts(""), WARN, ["lists no GPU"]),
        (gpus(H200), OK, []),
        (gpus(H200, Gpu(1, "NVIDIA A100", 81920)), WARN, ["differ", "1: NVIDIA A100 80 GiB"]),
        (
            gpus(H200, processes=(GpuProcess("GPU-a", 77, "python", 900),)),
            WARN,
            ["GPU 0 is used by python (pid 77, 900 MiB)", "kill 77"],
        ),
        (gpus(Gpu(0, "A", 8192, 5000)), WARN, ["5000 MiB", "cannot be seen"]),
        (gpus(Gpu(0, "A", 8192, ecc_errors=3)), FAIL, ["3 uncorrected"]),
        (gpus(Gpu(0, "A", 8192, mig=True)), WARN, ["MIG"]),
        (gpus(Gpu(0, "A", 8192, persistent=False)), WARN, ["nvidia-smi -pm 1"]),
        (gpus(H200, visible=""), WARN, ["hides all 1 GPUs"]),
        (gpus(H200, visible="0,3"), FAIL, ["names GPU 3"]),
        (gpus(H200, torch_cuda=None), FAIL, ["CPU only"]),
        (gpus(H200, driver="550.54", torch_cuda="13.2"), FAIL, ["needs driver 580", "CUDA 12"]),
        (gpus(H200, torch_cuda="15.0"), WARN, ["not known"]),
    ],
)
def test_gpus(facts: GpuFacts, status: Status, words: list[str]) -> None:
    expect(check_gpus(facts), status, *words)


def test_the_driver_runs_older_cuda() -> None:
    expect(check_driver(gpus(H200, driver="580.1", torch_cuda="12.8")), OK, "runs CUDA 12.8")


def test_nvidia_smi_is_read() -> None:
    table = (
        "0, GPU-a, NVIDIA H200, 143771, 4, 580.65.06, Enabled, 0, Disabled\n"
        "1, GPU-b, NVIDIA GeForce RTX 4090, 24564, 20, 580.65.06, Disabled, [N/A], [N/A]\n"
    )
    apps = "GPU-b, 4711, /usr/bin/python3, 812\nGPU-b, 12, [Insufficient Permissions], [N/A]\n"
    found, processes, driver = read_gpus(Answer(0, table), Answer(0, apps))
    assert found == (
        Gpu(0, "NVIDIA H200", 143771, 4, "GPU-a", True, 0, False),
        Gpu(1, "NVIDIA GeForce RTX 4090", 24564, 20, "GPU-b", False, None, False),
    )
    assert processes[0] == GpuProcess("GPU-b", 4711, "python3", 812)
    assert driver == "580.65.06"


def test_a_broken_nvidia_smi_is_told(tools: Callable[[str, str], None]) -> None:
    tools("nvidia-smi", "echo 'NVIDIA-SMI has failed because it could not talk to the driver' >&2; exit 9")
    facts = gather_gpus(os.environ, None)
    expect(check_gpus(facts), FAIL, "could not talk to the driver")


# ---- network


def net(**changes: object) -> NetworkFacts:
    values: dict[str, object] = {"host": "gpu1", "interfaces": (LO, ETH), "resolved": ("10.0.0.5",), "port": 4711}
    return NetworkFacts(**{**values, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("facts", "several", "status", "words"),
    [
        (net(), True, OK, ["eth0, 10.0.0.5"]),
        (net(interfaces=(LO,)), False, WARN, ["no interface"]),
        (net(interfaces=(LO, Interface("docker0", ("172.17.0.1",)))), True, FAIL, ["no interface", "docker0"]),
        (net(wanted={"NCCL_SOCKET_IFNAME": "ib0"}), False, FAIL, ["ib0", "is not there", "lo, eth0"]),
        (net(wanted={"GLOO_SOCKET_IFNAME": "eth"}), False, FAIL, ["GLOO_SOCKET_IFNAME=eth", "is not there"]),
        (net(wanted={"NCCL_SOCKET_IFNAME": "eth"}), False, OK, ["eth0"]),
        (net(wanted={"GLOO_SOCKET_IFNAME": "lo"}), True, FAIL, ["loopback"]),
        (
            net(interfaces=(LO, ETH, Interface("eth1", ("10.1.0.5",), False)), wanted={"NCCL_SOCKET_IFNAME": "=eth1"}),
            False,
            FAIL,
            ["is down"],
        ),
    ],
)
def test_interfaces(facts: NetworkFacts, several: bool, status: Status, words: list[str]) -> None:
    expect(check_interfaces(facts, several=several), status, *words)


def test_nccl_names_interfaces_by_prefix_or_by_what_they_are_not() -> None:
    all_of_them = (LO, ETH, Interface("eth1", ("10.1.0.5",)), Interface("ib0", ("10.2.0.5",)))

    def names(wanted: str) -> list[str]:
        return [one.name for one in matching(all_of_them, wanted)]

    assert names("eth") == ["eth0", "eth1"]
    assert names("=eth1,ib0") == ["eth1", "ib0"]
    assert names("^lo,eth") == ["ib0"]
    assert names("^=eth0") == ["lo", "eth1", "ib0"]
    chosen = best_interface(all_of_them)
    assert chosen is not None
    assert chosen.name == "ib0"  # as NCCL does


def test_infiniband() -> None:
    assert check_infiniband(net()) == []
    expect(check_infiniband(net(infiniband=("mlx5_0/1: ACTIVE",))), OK, "mlx5_0/1")
    expect(check_infiniband(net(infiniband=("mlx5_0/1: DOWN",))), WARN, "no port is active")
    unused = net(infiniband=("mlx5_0/1: ACTIVE",), wanted={"NCCL_IB_DISABLE": "1"})
    expect(check_infiniband(unused), WARN, "unset NCCL_IB_DISABLE")


@pytest.mark.parametrize(
    ("facts", "several", "status", "words"),
    [
        (net(others={"gpu2": ("10.0.0.6",)}), True, OK, []),
        (net(resolved=("127.0.1.1",)), False, WARN, ["127.0.1.1", "`10.0.0.5 gpu1`", "/etc/hosts"]),
        (net(resolved=()), True, WARN, ["gpu1 does not resolve"]),
        (net(others={"gpu2": ()}), True, WARN, ["the name gpu2 does not resolve", "/etc/hosts"]),
        (net(others={"gpu2": ("127.0.1.1", "::1")}), True, FAIL, ["gpu2 resolves to 127.0.1.1"]),
        (net(others={"127.0.0.12": ("127.0.0.12",)}), True, OK, []),
    ],
)
def test_names(facts: NetworkFacts, several: bool, status: Status, words: list[str]) -> None:
    expect(check_names(facts, several=several), status, *words)


def test_nodes_of_a_slurm_job_find_each_other_by_name() -> None:
    expect(check_names(net(others={"gpu2": ()}), several=True, by_name=True), FAIL, "would not find each other")


def test_port() -> None:
    expect(check_port(net()), OK, "127.0.0.1")
    expect(check_port(net(port_problem="Connection timed out")), FAIL, "cannot be reached", "firewall")
    expect(check_port(net(port=None, port_problem="Cannot assign requested address")), FAIL, "no port can be bound")


# ---- limits


@pytest.mark.parametrize(
    ("facts", "status", "words"),
    [
        (LimitFacts(16 * GIB, 16 * GIB), OK, ["16.0 GiB"]),
        (LimitFacts(2**26, 2**26), WARN, ["64 MiB", "--shm-size"]),
        (LimitFacts(16 * GIB, GIB // 2), WARN, ["512 MiB free", "ls -l /dev/shm"]),
        (LimitFacts(2**26, 2**20), FAIL, ["1 MiB free"]),
        (LimitFacts(None), FAIL, ["no /dev/shm"]),
    ],
)
def test_shared_memory(facts: LimitFacts, status: Status, words: list[str]) -> None:
    expect([check_shared_memory(facts)], status, *words)


@pytest.mark.parametrize(
    ("memlock", "infiniband", "status"),
    [(None, True, OK), (65536, False, OK), (8 * GIB, True, WARN), (65536, True, FAIL)],
)
def test_memlock(memlock: int | None, infiniband: bool, status: Status) -> None:
    facts = LimitFacts(GIB, memlock=memlock, infiniband=infiniband)
    expect([check_memlock(facts)], status, "locked memory")


def test_open_files() -> None:
    expect([check_open_files(LimitFacts(GIB, open_files=None))], OK)
    expect([check_open_files(LimitFacts(GIB, open_files=65536))], OK)
    expect([check_open_files(LimitFacts(GIB, open_files=1024, open_files_hard=524288))], WARN, "ulimit -n 65536")
    expect([check_open_files(LimitFacts(GIB, open_files=1024, open_files_hard=1024))], WARN, "limits.conf")
    expect([check_open_files(LimitFacts(GIB, open_files=128, open_files_hard=4096))], FAIL, "ulimit -n 4096")


def test_memory() -> None:
    much = LimitFacts(GIB, memory=64 * GIB, memory_free=60 * GIB)
    expect([check_memory(much)], OK, "64.0 GiB")
    expect([check_memory(LimitFacts(GIB, memory=8 * GIB, memory_free=2 * GIB))], WARN)
    expect([check_memory(LimitFacts(GIB, memory=8 * GIB, memory_free=GIB // 2))], FAIL)
    small = LimitFacts(GIB, memory=64 * GIB, memory_free=60 * GIB, cgroup_limit=2 * GIB, cgroup_used=GIB * 3 // 2)
    expect([check_memory(small)], FAIL, "the cgroup allows 2.0 GiB, 512 MiB of it left", "--slurm.mem")


def test_limits_of_this_process_are_read() -> None:
    code = (
        "from flash_launch.doctor.limits import gather_limits; f = gather_limits(infiniband=True); "
        "print(f.memlock, f.open_files, f.memory > f.memory_free > 0)"
    )
    shell = f"ulimit -l 64; ulimit -n 200; exec {sys.executable} -c '{code}'"
    told = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, timeout=60, check=True)
    assert told.stdout.split() == ["65536", "200", "True"]
    assert gather_limits(infiniband=False).shm_total


# ---- folders


def folder(**changes: object) -> FolderFacts:
    values: dict[str, object] = {"path": "/s/runs", "exists_at": "/s", "free": 500 * GIB, "kind": "nfs4"}
    return FolderFacts(**{**values, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("facts", "several", "status", "words"),
    [
        (folder(), True, OK, ["/s/runs (to be made in /s)", "nfs4"]),
        (folder(kind="ext4"), False, OK, []),
        (folder(kind="ext4"), True, WARN, ["ext4", "--output-dir"]),
        (folder(kind="tmpfs"), True, FAIL, ["no other machine sees"]),
        (folder(kind="fuse.sshfs"), True, OK, []),
        (folder(free=5 * GIB), False, WARN, ["5.0 GiB", "du -sh"]),
        (folder(free=GIB // 2), False, FAIL, ["512 MiB"]),
        (folder(free_files=7), False, WARN, ["7 more files"]),
        (folder(problem="Read-only file system"), False, FAIL, ["Read-only", "--output-dir"]),
        (folder(problem="No space left on device"), False, FAIL, ["No space", "delete old runs"]),
    ],
)
def test_output_folder(facts: FolderFacts, several: bool, status: Status, words: list[str]) -> None:
    expect(check_output(facts, several=several), status, *words)


def test_temporary_folder() -> None:
    expect([check_temporary(folder(exists_at="/s/runs"))], OK)
    expect([check_temporary(folder())], WARN, "does not exist", "unset TMPDIR")
    expect([check_temporary(folder(exists_at="/s/runs", free=GIB // 2))], WARN, "TMPDIR")
    expect([check_temporary(folder(exists_at="/s/runs", free=1))], FAIL)
    expect([check_temporary(folder(problem="Permission denied"))], FAIL, "Permission denied")


def test_file_systems_are_found_by_the_mount_that_is_nearest() -> None:
    mounts = [
        "1 0 8:1 / / rw - ext4 /dev/sda1 rw",
        "2 1 0:40 / /home rw - nfs4 server:/home rw",
        "3 1 0:41 / /a\\040b rw shared:1 - lustre x rw",
        "4 1 0:42 / /home rw - autofs y rw",
    ]
    assert file_system("/homes/x", mounts) == "ext4"
    assert file_system("/home/x", mounts) == "autofs"
    assert file_system("/a b", mounts) == "lustre"


def test_a_folder_is_tried_and_left_as_it_was(tmp_path: Path) -> None:
    facts = gather_folder(tmp_path / "a" / "b")
    assert (facts.problem, facts.exists_at) == ("", str(tmp_path))
    assert facts.free > 0
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    assert "is a file" in gather_folder(tmp_path / "file" / "runs").problem
    assert gather_folder("/proc/nothing").problem


# ---- build locks


def test_build_locks() -> None:
    left = BuildLock("/c/my ext/lock", 7300)
    expect(check_locks(LockFacts("/c")), OK, "no build locks")
    expect(check_locks(LockFacts("/c", (left,))), FAIL, "2 h ago", "rm '/c/my ext/lock'")
    expect(check_locks(LockFacts("/c", (left,), by_existence=False)), OK, "does not mind")
    expect(check_locks(LockFacts("/c", (BuildLock("/c/x/lock", 9, (77,)),))), WARN, "process 77")
    expect(check_locks(LockFacts("/c", (BuildLock("/c/x/lock", 90),), shared=True)), WARN, "another machine")
    expect(check_locks(LockFacts("/c", (left,), shared=True)), FAIL, "rm ")


def test_a_lock_that_is_held_is_told_from_one_that_was_left(tmp_path: Path) -> None:
    """With the two ways in which torch locks: a file that is there (up to 2.13), and flock (2.15)."""
    old, new = tmp_path / "old", tmp_path / "new"
    for torch, text in ((old, "baton = FileBaton(path)"), (new, "with FileLock(path):")):
        (torch / "utils").mkdir(parents=True)
        (torch / "utils" / "cpp_extension.py").write_text(text)
    lock = tmp_path / "cache" / "py311_cpu" / "op" / "lock"
    lock.parent.mkdir(parents=True)
    environment = {"TORCH_EXTENSIONS_DIR": str(tmp_path / "cache")}
    with lock.open("w"):
        facts = gather_locks(environment, old)
        assert facts.locks[0].held_by == (os.getpid(),)
        expect(check_locks(facts), WARN, "being built")
    os.utime(lock, (0, time.time() - 600))
    expect(check_locks(gather_locks(environment, old)), FAIL, "10 min ago", f"rm {lock}")
    expect(check_locks(gather_locks(environment, new)), OK)
    subprocess.run(["rm", str(lock)], check=True)
    expect(check_locks(gather_locks({"XDG_CACHE_HOME": str(tmp_path)}, old)), OK)


# ---- environment


@pytest.mark.parametrize(
    ("environment", "status", "words"),
    [
        ({"PATH": "/bin", "OMP_NUM_THREADS": "4"}, OK, []),
        ({"RANK": "0", "WORLD_SIZE": "4"}, WARN, ["RANK=0, WORLD_SIZE=4", "unset RANK WORLD_SIZE"]),
        ({"TORCHELASTIC_RUN_ID": "x"}, WARN, ["TORCHELASTIC_RUN_ID"]),
        ({"CUDA_LAUNCH_BLOCKING": "1"}, WARN, ["unset CUDA_LAUNCH_BLOCKING"]),
        ({"NCCL_DEBUG": "info"}, WARN, ["NCCL_DEBUG=WARN"]),
        ({"OMP_NUM_THREADS": "64"}, WARN, ["there are 8 cores"]),
        ({"OMP_NUM_THREADS": "all"}, FAIL, ["'all' is no number"]),
        ({"PYTHONHOME": "/opt/py"}, FAIL, ["unset PYTHONHOME"]),
    ],
)
def test_variables(environment: dict[str, str], status: Status, words: list[str]) -> None:
    expect(check_variables(VariableFacts(environment, 8)), status, *words)


def test_files_that_hide_packages(tmp_path: Path) -> None:
    here, path = tmp_path / "here", tmp_path / "path"
    here.mkdir()
    (path / "deepspeed").mkdir(parents=True)
    (here / "wandb").mkdir()  # W&B's own folder of runs: no package, hides nothing
    clean = gather_variables({"PYTHONPATH": str(path)}, here)
    assert clean.shadows == {}
    (path / "deepspeed" / "__init__.py").touch()
    (here / "random.py").touch()
    facts = gather_variables({"PYTHONPATH": str(path)}, here)
    assert facts.shadows == {"random": str(here / "random.py"), "deepspeed": str(path / "deepspeed")}
    found = check_variables(facts)
    expect(found, FAIL, "deepspeed", "PYTHONPATH")
    assert [finding.status for finding in found] == [WARN, FAIL]
    (path / "deepspeed-0.19.8.dist-info").mkdir()  # a folder of installed packages: meant so
    assert "deepspeed" not in gather_variables({"PYTHONPATH": str(path)}, here).shadows


def test_libraries_in_place_of_torchs_own(tmp_path: Path) -> None:
    (tmp_path / "libnccl.so.2").touch()
    facts = gather_variables({"LD_LIBRARY_PATH": f"/none:{tmp_path}"}, tmp_path / "nothing")
    expect(check_variables(facts), WARN, "libnccl.so.2", "unset LD_LIBRARY_PATH")


# ---- W&B


@pytest.mark.parametrize(
    ("facts", "status", "words"),
    [
        (WandbFacts(True), OK, ["offline"]),
        (WandbFacts(False), OK, ["not installed"]),
        (WandbFacts(False, login=True), WARN, ["pip install wandb"]),
        (WandbFacts(True, mode="disabled"), OK, ["disabled"]),
        (WandbFacts(True, mode="offline"), OK, ["offline"]),
        (WandbFacts(True, mode="of-line"), FAIL, ["of-line"]),
        (WandbFacts(True, key_variable=True, reachable=True), OK, ["WANDB_API_KEY is set"]),
        (WandbFacts(True, key_variable=True, key_plausible=False), FAIL, ["does not look like a key"]),
        (WandbFacts(True, login=True, reachable=False), WARN, ["did not answer", "--wandb offline"]),
        (WandbFacts(True, netrc_problem="/h/.netrc, line 3 is not as it should be"), WARN, ["line 3"]),
    ],
)
def test_wandb(facts: WandbFacts, status: Status, words: list[str]) -> None:
    expect(check_wandb(facts), status, *words)


@contextlib.contextmanager
def answering() -> Iterator[str]:
    """The name of a web server."""
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


def test_the_key_is_found_and_never_told(tmp_path: Path) -> None:
    with answering() as host:
        url = f"http://{host}"
        base = {"HOME": str(tmp_path), "WANDB_BASE_URL": url}
        by_key = gather_wandb({**base, "WANDB_API_KEY": KEY}, installed=True)
        assert (by_key.key_variable, by_key.key_plausible, by_key.reachable) == (True, True, True)
        (tmp_path / ".netrc").write_text(f"machine {host}\n  login user\n  password {KEY}\n")
        by_netrc = gather_wandb(base, installed=True)
        assert (by_netrc.login, by_netrc.key_variable, by_netrc.reachable) == (True, False, True)
    gone = gather_wandb(base, installed=True)
    assert gone.reachable is False
    (tmp_path / ".netrc").write_text(f"machine 127.0.0.1 login user pass {KEY}\n")
    broken = gather_wandb(base, installed=True)
    assert broken.netrc_problem
    quoted = gather_wandb({**base, "WANDB_API_KEY": f'"{KEY}"'}, installed=True)
    assert not quoted.key_plausible
    (tmp_path / ".netrc").unlink()
    token = gather_wandb({**base, "WANDB_IDENTITY_TOKEN_FILE": "/t"}, installed=True)
    expect(check_wandb(token), WARN, "logged in by WANDB_IDENTITY_TOKEN_FILE")
    for url in ("https://wandb.corp:PORT", "http://[bad"):
        strange = gather_wandb({**base, "WANDB_BASE_URL": url, "WANDB_API_KEY": KEY}, installed=True)
        assert strange.reachable is False
    for facts in (by_key, by_netrc, gone, broken, quoted):
        assert KEY not in repr(facts) + repr(check_wandb(facts))


# ---- Slurm

SINFO = "main*|up|1:00:00|idle|2\nmain*|up|1:00:00|drained|1\noff|down|5:00|idle|3\n"


def slurm(*partitions: Partition, **changes: object) -> SlurmFacts:
    return SlurmFacts(**{"partitions": partitions, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("facts", "asked", "nodes", "status", "words"),
    [
        (slurm(*read_partitions(Answer(0, SINFO))), True, 2, OK, ["main* 2 of 3 nodes", "off 3 of 3 nodes, down"]),
        (slurm(*read_partitions(Answer(0, SINFO))), True, 3, WARN, ["no partition has so many"]),
        (slurm(*read_partitions(Answer(0, SINFO))), True, 9, FAIL, ["main, has 3", "--nodes 3"]),
        (slurm(Partition("a", False, True, "1:00", {"idle": 2})), True, 1, FAIL, ["no partition can run"]),
        (slurm(Partition("a", True, True, "1:00", {"down*": 2})), True, 1, FAIL, ["sinfo -R"]),
        (
            slurm(Partition("a", True, True, "1", {"idle": 2}), Partition("b", True, False, "1", {"down": 1})),
            *(True, 1, WARN, ["no node of b works"]),
        ),
        (slurm(), True, 1, FAIL, ["no partition"]),
        (slurm(problem="sinfo did not answer within 5 s"), True, 1, FAIL, ["did not answer"]),
        (slurm(problem="sinfo did not answer within 5 s"), False, 1, WARN, ["did not answer"]),
        (slurm(problem="fatal: Could not establish a configuration source"), True, 1, FAIL, ["SLURM_CONF"]),
        (slurm(missing=("sinfo", "sbatch", "srun")), True, 1, FAIL, ["not in PATH", "login node"]),
        (
            slurm(Partition("a", True, True, "1", {"idle": 2}), missing=("srun",)),
            True,
            1,
            FAIL,
            ["srun is not in PATH"],
        ),
    ],
)
def test_slurm(facts: SlurmFacts, asked: bool, nodes: int, status: Status, words: list[str]) -> None:
    expect(check_slurm(facts, asked=asked, nodes=nodes), status, *words)


def test_nothing_is_said_where_there_is_no_slurm() -> None:
    lone = slurm(problem="fatal: Could not establish a configuration source")
    expect(check_slurm(lone, asked=False, nodes=1), OK, "runs stay on this machine")
    assert check_slurm(SlurmFacts(("sinfo", "sbatch")), asked=False, nodes=1) == []


def test_a_controller_that_hangs_costs_no_more_than_its_time(
    tools: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flash_launch.doctor.slurm_state._SECONDS", 0.5)
    for name in ("sbatch", "srun", "squeue", "scontrol"):
        tools(name, "exit 0")
    tools("sinfo", "sleep 30")
    began = time.monotonic()
    facts = gather_slurm({**os.environ, "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-2]"})
    assert time.monotonic() - began < 5
    assert (facts.job, facts.job_nodes) == ("7", ("n1", "n2"))
    expect(check_slurm(facts, asked=True, nodes=2), WARN, "did not answer within 0.5 s")  # a job that runs goes on
    expect(check_slurm(replace(facts, job=""), asked=True, nodes=2), FAIL, "did not answer within 0.5 s")
    tools("sinfo", f"printf '{SINFO}'".replace("\n", "\\n"))
    assert check_slurm(gather_slurm(os.environ), asked=True, nodes=2)[0].status is OK


# ---- the tiny run


def tiny(*ends: RankEnd, **changes: object) -> TinyRunFacts:
    values: dict[str, object] = {
        **{"backend": "gloo", "address": "127.0.0.1", "ranks": ends, "seconds": 3.0, "limit": 60.0},
        **{"import_seconds": 2.0, "devices": 0},
    }
    return TinyRunFacts(**{**values, **changes})  # type: ignore[arg-type]


ADDED = RankEnd("added")


@pytest.mark.parametrize(
    ("facts", "status", "words"),
    [
        (tiny(ADDED, ADDED), OK, ["2 ranks added up over gloo"]),
        (tiny(ADDED, ADDED, import_seconds=40.0), WARN, ["40 s", "faster disk"]),
        (tiny(RankEnd("", 1, "ModuleNotFoundError: No module named 'torch'"), ADDED, devices=None), FAIL, ["torch"]),
        (tiny(RankEnd("", None), RankEnd("", None), devices=None), FAIL, ["not imported within 60 s"]),
        (tiny(RankEnd("joined", None), RankEnd("joined", None)), FAIL, ["rank 0", "while adding up", "GLOO_SOCKET"]),
        (
            tiny(RankEnd("imported", None), RankEnd("computed", 1, "RuntimeError: x")),
            FAIL,
            ["rank 1", "RuntimeError: x"],
        ),
        (tiny(ADDED, RankEnd("joined", -11)), FAIL, ["rank 1", "SIGSEGV"]),
        (tiny(ADDED, ADDED, devices=2, listed=2, smi=True), OK, []),
        (tiny(ADDED, ADDED, devices=0, listed=2, smi=True), FAIL, ["torch sees 0 GPUs, but 2 are there"]),
        (tiny(ADDED, ADDED, devices=2, listed=0), WARN, ["no nvidia-smi"]),
        (
            tiny(RankEnd("imported", 1, "no kernel image is available"), ADDED, devices=2, listed=2, smi=True),
            FAIL,
            ["built for this GPU"],
        ),
    ],
)
def test_tiny_run(facts: TinyRunFacts, status: Status, words: list[str]) -> None:
    expect(check_tiny_run(facts), status, *words)


def run_tiny(program: str, limit: float) -> TinyRunFacts:
    return gather_tiny_run(
        os.environ,
        ranks=2,
        backend="gloo",
        address="127.0.0.1",
        interface="lo",
        listed=0,
        smi=False,
        limit=limit,
        program=("-c", program),
    )


def test_ranks_that_hang_are_killed_with_what_they_started(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    program = (
        "import subprocess, time; child = subprocess.Popen(['sleep', '60']); "
        f"open({str(pids)!r}, 'a').write(f'{{child.pid}}\\n'); "
        'print(\'{"step": "joined", "devices": 0}\', flush=True); time.sleep(60)'
    )
    facts = run_tiny(program, 8)
    expect(check_tiny_run(facts), FAIL, "was ended after 8 s while adding up")
    children = [int(pid) for pid in pids.read_text().split()]
    assert len(children) == 2
    time.sleep(0.2)
    for pid in children:
        state = Path(f"/proc/{pid}/stat")
        assert not state.exists() or state.read_text().split()[2] == "Z"


def test_a_rank_that_fails_is_named_and_the_other_is_not_waited_for() -> None:
    program = (
        'import os, time; print(\'{"step": "imported", "devices": 0}\', flush=True)\n'
        "if os.environ['RANK'] == '1': raise RuntimeError('gloo: no such interface')\ntime.sleep(60)"
    )
    facts = run_tiny(program, 30)
    assert facts.seconds < 10
    expect(check_tiny_run(facts), FAIL, "rank 1", "RuntimeError: gloo: no such interface")


# ---- several nodes


def node(**changes: object) -> NodeFacts:
    values: dict[str, object] = {
        **{"host": "n", "packages": {"torch": "2.15.0", "python": "3.11.7"}, "code": "abc", "driver": "580.1"},
        **{"gpus": ("H200", "H200"), "kernel": "6.1", "glibc": "2.36", "sees_token": True},
    }
    return NodeFacts(**{**values, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("odd", "status", "words"),
    [
        (node(), OK, []),
        (node(packages={"torch": "2.13.0", "python": "3.11.7"}), FAIL, ["torch differs: 2.13.0 on c; 2.15.0 on a, b"]),
        (node(packages={"python": "3.11.7"}), FAIL, ["torch differs: not installed on c"]),
        (node(packages={"torch": "2.15.0", "python": "3.11.9"}), WARN, ["python differs"]),
        (node(packages={"torch": "2.15.0", "python": "3.12.1"}), FAIL, ["python differs"]),
        (node(code="def"), FAIL, ["code of flash-launch differs: def on c"]),
        (node(gpus=("H200",)), WARN, ["number of GPUs", "--procs-per-node 1"]),
        (node(gpus=()), FAIL, ["number of GPUs", "0 on c"]),
        (node(gpus=("A100", "A100")), WARN, ["the GPUs differ: A100 on c"]),
        (node(driver="550.1"), WARN, ["driver differs: 550.1 on c"]),
        (node(kernel="5.4"), WARN, ["kernel"]),
        (node(glibc="2.31"), WARN, ["glibc"]),
    ],
)
def test_nodes_are_compared(odd: NodeFacts, status: Status, words: list[str]) -> None:
    expect(check_equal({"a": node(), "b": node(), "c": odd}, None), status, *words)


def test_the_callers_code_counts_too() -> None:
    expect(check_equal({"a": node(), "b": node()}, node(code="mine")), FAIL, "mine on here; abc on a, b")


def test_clocks() -> None:
    assert ClockWindow(-1.0, 5.0).within(ClockWindow(-3.0, 0.5)) == ClockWindow(-1.0, 0.5)
    expect(check_clocks({"a": ClockWindow(-4.0, 0.1)}), OK)
    expect(check_clocks({"a": ClockWindow(5.0, 9.0)}), WARN, "a is 5 s ahead")
    expect(check_clocks({"a": ClockWindow(-99.0, -90.0)}), FAIL, "a is 90 s behind", "chronyc")


def test_the_folder_must_be_shared() -> None:
    expect(check_shared_folder({"a": node(), "b": node()}, "/s/runs"), OK)
    expect(check_shared_folder({"a": node(), "b": node(sees_token=False)}, "/s/runs"), FAIL, "b does not see")
    expect(check_shared_folder({"a": node()}, "/s/runs", "Read-only file system"), FAIL, "Read-only")


def test_nodes_that_do_not_reach_each_other() -> None:
    expect(check_meeting({"a": {"b": ""}, "b": {"a": ""}}), OK)
    expect(check_meeting({"a": {"b": "no answer"}, "b": {"a": ""}}), FAIL, "a does not reach b: no answer")
    many = {f"n{i}": {f"n{j}": "refused" for j in range(5) if j != i} for i in range(5)}
    assert len(check_meeting(many)) == 7
    expect(check_unanswered({"a": ("a has no python", "install it")}), FAIL, "a has no python")


def test_what_all_nodes_found_is_told_once() -> None:
    same, other = ok("limits", "open files: 1,024"), warn("folders", "little room", "rm")
    merged = merge_findings(
        {
            "a": [same, other, ok("limits", "memory: 9.0 GiB"), ok("network", "name n1.x is 10.0.0.1")],
            "b": [same, ok("limits", "memory: 8.0 GiB"), ok("network", "name n2.x is 10.0.0.2")],
        },
        {"a": "n1.x", "b": "n2.x"},
    )
    assert [finding.node for finding in merged] == ["", "a", "a, others alike", "a, others alike"]


def free_ports(count: int) -> list[int]:
    servers = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(server.getsockname()[1]) for server in servers]
    for server in servers:
        server.close()
    return ports


def test_nodes_meet_even_if_they_begin_one_after_the_other() -> None:
    peers = [Peer(name, "127.0.0.1", port) for name, port in zip("abc", free_ports(3), strict=True)]
    results: dict[str, dict[str, str]] = {}

    def one(name: str, delay: float) -> None:
        time.sleep(delay)
        results[name] = meet(name, peers, "word", 8.0)

    threads = [
        threading.Thread(target=one, args=(name, delay)) for name, delay in zip("abc", (0, 0.3, 0.6), strict=True)
    ]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert time.monotonic() - began < 5  # they do not wait longer than they must
    assert results == {name: dict.fromkeys(set("abc") - {name}, "") for name in "abc"}


def test_who_is_not_a_node_is_not_taken_for_one() -> None:
    """A refused port, a program that says something else, and a port at which nobody answers."""
    refused, own = free_ports(2)
    with socket.create_server(("127.0.0.1", 0)) as silent, socket.create_server(("127.0.0.1", 0)) as strange:

        def say() -> None:
            with strange.accept()[0] as connection:
                connection.sendall(b"SSH-2.0-OpenSSH\r\n")
                connection.recv(100)

        thread = threading.Thread(target=say, daemon=True)
        thread.start()
        peers = [
            Peer("a", "127.0.0.1", own),
            Peer("refused", "127.0.0.1", refused),
            Peer("silent", "127.0.0.1", silent.getsockname()[1]),
            Peer("strange", "127.0.0.1", strange.getsockname()[1]),
        ]
        found = meet("a", peers, "word", 1.0)
    assert found["refused"].startswith("refused")
    assert found["silent"].startswith("no answer")
    assert "another program" in found["strange"]


# ---- getting onto nodes


def test_answers_survive_greetings_and_mixed_lines() -> None:
    message: dict[str, object] = {"text": "x" * 5000, "list": list(range(2000))}
    a, b = pack("a", message).splitlines(), pack("b", {"n": 1}).splitlines()
    assert max(map(len, a)) < 1000
    mixed = ["Welcome!", *a[:2], *b, "slurmstepd: noise", *reversed(a[2:])]
    assert unpack("\n".join(mixed)) == {"a": message, "b": {"n": 1}}
    assert unpack("\n".join(a[:-1])) == {}
    assert unpack("@flash-launch-doctor a 0 1 !!!") == {}


def test_ssh_is_called_as_for_a_run_and_quotes_what_the_other_shell_sees() -> None:
    host = Host("gpu1", "u", 2222)
    remote = SshRemote({"u@gpu1:2222": host}, {"PYTHONPATH": "/a b:/c"})
    argv = remote.argv("u@gpu1:2222", ["/my venv/python", "-c", "print('$HOME')"])
    assert {"BatchMode=yes", "-p", "2222"} < set(argv)
    assert argv[-3:-1] == ["--", "u@gpu1"]
    assert shlex.split(argv[-1]) == [
        *("exec", "env", "PYTHONPATH=/a b:/c", "FLASH_LAUNCH_DOCTOR_HOST=u@gpu1:2222"),
        *("/my venv/python", "-c", "print('$HOME')"),
    ]


def test_srun_runs_once_per_node_beside_what_is_there() -> None:
    assert srun_argv(["n1", "n2"], ["python", "-V"]) == [
        *("srun", "--nodes=2", "--ntasks=2", "--ntasks-per-node=1", "--nodelist=n1,n2"),
        *("--overlap", "--kill-on-bad-exit=0", "--quiet", "--", "python", "-V"),
    ]


@pytest.mark.parametrize(
    ("code", "err", "problem", "fix"),
    [
        (255, "ssh: Could not resolve hostname h: Name or service not known", "does not resolve", "/etc/hosts"),
        (255, "u@h: Permission denied (publickey,password).", "refuses the login", "ssh-copy-id h"),
        (255, "No ED25519 host key is known\nHost key verification failed.", "is not known", "ssh-keyscan h"),
        (
            255,
            "@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @\nHost key verification failed.",
            "not the one",
            "ssh-keygen -R h",
        ),
        (255, "ssh: connect to host h port 22: Connection refused", "no ssh server", "sshd"),
        (255, "ssh: connect to host h port 22: No route to host", "no route", "switched on"),
        (255, "ssh: connect to host h port 22: Connection timed out", "does not answer", "firewall"),
        (255, "client_loop: send disconnect: Broken pipe", "Broken pipe", "ssh h true"),
        (127, "env: '/v/bin/python': No such file or directory", "h has no /v/bin/python", "virtual environment"),
        (1, "/v/bin/python: No module named flash_launch.doctor", "another version", "pip install"),
        (1, "/v/bin/python: No module named flash_launch", "another version", "pip install"),
        (1, "MemoryError", "MemoryError", "ssh h"),
    ],
)
def test_ssh_errors_are_told_in_words(code: int, err: str, problem: str, fix: str) -> None:
    found = explain_ssh(Host("h"), code, err, "/v/bin/python")
    assert problem in found[0]
    assert fix in found[1]


def test_a_program_that_hangs_is_ended_with_its_children() -> None:
    began = time.monotonic()
    answer = ask(["bash", "-c", "sleep 30 & sleep 30"], timeout=0.5)
    assert answer.code is None
    assert "did not answer within 0.5 s" in answer.problem
    assert time.monotonic() - began < 5
    assert "cannot be run" in ask(["/no/such/program"], timeout=1).problem


# ---- the command


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Makes programs, as shell scripts, that stand in front of all others in PATH."""
    folder = tmp_path / "tools"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def make(name: str, script: str) -> None:
        (folder / name).write_text(f"#!/bin/bash\n{script}\n")
        (folder / name).chmod(0o755 | stat.S_IXUSR)

    return make


@pytest.fixture
def clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder, and an environment, in which nothing is wrong."""
    for name in list(os.environ):
        if name.startswith(("SLURM", "WANDB", "NCCL", "GLOO", "TORCH", "CUDA")) or name in ("RANK", "WORLD_SIZE"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("NETRC", raising=False)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


FAKE_SSH = """
host="${@: -2:1}"; command="${@: -1}"
case $host in
  far) echo 'ssh: connect to host far port 22: No route to host' >&2; exit 255;;
  old) echo '/usr/bin/python: No module named flash_launch.doctor' >&2; exit 1;;
  mute) echo 'Welcome to mute'; exit 0;;
esac
echo "Welcome to $host"; sh -c "$command"
"""


def test_one_machine_quick(clean: Path, capfd: pytest.CaptureFixture[str]) -> None:
    began = time.monotonic()
    code = main(["doctor", "--quick", "--json"])
    assert time.monotonic() - began < 10
    told = json.loads(capfd.readouterr().out)
    assert code == told["exit_code"] == (1 if told["counts"]["FAIL"] else 0)
    assert {finding["group"] for finding in told["findings"]} >= {"versions", "network", "folders", "limits", "W&B"}
    assert not [finding for finding in told["findings"] if finding["group"] == "ranks"]
    assert list(clean.iterdir()) == []


def test_two_ranks_really_add_up(
    clean: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    main(["doctor", "--nodes", "2"])
    out = capfd.readouterr().out
    assert "  OK    2 ranks added up over gloo at 127.0.0.1" in out
    assert out.splitlines()[-1].startswith(
        f"{out.count('  OK  ') + out.count('  WARN  ') + out.count('  FAIL  ')} checks"
    )


def test_a_fail_is_exit_code_1_and_names_the_fix(
    clean: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "ib7")
    monkeypatch.setenv("RANK", "3")
    assert main(["doctor", "--quick"]) == 1
    out = capfd.readouterr().out
    assert "  FAIL  NCCL_SOCKET_IFNAME=ib7 names an interface that is not there" in out
    assert "fix: unset RANK" in out
    assert out.splitlines()[-1].endswith("a run would fail")


def test_several_machines_by_ssh(
    clean: Path, capfd: pytest.CaptureFixture[str], tools: Callable[[str, str], None]
) -> None:
    """A stand-in for ssh runs the commands here, so both nodes are this machine, and reach each other."""
    tools("ssh", FAKE_SSH)
    (clean / "hosts").write_text("127.0.0.1 slots=8\n# spare\n127.0.0.2\nfar\nold\nmute\n")
    assert main(["doctor", "--hostfile", "hosts", "--quick", "--json"]) == 1
    (clean / "hosts").unlink()
    findings = [finding_from_json(one) for one in json.loads(capfd.readouterr().out)["findings"]]
    by_text = {finding.text: finding for finding in findings if finding.group == "nodes"}
    assert by_text["far: it cannot be reached, there is no route to it"].status is FAIL
    assert by_text["old has another version of flash-launch than this one, or none"].status is FAIL
    assert by_text["mute gave no answer that can be read"].status is FAIL
    assert by_text["the same code and packages on all 2 nodes"].status is OK
    assert by_text["all 2 nodes reach each other's ports"].status is OK
    assert by_text[f"all 2 nodes see the folder {clean / 'runs'}"].status is OK
    assert list(clean.iterdir()) == []


def test_ctrl_c_ends_it_at_once_and_leaves_nothing(clean: Path, tools: Callable[[str, str], None]) -> None:
    tools("ssh", "echo $$ > pid; exec sleep 60")
    command = [sys.executable, "-m", "flash_launch.doctor", "--hosts", "far", "--quick"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        end = time.monotonic() + 20
        while not (clean / "pid").exists() or not (clean / "pid").read_text():
            assert time.monotonic() < end
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=10)
    assert (process.returncode, err) == (130, "")
    assert not Path(f"/proc/{(clean / 'pid').read_text().strip()}").exists()
    assert [path.name for path in clean.iterdir()] == ["pid"]


FAKE_SRUN = """
for word in "$@"; do case $word in --nodelist=*) hosts=${word#--nodelist=};; esac; done
while [ "$1" != -- ]; do shift; done; shift
given=$(cat)
for host in ${hosts//,/ }; do
  if [ "$host" = 127.0.0.3 ]; then echo "srun: error: 127.0.0.3: task 2: Exited with exit code 1" >&2; continue; fi
  SLURMD_NODENAME=$host "$@" <<<"$given" &
done
wait
"""


def test_the_nodes_of_a_slurm_job(
    clean: Path,
    capfd: pytest.CaptureFixture[str],
    tools: Callable[[str, str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tools("srun", FAKE_SRUN)
    tools("sinfo", "echo 'main*|up|1:00:00|allocated|3'")
    for name in ("sbatch", "squeue", "scontrol"):
        tools(name, "exit 1")
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "127.0.0.[1-3]")
    assert main(["doctor", "--quick"]) == 1
    out = capfd.readouterr().out
    assert "part of job 77 on 3 nodes: 127.0.0.1, 127.0.0.2, 127.0.0.3" in out
    assert "127.0.0.3 gave no answer (srun: error: 127.0.0.3: task 2: Exited with exit code 1)" in out
    assert "all 2 nodes reach each other's ports" in out
    assert main(["doctor", "--quick", "--nodes", "2"]) in (0, 1)
    assert "gave no answer" not in capfd.readouterr().out
    assert main(["doctor", "--nodes", "4"]) == 2
    assert "job 77 has 3" in capfd.readouterr().err


def test_on_the_login_node_the_way_to_the_nodes_is_told(
    clean: Path, capfd: pytest.CaptureFixture[str], tools: Callable[[str, str], None]
) -> None:
    tools("sinfo", "echo 'main*|up|1:00:00|idle|4'")
    for name in ("sbatch", "squeue", "scontrol", "srun"):
        tools(name, "exit 1")
    main(["doctor", "--slurm", "--quick", "--nodes", "2"])
    out = capfd.readouterr().out
    assert "  OK    the controller answers; partitions: main* 4 of 4 nodes" in out
    assert "salloc --nodes=2 flash-launch doctor --slurm" in out


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--node", "2"], ["--node", "did you mean --nodes?"]),
        (["--nodes"], ["--nodes has no value"]),
        (["--nodes", "0"], ["--nodes was given 0"]),
        (["--nodes=two"], ["was given two"]),
        (["gpu1"], ["'gpu1'"]),
        (["--hosts", "a,-oProxyCommand=x"], ["a host is HOST"]),
        (["--hosts", "a,a"], ["names a more than once"]),
        (["--hosts", ","], ["host 1 is empty"]),
        (["--hosts", "a", "--hosts", "b"], ["given twice"]),
        (["--hosts", "a", "--hostfile", "b"], ["give one of them"]),
        (["--hosts", "a", "--slurm"], ["give one of them"]),
        (["--hosts", "a,b", "--nodes", "3"], ["but 2 hosts"]),
        (["--hostfile", "nothing"], ["cannot be read"]),
        (["--json=yes"], ["takes no value"]),
    ],
)
def test_wrong_arguments(argv: list[str], words: list[str], clean: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", *argv]) == 2
    err = capfd.readouterr().err
    assert len(err.splitlines()) == 1
    for word in words:
        assert word in err


def test_options() -> None:
    assert read_doctor_options([]) == DoctorOptions()
    given = read_doctor_options(["--hosts", "a,b,c", "--nodes=2", "--output_dir", "x", "--quick"])
    assert given == DoctorOptions(2, (Host("a"), Host("b")), quick=True, output_dir=Path("x"))
    with pytest.raises(ConfigError):
        read_doctor_options(["--hosts", "a b"])


def test_help(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--help"]) == 0
    assert "usage: flash-launch doctor" in capfd.readouterr().out


# ---- how it is shown


def test_text_and_json() -> None:
    findings = [fail("ranks", "it hangs", "end it"), ok("versions", "fine"), warn("network", "slow " * 30, "mend")]
    assert render_text(findings[:2], 1.25).splitlines() == [
        "versions",
        "  OK    fine",
        "ranks",
        "  FAIL  it hangs",
        "        fix: end it",
        "2 checks in 1.2 s: 1 OK, 0 WARN, 1 FAIL: a run would fail",
    ]
    narrow = render_text(findings, 1.0, width=60).splitlines()
    assert max(map(len, narrow[:-1])) <= 60
    assert json.loads(render_json(findings, 1.0))["counts"] == {"OK": 1, "WARN": 1, "FAIL": 1}


def test_node_facts_travel(clean: Path) -> None:
    facts, findings = probe(Request(str(clean / "runs"), quick=True, ask_slurm=False, token=str(clean)))
    assert facts.sees_token is True
    assert facts.port
    message = json.loads(json.dumps({"facts": facts.to_json(), "findings": [one.to_json() for one in findings]}))
    assert node_facts_from_json(message["facts"]) == facts
    assert [finding_from_json(one) for one in message["findings"]] == findings


# ---- machines that are not as one would wish


def test_a_folder_that_does_not_answer_is_a_finding_and_holds_nobody(
    clean: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a file server that is gone; the other checks are told all the same."""

    def hang(path: str) -> FolderFacts:
        threading.Event().wait(60)
        raise AssertionError(path)

    monkeypatch.setattr("flash_launch.doctor.folders.gather_folder", hang)
    monkeypatch.setattr("flash_launch.doctor.probe._FOLDER_SECONDS", 0.3)
    began = time.monotonic()
    _, findings = probe(Request("/gone", quick=True, ask_slurm=False))
    assert time.monotonic() - began < 20
    hung = [finding.text for finding in findings if finding.group == "folders" and finding.status is FAIL]
    assert "/gone did not answer within 0.3 s" in hung
    assert {finding.group for finding in findings} >= {"versions", "network", "limits", "environment"}


def test_a_check_that_is_wrong_itself_does_not_end_the_others(clean: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(**_: object) -> None:
        raise ValueError("no MemTotal")

    monkeypatch.setattr("flash_launch.doctor.limits.gather_limits", broken)
    _, findings = probe(Request(str(clean), quick=True, ask_slurm=False))
    (told,) = [finding for finding in findings if finding.group == "limits"]
    assert (told.status, told.text) == (FAIL, "this could not be checked: ValueError: no MemTotal")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")
def test_folders_that_may_not_be_looked_into() -> None:
    """As the private folders of services in /tmp, for everybody but root."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "numpy").mkdir(mode=0o700)
        (folder / "hidden").mkdir(mode=0o700)
        code = (
            "import os, pathlib\n"
            "from flash_launch.doctor.folders import check_output, gather_folder\n"
            "from flash_launch.doctor.variables import gather_variables\n"
            "gather_folder('/'); os.setuid(65534)\n"  # what Python loads late lies where only root can read, perhaps
            f"print(gather_variables({{}}, pathlib.Path({name!r})).shadows)\n"
            f"print(check_output(gather_folder({name + '/hidden/runs'!r}), several=False)[0].text)\n"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "{}"
    assert "cannot be written to: Permission denied" in done.stdout


def test_in_a_job_what_slurm_says_of_partitions_stops_nothing() -> None:
    full = Partition("a", True, True, "1:00", {"draining": 2})
    expect(check_slurm(slurm(full), asked=True, nodes=2), FAIL, "no partition can run a job now")
    expect(check_slurm(slurm(full, job="7", job_nodes=("n1", "n2")), asked=True, nodes=2), WARN)


def test_gpus_of_others_are_no_business_of_ours() -> None:
    gpus = (Gpu(0, "H100", 80_000, uuid="GPU-a"), Gpu(1, "H100", 80_000, uuid="GPU-b", ecc_errors=3))
    others = (GpuProcess("GPU-b", 7, "python"),)
    facts = GpuFacts("", gpus, others, "580.1", 2, None, "13.0")
    expect(check_gpus(facts), FAIL, "GPU 1 has 3 uncorrected memory errors")
    for visible in ("0", "GPU-a"):
        assert worst(check_gpus(replace(facts, visible=visible))).status is OK


def test_values_of_others_variables_are_not_told() -> None:
    facts = VariableFacts({"RANK": "3", "PET_STORE_TOKEN": "s3cr3t"}, cores=2)
    (found,) = check_variables(facts)
    assert "RANK=3" in found.text
    assert "PET_STORE_TOKEN" in found.text
    assert "s3cr3t" not in repr(found)


def test_page_cache_counts_as_memory_that_is_left(tmp_path: Path) -> None:
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 100\nactive_file 70\nslab_reclaimable 30\n")
    assert limits._droppable(tmp_path) == 200
    (tmp_path / "memory.stat").write_text("inactive_file 1\ntotal_inactive_file 100\ntotal_active_file 70\n")
    assert limits._droppable(tmp_path) == 170
