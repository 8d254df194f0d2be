"""Folders: the output folder is writable, big enough and, for several machines, shared; /tmp has room."""

import os
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from flash_launch.doctor.findings import Finding, fail, ok, warn

__all__ = ["FolderFacts", "check_output", "check_temporary", "file_system", "gather_folder", "is_shared"]

_GROUP = "folders"
_MIB, _GIB = 2**20, 2**30
_SHARED = (
    "nfs",
    "lustre",
    "gpfs",
    "beegfs",
    "ceph",
    "cifs",
    "smb",
    "afs",
    "panfs",
    "weka",
    "ocfs2",
    "gfs2",
    "orangefs",
)
_SHARED_FUSE = ("glusterfs", "sshfs", "juicefs", "s3fs", "gcsfuse", "daos", "lizardfs", "moosefs", "mfs", "cephfs")
_PRIVATE = ("tmpfs", "ramfs", "overlay", "squashfs", "devtmpfs")
_PROBE_BYTES = 64 * 1024


@dataclass(frozen=True)
class FolderFacts:
    """What there is to say about a folder, or the nearest one above it that exists."""

    path: str
    """The folder, as it was named."""
    exists_at: str
    """The folder itself, or the nearest one above it that exists."""
    problem: str = ""
    """Why a file could not be written there; empty: it could."""
    free: int = 0
    """Free bytes, for this user."""
    free_files: int | None = None
    """How many more files it can hold; None: as many as wanted."""
    kind: str = ""
    """Type of its file system, for example nfs4; empty: not known."""


def check_output(facts: FolderFacts, *, several: bool) -> list[Finding]:
    """Whether runs can be written there, from every machine.

    Args:
        several: whether the run is to use several machines.
    """
    at = facts.path if facts.exists_at == facts.path else f"{facts.path} (to be made in {facts.exists_at})"
    if facts.problem:
        fix = "give another one (--output-dir)"
        if "space" in facts.problem.lower() or "quota" in facts.problem.lower():
            fix = f"delete old runs and checkpoints (du -sh {facts.exists_at}/* | sort -h), or {fix}"
        return [fail(_GROUP, f"output folder {at} cannot be written to: {facts.problem}", fix)]
    kind = f", {facts.kind}" * bool(facts.kind)
    told = f"output folder {at}: {_size(facts.free)} free{kind}"
    fix = f"delete old runs and checkpoints (du -sh {facts.exists_at}/* | sort -h), or give another one (--output-dir)"
    if facts.free < _GIB:
        found = [fail(_GROUP, f"{told}: too little for checkpoints", fix)]
    elif facts.free < 10 * _GIB:
        found = [warn(_GROUP, f"{told}: little for checkpoints of large models", fix)]
    elif facts.free_files is not None and facts.free_files < 10_000:
        found = [warn(_GROUP, f"{told}, but room for {facts.free_files:,} more files only (inodes)", fix)]
    else:
        found = [ok(_GROUP, told)]
    if several and not is_shared(facts.kind):
        fix = "give a folder that all nodes share (NFS, Lustre, ...) by --output-dir"
        if facts.kind in _PRIVATE:
            text = f"output folder {facts.path} is on {facts.kind}, which no other machine sees"
            found.append(fail(_GROUP, text, fix))
        else:
            text = (
                f"output folder {facts.path} is on {facts.kind or 'an unknown file system'}, most likely a disk of one"
            )
            found.append(warn(_GROUP, f"{text} machine only", fix))
    return found


def check_temporary(facts: FolderFacts) -> Finding:
    """Whether temporary files have room; compilers and sockets need them."""
    fix_missing = f"mkdir -p {facts.path}, or unset TMPDIR"
    fix = f"delete old files in {facts.path}, or set TMPDIR to another folder"
    if facts.problem:
        return fail(_GROUP, f"{facts.path} cannot be written to: {facts.problem}", fix)
    if facts.exists_at != facts.path:
        return warn(_GROUP, f"temporary files are to be in {facts.path} (TMPDIR), which does not exist", fix_missing)
    told = f"temporary files in {facts.path}: {_size(facts.free)} free"
    if facts.free < 100 * _MIB:
        return fail(_GROUP, told, fix)
    return warn(_GROUP, told, fix) if facts.free < _GIB else ok(_GROUP, told)


def is_shared(kind: str) -> bool:
    """Whether a type of file system is one that several machines share."""
    return kind.startswith(_SHARED) or (kind.startswith("fuse.") and kind[5:].startswith(_SHARED_FUSE))


def gather_folder(path: str | os.PathLike[str]) -> FolderFacts:
    """The facts of a folder; a small file is written there and deleted again."""
    wanted = Path(path).absolute()
    above = next((folder for folder in (wanted, *wanted.parents) if os.path.exists(folder)), Path("/"))
    if not os.path.isdir(above):
        return FolderFacts(str(wanted), str(above), f"{above} is a file")
    problem = _try_to_write(above)
    try:
        told = os.statvfs(above)
    except OSError as error:
        return FolderFacts(str(wanted), str(above), problem or error.strerror or str(error))
    free_files = told.f_favail if told.f_files else None
    kind = file_system(str(above.resolve()), mounts())
    return FolderFacts(str(wanted), str(above), problem, told.f_bavail * told.f_frsize, free_files, kind)


def mounts() -> list[str]:
    """The lines of /proc/self/mountinfo; none where there is no such file."""
    try:
        return Path("/proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return []


def file_system(path: str, lines: Iterable[str]) -> str:
    """The type of the file system that a path is on, by the lines of /proc/self/mountinfo; the last mount wins.

    Empty where that is not known.
    """
    best, kind = "", ""
    for line in lines:
        before, _, after = line.partition(" - ")
        if len(before.split()) < 5 or not after:
            continue
        point = before.split()[4].encode().decode("unicode_escape")  # \040 is a space
        inside = point == "/" or path == point or path.startswith(point + "/")
        if inside and len(point) >= len(best):
            best, kind = point, after.split()[0]
    return kind


def _try_to_write(folder: Path) -> str:
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".flash-launch-doctor-") as file:
            file.write(b"\0" * _PROBE_BYTES)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _size(value: int) -> str:
    return f"{value / _GIB:,.1f} GiB" if value >= _GIB else f"{value / _MIB:,.0f} MiB"
