"""Writes one checkpoint, with all ranks: beside the others, then checked, then made visible by a rename."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar, cast

from flash_launch.checkpoint.attempts import Fence
from flash_launch.checkpoint.manifest import FileRecord, Manifest, Part, record, write
from flash_launch.checkpoint.rank_state import file_name
from flash_launch.checkpoint.schedule import Keeping
from flash_launch.checkpoint.store import Store
from flash_strategies.agreement import ControlGroup
from flash_strategies.checkpoint.chunks import Slice, write_chunks
from flash_strategies.errors import CheckpointError, FlashLaunchError

__all__ = ["ENGINE_STATE", "WRITE_SECONDS", "Job", "Written", "run_job"]

ENGINE_STATE = "engine.json"
WRITE_SECONDS = 3600.0
"""How long ranks wait for one that writes: storage may be slow, and a rank that died ends the others sooner."""


@dataclass(frozen=True)
class Job:
    """One rank's part of a checkpoint, copied out of training's way."""

    manifest: Manifest
    """Without its files."""
    engine_state: bytes
    """The small part of the engine's state, as JSON."""
    slices: Sequence[Slice]
    """What trains, and buffers; in CPU memory."""
    part: Part | None
    """What is written once and not stored yet, without its files."""
    part_slices: Sequence[Slice]
    """Its tensors."""
    rank_state: bytes
    """This rank's own file."""


@dataclass(frozen=True)
class Written:
    """A checkpoint that is visible."""

    name: str
    """Its name."""
    seconds: float
    """From the first byte to the rename."""
    bytes: int
    """Of all ranks' files."""
    part_bytes: int
    """Of what is written once, in this save."""
    deleted: tuple[str, ...]
    """Checkpoints that were deleted for it."""


def run_job(job: Job, store: Store, fence: Fence, keeping: Keeping, control: ControlGroup) -> Written:
    """Write it; every rank must call this, with its own job.

    Raises:
        CheckpointError: a rank could not write; every rank raises it, and what was there before is untouched.
        FencedError: a newer attempt owns the run.
    """
    began = time.perf_counter()
    name = job.manifest.name
    temporary = store.folder / f".tmp_{name}_attempt_{fence.number}"
    part_temporary = store.part_path(f".tmp_{job.part.name}") if job.part is not None else None
    try:
        # before the exchanges of `_write`, which a rank that has no folder would not take part in
        _together(control, f"saving {name}", lambda: _make_folders(temporary, part_temporary))
        records = _together(control, f"saving {name}", lambda: _write(job, temporary, part_temporary, control))
        files = {file: one for of_rank in records for file, one in of_rank[0].items()}
        part_files = {file: one for of_rank in records for file, one in of_rank[1].items()}

        def publish() -> tuple[str, ...]:
            if control.rank != 0:
                return ()
            if job.part is not None and part_temporary is not None:
                write(part_temporary, replace(job.part, files=part_files))
                fence.check()
                store.publish_part(part_temporary, job.part.name)
            write(temporary, replace(job.manifest, files=files))
            fence.check()
            store.publish(temporary, name)
            return tuple(store.keep(keeping.last, name, keeping.score if keeping.best else None))

        deleted = _together(control, f"publishing {name}", publish)[0]
    finally:
        if control.rank == 0:
            for left in (temporary, part_temporary):
                if left is not None:
                    shutil.rmtree(left, ignore_errors=True)
    return Written(
        name,
        time.perf_counter() - began,
        sum(one.bytes for one in files.values()),
        sum(one.bytes for one in part_files.values()),
        deleted,
    )


Records = dict[str, FileRecord]
Result = TypeVar("Result")


def _make_folders(*folders: Path | None) -> None:
    for folder in folders:
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)


def _write(job: Job, temporary: Path, part_temporary: Path | None, control: ControlGroup) -> tuple[Records, Records]:
    rank = control.rank
    group = control.process_group
    if part_temporary is not None:
        write_chunks(part_temporary, job.part_slices, group)
    write_chunks(temporary, job.slices, group)
    _write_bytes(temporary / file_name(rank), job.rank_state)
    if rank == 0:
        _write_bytes(temporary / ENGINE_STATE, job.engine_state)
    return _records(temporary, rank), _records(part_temporary, rank) if part_temporary is not None else {}


def _records(folder: Path, rank: int) -> Records:
    """Size and checksum of each file this rank wrote."""
    own = [*folder.glob(f"shard-{rank + 1:05}-*"), folder / file_name(rank)]
    own += [folder / ENGINE_STATE] * (rank == 0)
    return {path.name: record(path) for path in own if path.exists()}


def _write_bytes(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _together(control: ControlGroup, where: str, action: Callable[[], Result]) -> list[Result]:
    """Every rank's result; what goes wrong on one is raised on all."""
    result: Result | None = None
    error: str | None = None
    own: FlashLaunchError | None = None
    try:
        result = action()
    except OSError as failure:
        error = f"{failure.filename or 'a file'} cannot be written: {failure.strerror or failure}"
    except FlashLaunchError as failure:
        own, error = failure, str(failure)
    except Exception as failure:  # whatever it is, the others must not wait for this rank
        error = f"{type(failure).__name__}: {failure}"
    told = cast("list[tuple[Result, str | None]]", control.gather((result, error), where))
    if own is not None and not isinstance(own, CheckpointError):
        raise own
    for rank, (_, problem) in enumerate(told):
        if problem is not None:
            raise CheckpointError(f"at {where}, rank {rank}: {problem}")
    return [one for one, _ in told]
