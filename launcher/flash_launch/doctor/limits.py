"""Limits of this machine and this shell: shared memory, locked memory, open files, memory and its cgroup."""

import os
import resource
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from flash_launch.doctor.findings import Finding, fail, ok, warn

__all__ = [
    "LimitFacts",
    "check_limits",
    "check_memlock",
    "check_memory",
    "check_open_files",
    "check_shared_memory",
    "gather_limits",
]

_GROUP = "limits"
_MIB, _GIB = 2**20, 2**30
_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class LimitFacts:
    """What a process started here may have. Bytes; None: no limit, or not known."""

    shm_total: int | None
    """Size of /dev/shm; None: there is none."""
    shm_free: int = 0
    shm_used: bool = True
    """Whether this system hands shared memory out as files of /dev/shm, as Linux does."""
    """Free bytes of it."""
    memlock: int | None = None
    """Memory that a process may lock; None: as much as there is."""
    infiniband: bool = False
    """Whether there is InfiniBand, which locks memory."""
    open_files: int | None = None
    """Files that a process may have open."""
    open_files_hard: int | None = None
    """How far that may be raised."""
    memory: int = 0
    """The machine's memory."""
    memory_free: int = 0
    """What is available of it."""
    cgroup_limit: int | None = None
    """What the cgroup (Slurm, a container) allows."""
    cgroup_used: int = 0
    """What it uses now, without what can be dropped."""


def check_limits(facts: LimitFacts) -> list[Finding]:
    """All findings about limits."""
    return [check_shared_memory(facts), check_memlock(facts), check_open_files(facts), check_memory(facts)]


def check_shared_memory(facts: LimitFacts) -> Finding:
    """Loader workers and NCCL hand tensors over by /dev/shm; a container has 64 MiB of it unless told otherwise."""
    fix = "give it more: docker run --shm-size=16g or --ipc=host; mount -o remount,size=16g /dev/shm"
    if not facts.shm_used:
        return ok(_GROUP, "shared memory needs no /dev/shm on this system")
    if facts.shm_total is None:
        return fail(_GROUP, "there is no /dev/shm, which NCCL and loader workers need", f"mount it, or {fix}")
    told = f"/dev/shm has {_size(facts.shm_total)}, {_size(facts.shm_free)} free"
    if facts.shm_free < 16 * _MIB:
        return fail(_GROUP, told, "delete what dead processes left (ls -l /dev/shm; rm those of yours), or " + fix)
    if facts.shm_total < _GIB:
        return warn(_GROUP, f"{told}: too little for loader workers and many ranks (bus errors)", fix)
    if facts.shm_free < _GIB:
        return warn(_GROUP, told, "delete what dead processes left: ls -l /dev/shm; rm those of yours")
    return ok(_GROUP, told)


def check_memlock(facts: LimitFacts) -> Finding:
    """InfiniBand (RDMA) needs to lock memory; without it the limit does not matter."""
    told = f"locked memory: {_size(facts.memlock)}"
    if not facts.infiniband or facts.memlock is None:
        return ok(_GROUP, told + (" (no InfiniBand here: it does not matter)" if facts.memlock is not None else ""))
    fix = (
        "ulimit -l unlimited; for Slurm jobs LimitMEMLOCK=infinity of slurmd, and PropagateResourceLimitsExcept=MEMLOCK"
    )
    if facts.memlock < _GIB:
        return fail(_GROUP, f"{told}: too little for InfiniBand, NCCL ends with `ibv_reg_mr failed`", fix)
    return warn(_GROUP, f"{told}: InfiniBand may need more", fix)


def check_open_files(facts: LimitFacts) -> Finding:
    """Ranks, loader workers and checkpoints hold many files open."""
    limit, hard = facts.open_files, facts.open_files_hard
    told = f"open files: {'unlimited' if limit is None else f'{limit:,}'}"
    if limit is None or limit >= 4096:
        return ok(_GROUP, told)
    to = 65536 if hard is None else hard
    fix = f"ulimit -n {min(to, 65536)}" if to > limit else "raise nofile in /etc/security/limits.conf"
    level = fail if limit < 256 else warn
    return level(_GROUP, f"{told}: loader workers can run out of them (Too many open files)", fix)


def check_memory(facts: LimitFacts) -> Finding:
    """Memory for what every rank holds on the CPU."""
    free, told = facts.memory_free, f"memory: {_size(facts.memory)}, {_size(facts.memory_free)} available"
    if facts.cgroup_limit is not None and facts.cgroup_limit < facts.memory:
        free = min(free, max(0, facts.cgroup_limit - facts.cgroup_used))
        told += f"; the cgroup allows {_size(facts.cgroup_limit)}, {_size(free)} of it left"
    fix = "end what uses it (ps aux --sort=-rss | head), or ask for more (--slurm.mem; docker run --memory)"
    if free < _GIB:
        return fail(_GROUP, f"{told}: too little to import torch on two ranks", fix)
    if free < 4 * _GIB:
        return warn(_GROUP, told, fix)
    return ok(_GROUP, told)


def gather_limits(*, infiniband: bool) -> LimitFacts:
    """The facts of this machine and this process."""
    try:
        shm = os.statvfs("/dev/shm")
        total, free = shm.f_blocks * shm.f_frsize, shm.f_bavail * shm.f_frsize
    except OSError:
        total, free = None, 0
    values = _meminfo()
    limit, used = _cgroup()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return LimitFacts(
        shm_total=total,
        shm_free=free,
        shm_used=sys.platform == "linux",
        memlock=_finite(resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]),
        infiniband=infiniband,
        open_files=_finite(soft),
        open_files_hard=_finite(hard),
        memory=values["MemTotal"],
        memory_free=values.get("MemAvailable", values.get("MemFree", 0) + values.get("Cached", 0)),
        cgroup_limit=limit,
        cgroup_used=used,
    )


def _finite(value: int) -> int | None:
    return None if value == resource.RLIM_INFINITY else value


def _meminfo() -> dict[str, int]:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:  # not Linux: what is free is not known
        whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return {"MemTotal": whole, "MemAvailable": whole}
    return {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.endswith("kB")}


def _cgroup() -> tuple[int | None, int]:
    """The smallest memory limit of the cgroups that this process is in, and what that one uses."""
    best: tuple[int | None, int] = (None, 0)
    for folder, limit_file, used_file in _cgroup_folders():
        limit, used = _number(folder / limit_file), _number(folder / used_file) or 0
        if limit is not None and (best[0] is None or limit < best[0]):
            best = limit, max(0, used - _droppable(folder))
    return best


def _cgroup_folders() -> Iterator[tuple[Path, str, str]]:
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base, names = _CGROUP, ("memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            base, names = _CGROUP / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes")
        else:
            continue
        inner = Path(path.lstrip("/"))
        for part in (inner, *inner.parents):
            yield base / part, *names


def _droppable(folder: Path) -> int:
    """Bytes of the page cache that a cgroup gives up when it needs memory."""
    try:
        lines = (folder / "memory.stat").read_text().splitlines()
    except OSError:
        return 0
    values = dict(line.split(" ", 1) for line in lines if " " in line)
    names = (
        ("inactive_file", "active_file", "slab_reclaimable")
        if "slab_reclaimable" in values
        else ("total_inactive_file", "total_active_file")
    )
    return sum(int(values.get(name, "0")) for name in names)


def _number(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() and int(text) < 2**60 else None  # "max", or version 1's huge number


def _size(value: int | None) -> str:
    if value is None:
        return "unlimited"
    return f"{value / _GIB:.1f} GiB" if value >= _GIB else f"{value / _MIB:.4g} MiB"
