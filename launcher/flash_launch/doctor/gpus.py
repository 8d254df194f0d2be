"""GPUs as nvidia-smi tells of them: how many and which, what else runs on them, their errors, the driver."""

import csv
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from flash_launch.doctor.asking import Answer, ask
from flash_launch.doctor.findings import Finding, fail, ok, warn

__all__ = ["Gpu", "GpuFacts", "GpuProcess", "check_driver", "check_gpus", "gather_gpus", "read_gpus"]

_GROUP = "GPUs"
_QUERY = (
    *("index", "uuid", "name", "memory.total", "memory.used", "driver_version", "persistence_mode"),
    *("ecc.errors.uncorrected.volatile.total", "mig.mode.current"),
)
_APPS = ("gpu_uuid", "pid", "process_name", "used_memory")
_SECONDS = 20.0
_MANY_MIB = 1024
_LEAST_DRIVER = {11: 450, 12: 525, 13: 580}
"""Driver branch by CUDA's major version: docs.nvidia.com/deploy/cuda-compatibility, minor version compatibility."""


@dataclass(frozen=True)
class Gpu:
    """One GPU."""

    index: int
    """As nvidia-smi counts."""
    name: str
    """Its model."""
    memory_mib: int
    """All of its memory."""
    used_mib: int = 0
    """How much of it is used now."""
    uuid: str = ""
    """By which nvidia-smi names it in its list of processes."""
    persistent: bool | None = None
    """Persistence mode; None: not told."""
    ecc_errors: int | None = None
    """Uncorrected errors of its memory since the driver was loaded; None: it does not count them."""
    mig: bool = False
    """Cut into instances (MIG)."""


@dataclass(frozen=True)
class GpuProcess:
    """A process that uses a GPU."""

    uuid: str
    """The GPU."""
    pid: int
    """Its pid, as the host counts."""
    name: str
    """Its program."""
    memory_mib: int = 0
    """GPU memory that it holds."""


@dataclass(frozen=True)
class GpuFacts:
    """What there is to say about a machine's GPUs without torch."""

    smi: str
    """Empty if nvidia-smi answered; "missing" if there is none; else why it did not answer."""
    gpus: tuple[Gpu, ...] = ()
    """As nvidia-smi lists them."""
    processes: tuple[GpuProcess, ...] = ()
    """All that use one of them."""
    driver: str = ""
    """Version of the driver; empty: none is loaded."""
    device_files: int = 0
    """How many /dev/nvidiaN there are."""
    visible: str | None = None
    """CUDA_VISIBLE_DEVICES; None: not set."""
    torch_cuda: str | None = None
    """The CUDA version that torch was built with; None: a build for the CPU, or no torch."""


def check_gpus(facts: GpuFacts) -> list[Finding]:
    """All findings about the GPUs themselves."""
    if facts.smi == "missing":
        if not facts.driver and not facts.device_files:
            return [ok(_GROUP, "no NVIDIA GPU here: runs use the CPU")]
        text = f"there is an NVIDIA driver ({facts.driver or 'its /dev/nvidia files'}), but no nvidia-smi"
        return [warn(_GROUP, text, "put nvidia-smi into PATH (nvidia-utils; in a container: --gpus all)")]
    if facts.smi:
        fix = "ask the administrator to load the driver (nvidia-smi; dmesg | grep -i nvrm), or take another node"
        return [fail(_GROUP, f"nvidia-smi does not work: {facts.smi}", fix)]
    if not facts.gpus:
        fix = "ask for GPUs (Slurm: --gpus-per-node; a container: --gpus all)"
        return [warn(_GROUP, "nvidia-smi lists no GPU: runs use the CPU", fix)]
    seen = replace(facts, gpus=tuple(gpu for gpu in facts.gpus if _is_visible(gpu, facts.visible)))
    own = [*_use(seen), *_health(seen)] if seen.gpus else []
    return [_count(facts), *own, *_visible(facts), *check_driver(facts)]


def _is_visible(gpu: Gpu, visible: str | None) -> bool:
    """Whether a run started here would use it: others' are no business of ours."""
    names = [name.strip() for name in visible.split(",")] if visible is not None else []
    return visible is None or str(gpu.index) in names or any(name and gpu.uuid.startswith(name) for name in names)


