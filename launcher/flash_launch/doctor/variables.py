"""Environment variables and files beside the code that would break a run, or make it slow."""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from flash_launch.doctor.findings import Finding, fail, ok, warn
from flash_launch.processes import usable_cores

__all__ = ["VariableFacts", "check_shadows", "check_variables", "gather_variables"]

_GROUP = "environment"
_LEFT_OVER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "GROUP_RANK")
_OURS = ("flash_launch", "flash_strategies", "torch", "torchvision", "deepspeed", "pytorch_lightning", "wandb", "numpy")
_LIBRARIES = ("libnccl.so", "libcudart.so", "libcublas.so", "libcudnn.so")
_SLOW = {
    "CUDA_LAUNCH_BLOCKING": ("1", "waits for every GPU operation: several times slower"),
    "NCCL_P2P_DISABLE": ("1", "GPUs of one machine exchange data through main memory"),
    "NCCL_SHM_DISABLE": ("1", "ranks of one machine exchange data through the network"),
    "TORCH_DISTRIBUTED_DEBUG": ("DETAIL", "checks every collective: slower, and much output"),
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": ("0", "a rank that fails leaves the others hanging"),
    "NCCL_ASYNC_ERROR_HANDLING": ("0", "a rank that fails leaves the others hanging"),
    "TORCH_NCCL_BLOCKING_WAIT": ("1", "waits for every collective"),
}


@dataclass(frozen=True)
class VariableFacts:
    """What a process started here inherits."""

    environment: Mapping[str, str]
    """All variables."""
    cores: int = 1
    """Cores that it may use."""
    shadows: Mapping[str, str] = field(default_factory=dict)
    """Files and folders that Python would import in place of a package of that name, by name."""
    libraries: tuple[str, ...] = ()
    """NVIDIA libraries in folders of LD_LIBRARY_PATH, which are loaded in place of torch's own."""


def check_variables(facts: VariableFacts) -> list[Finding]:
    """All findings about the environment."""
    found = [*_left_over(facts), *_slow(facts), *_threads(facts), *check_shadows(facts)]
    if facts.libraries:
        text = f"LD_LIBRARY_PATH leads to {', '.join(facts.libraries[:3])}, in place of torch's own"
        found.append(warn(_GROUP, text, "unset LD_LIBRARY_PATH (or unload that module), unless torch needs them"))
    return found or [ok(_GROUP, "no variable that breaks or slows a run")]


def _left_over(facts: VariableFacts) -> list[Finding]:
    names = [name for name in _LEFT_OVER if name in facts.environment]
    names += sorted(name for name in facts.environment if name.startswith(("TORCHELASTIC_", "PET_")))
    if not names:
        return []
    # of the other prefixes, somebody else's variable may hold a secret
    shown = [f"{name}={facts.environment[name]}" if name in _LEFT_OVER else name for name in names[:4]]
    told = ", ".join(shown) + ", ..." * (len(names) > 4)
    fix = f"unset {' '.join(names)}"
    text = f"left over from another launch, flash-launch does not pass them on: {told}"
    return [warn(_GROUP, text, fix)]


def _slow(facts: VariableFacts) -> list[Finding]:
    found = []
    for name, (value, what) in _SLOW.items():
        if facts.environment.get(name, "").upper() == value:
            found.append(warn(_GROUP, f"{name}={value} {what}", f"unset {name}"))
    debug = facts.environment.get("NCCL_DEBUG", "").upper()
    if debug in ("INFO", "TRACE"):
        text = f"NCCL_DEBUG={debug} fills the logs of all ranks"
        found.append(warn(_GROUP, text, "export NCCL_DEBUG=WARN, if nothing is looked for"))
    if "PYTHONHOME" in facts.environment:
        text = f"PYTHONHOME={facts.environment['PYTHONHOME']} makes Python load another one's library"
        found.append(fail(_GROUP, text, "unset PYTHONHOME"))
    return found


def _threads(facts: VariableFacts) -> list[Finding]:
    value = facts.environment.get("OMP_NUM_THREADS")
    if value is None:
        return []
    first = value.split(",")[0].strip()
    if not first.isdecimal() or int(first) == 0:
        return [fail(_GROUP, f"OMP_NUM_THREADS={value!r} is no number of threads", "unset OMP_NUM_THREADS")]
    if int(first) > facts.cores:
        text = f"OMP_NUM_THREADS={first}, but there are {facts.cores} cores: the ranks' threads get in each other's way"
        return [warn(_GROUP, text, "unset OMP_NUM_THREADS: flash-launch shares the cores out to the ranks")]
    return []


def check_shadows(facts: VariableFacts) -> list[Finding]:
    """Whether a file in the current folder or on PYTHONPATH takes the place of a package."""
    found = []
    for name, path in facts.shadows.items():
        text = f"{path} is imported in place of {name}"
        fix = f"rename it, or take its folder {os.path.dirname(path)} off PYTHONPATH (or change to another folder)"
        if name in _OURS:
            found.append(fail(_GROUP, text, fix))
        else:
            found.append(warn(_GROUP, f"{text}, a module of Python's own", fix))
    return found


def gather_variables(environment: Mapping[str, str], folder: Path) -> VariableFacts:
    """The facts of this process.

    Args:
        folder: where a run would be started, which Python searches first.
    """
    paths = [folder, *(Path(entry) for entry in environment.get("PYTHONPATH", "").split(os.pathsep) if entry)]
    libraries = []
    for entry in environment.get("LD_LIBRARY_PATH", "").split(os.pathsep):
        for name in _LIBRARIES if entry else ():
            libraries += [str(path) for path in sorted(Path(entry).glob(f"{name}*"))[:1]]
    return VariableFacts(
        environment=dict(environment),
        cores=usable_cores(),
        shadows=_find_shadows(paths),
        libraries=tuple(libraries),
    )


def _find_shadows(paths: Sequence[Path]) -> dict[str, str]:
    found: dict[str, str] = {}
    names = {*_OURS, *(name for name in sys.stdlib_module_names if not name.startswith("_"))}
    for path in paths:
        try:
            entries = list(path.iterdir())
        except OSError:
            continue
        installed = {
            entry.name.split("-")[0].lower() for entry in entries if entry.suffix in (".dist-info", ".egg-info")
        }
        for entry in entries:
            name = entry.name.removesuffix(".py")
            if name not in names:
                continue
            # A folder without __init__.py does not hide a package: W&B makes a folder `wandb`.
            module = entry.suffix == ".py" or os.path.exists(entry / "__init__.py")
            if module and name.lower() not in installed and not _is_ours(name, path):
                found.setdefault(name, str(entry))
    return found


def _is_ours(name: str, path: Path) -> bool:
    """flash-launch's own source roots may be on PYTHONPATH."""
    root = {"flash_launch": Path(__file__).parents[2]}.get(name)
    if name == "flash_strategies":
        return os.path.exists(path / name / "registry.py")
    return root is not None and path.resolve() == root.resolve()