def _count(facts: GpuFacts) -> Finding:
    names = sorted({gpu.name for gpu in facts.gpus})
    memory = sorted({gpu.memory_mib for gpu in facts.gpus})
    if len(names) > 1 or memory[-1] > 1.1 * memory[0]:
        told = ", ".join(f"{gpu.index}: {gpu.name} {gpu.memory_mib / 1024:.0f} GiB" for gpu in facts.gpus)
        fix = "name equal ones by CUDA_VISIBLE_DEVICES: the slowest and the smallest decides for all ranks"
        return warn(_GROUP, f"the GPUs differ ({told})", fix)
    return ok(_GROUP, f"{len(facts.gpus)} x {names[0]}, {memory[0] / 1024:.0f} GiB each, driver {facts.driver}")


def _use(facts: GpuFacts) -> list[Finding]:
    found = []
    for gpu in facts.gpus:
        others = [process for process in facts.processes if process.uuid == gpu.uuid]
        if others:
            told = ", ".join(f"{one.name} (pid {one.pid}, {one.memory_mib} MiB)" for one in others[:4])
            more = f" and {len(others) - 4} more" * (len(others) > 4)
            fix = f"end them if they are yours (kill {others[0].pid}), or take other GPUs by CUDA_VISIBLE_DEVICES"
            found.append(warn(_GROUP, f"GPU {gpu.index} is used by {told}{more}", fix))
        elif gpu.used_mib > _MANY_MIB:
            text = f"GPU {gpu.index}: {gpu.used_mib} MiB are in use by a process that cannot be seen from here"
            fix = "look on the host itself (a container hides processes), or take other GPUs by CUDA_VISIBLE_DEVICES"
            found.append(warn(_GROUP, text, fix))
    return found or [ok(_GROUP, "no other process uses them")]


def _health(facts: GpuFacts) -> list[Finding]:
    found = []
    for gpu in facts.gpus:
        if gpu.ecc_errors:
            text = f"GPU {gpu.index} has {gpu.ecc_errors} uncorrected memory errors since the driver was loaded"
            fix = "leave it out (CUDA_VISIBLE_DEVICES, --slurm.exclude) and tell the administrator: it needs a reset"
            found.append(fail(_GROUP, text, fix))
        if gpu.mig:
            text = f"GPU {gpu.index} is cut into instances (MIG): NCCL cannot use two instances together"
            fix = f"use one rank per node, or turn MIG off (nvidia-smi -i {gpu.index} -mig 0, by the administrator)"
            found.append(warn(_GROUP, text, fix))
    slow = [str(gpu.index) for gpu in facts.gpus if gpu.persistent is False]
    if slow:
        text = f"persistence mode is off on GPU {', '.join(slow)}: the first use of each run waits for the driver"
        found.append(warn(_GROUP, text, "nvidia-smi -pm 1 (by the administrator)"))
    return found or [ok(_GROUP, "no uncorrected memory errors, no MIG")]


def _visible(facts: GpuFacts) -> list[Finding]:
    if facts.visible is None:
        return []
    names = [name.strip() for name in facts.visible.split(",") if name.strip()]
    if not names or names[0] == "-1":
        text = f"CUDA_VISIBLE_DEVICES={facts.visible!r} hides all {len(facts.gpus)} GPUs: runs use the CPU"
        return [warn(_GROUP, text, "unset CUDA_VISIBLE_DEVICES, if that was not meant")]
    known = {str(gpu.index) for gpu in facts.gpus}
    strange = [name for name in names if name.isdecimal() and name not in known]
    if strange:
        text = (
            f"CUDA_VISIBLE_DEVICES={facts.visible} names GPU {', '.join(strange)}; there are {', '.join(sorted(known))}"
        )
        return [fail(_GROUP, text, "unset CUDA_VISIBLE_DEVICES, or name GPUs that are there")]
    return [ok(_GROUP, f"CUDA_VISIBLE_DEVICES={facts.visible} leaves {len(names)} of {len(facts.gpus)}")]


def check_driver(facts: GpuFacts) -> list[Finding]:
    """Whether the driver can run the CUDA version that torch was built with."""
    if not facts.driver:
        return []
    if facts.torch_cuda is None:
        fix = "install torch for CUDA, see https://pytorch.org/get-started/locally"
        return [fail(_GROUP, "torch was built for the CPU only: no rank could use a GPU", fix)]
    try:
        major, branch = int(facts.torch_cuda.split(".")[0]), int(facts.driver.split(".")[0])
    except ValueError:
        return []
    least = _LEAST_DRIVER.get(major)
    if least is None:
        text = (
            f"torch was built for CUDA {facts.torch_cuda}; whether driver {facts.driver} can run it is not known here"
        )
        return [warn(_GROUP, text, "see docs.nvidia.com/deploy/cuda-compatibility")]
    if branch < least:
        text = (
            f"torch was built for CUDA {facts.torch_cuda}, which needs driver {least} or newer; {facts.driver} is here"
        )
        older = max((cuda for cuda, driver in _LEAST_DRIVER.items() if driver <= branch), default=None)
        instead = f", or a torch for CUDA {older} (pytorch.org/get-started/previous-versions)" if older else ""
        return [fail(_GROUP, text, f"ask the administrator for a newer driver{instead}")]
    return [ok(_GROUP, f"driver {facts.driver} runs CUDA {facts.torch_cuda}, which torch was built with")]


def gather_gpus(environment: Mapping[str, str], torch_folder: Path | None) -> GpuFacts:
    """The facts of this machine, by nvidia-smi and files."""
    loaded, files = _driver(), len(list(Path("/dev").glob("nvidia[0-9]*")))
    visible, torch_cuda = environment.get("CUDA_VISIBLE_DEVICES"), _torch_cuda(torch_folder)
    if shutil.which("nvidia-smi", path=environment.get("PATH", os.defpath)) is None:
        return GpuFacts("missing", (), (), loaded, files, visible, torch_cuda)
    form = "--format=csv,noheader,nounits"
    answer = ask(["nvidia-smi", f"--query-gpu={','.join(_QUERY)}", form], timeout=_SECONDS)
    if answer.code != 0:
        said = (answer.err or answer.out).strip().splitlines()
        return GpuFacts(
            answer.problem or (said[0] if said else f"exit code {answer.code}"),
            *((), (), loaded, files, visible, torch_cuda),
        )
    apps = ask(["nvidia-smi", f"--query-compute-apps={','.join(_APPS)}", form], timeout=_SECONDS)
    gpus, processes, driver = read_gpus(answer, apps)
    return GpuFacts("", gpus, processes, driver or loaded, files, visible, torch_cuda)


def read_gpus(answer: Answer, apps: Answer) -> tuple[tuple[Gpu, ...], tuple[GpuProcess, ...], str]:
    """What nvidia-smi's tables say: GPUs, processes, version of the driver."""
    gpus, driver = [], ""
    for row in csv.reader(answer.out.splitlines(), skipinitialspace=True):
        if len(row) != len(_QUERY):
            continue
        index, uuid, name, total, used, driver, persistence, ecc, mig = (cell.strip() for cell in row)
        known = {"Enabled": True, "Disabled": False}.get(persistence)
        errors = int(ecc) if ecc.isdecimal() else None
        gpus.append(Gpu(_int(index), name, _int(total), _int(used), uuid, known, errors, mig == "Enabled"))
    processes = [
        GpuProcess(row[0].strip(), _int(row[1]), row[2].strip().rsplit("/", 1)[-1], _int(row[3]))
        for row in csv.reader(apps.out.splitlines(), skipinitialspace=True)
        if len(row) == len(_APPS) and row[1].strip().isdecimal()
    ]
    return tuple(gpus), tuple(processes), driver


def _int(text: str) -> int:
    return int(text) if text.strip().isdecimal() else 0  # [N/A]


def _driver() -> str:
    try:
        words = Path("/proc/driver/nvidia/version").read_text().split()
    except OSError:
        return ""
    return next((word for word in words if word[:1].isdigit() and "." in word), "")


def _torch_cuda(folder: Path | None) -> str | None:
    """torch.version.cuda, from its text."""
    try:
        lines = (folder / "version.py").read_text(encoding="utf-8").splitlines() if folder else []
    except OSError:
        return None
    line = next((line for line in lines if line.startswith("cuda")), "")
    value = line.rpartition("=")[2].strip().strip("'\"")
    return value if value[:1].isdigit() else None
