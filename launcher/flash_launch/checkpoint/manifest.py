"""The manifest of a checkpoint: where the run was, which files there are, and their checksums."""

import hashlib
import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

from flash_strategies.errors import CheckpointError

__all__ = [
    "FORMAT",
    "MANIFEST",
    "FileRecord",
    "Manifest",
    "Part",
    "PhaseMark",
    "Position",
    "problems",
    "read",
    "read_part",
    "record",
    "write",
]

FORMAT = 1
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class FileRecord:
    """What a file must be."""

    bytes: int
    """Its size."""
    sha256: str
    """Its checksum, in hex."""


@dataclass(frozen=True)
class Position:
    """Where a run is, at an optimizer-step boundary."""

    step: int
    """Optimizer steps done."""
    epoch: int
    """The epoch, from 0."""
    batch: int
    """Batches done in it on each rank; 0: its start, before its transition."""
    samples: int
    """Samples done in it, over all ranks."""
    validating: bool = False
    """The epoch's batches are all done, and its validation is not."""

    def __str__(self) -> str:
        within = ", before its validation" if self.validating else f", batch {self.batch}" if self.batch else ""
        return f"step {self.step:,}, epoch {self.epoch}{within}"


@dataclass(frozen=True)
class PhaseMark:
    """A phase that has begun."""

    name: str
    """Its name."""
    first_epoch: int
    """The epoch in which it began."""
    trainable: str
    """SHA-256 over the sorted names of what trains in it."""


@dataclass(frozen=True)
class Part:
    """Tensors that do not change while they are frozen, written once: checkpoints/frozen/NAME."""

    name: str
    """The folder's name."""
    run: str
    """The run's own name."""
    digests: dict[str, str]
    """Key of each tensor (weight/NAME, buffer/NAME) -> its type and digest."""
    files: dict[str, FileRecord]
    """What the folder holds beside the manifest."""


@dataclass(frozen=True)
class Manifest:
    """One checkpoint."""

    name: str
    """The folder's name."""
    run: str
    """The run's own name."""
    attempt: int
    """The attempt that saved it."""
    position: Position
    """Where the run was."""
    time: float
    """When it was saved, in seconds since 1970."""
    phase: str
    """Name of the phase."""
    plan: str
    """SHA-256 of the phase's plan."""
    phases: tuple[PhaseMark, ...]
    """The phases so far."""
    world_size: int
    """Ranks that saved it."""
    setup: str
    """How they held the model."""
    batch_size: int
    """Samples per rank and micro batch."""
    accumulate: int
    """Micro batches per step."""
    metrics: dict[str, float]
    """The metrics of the last epoch that ended."""
    buffers: tuple[str, ...]
    """Keys of the task's buffers that were equal on all ranks; the others are in the ranks' files."""
    frozen: dict[str, list[str]]
    """Part -> keys of the tensors that are found there."""
    files: dict[str, FileRecord] = field(default_factory=dict)
    """What the folder holds beside the manifest."""
    stopped_early: dict[str, object] | None = None
    """How the task ended the run at this checkpoint, before its last epoch; see early_stop.py."""

    @property
    def where(self) -> dict[str, str]:
        """Part by key, of what is found in parts."""
        return {key: part for part, keys in self.frozen.items() for key in keys}


def write(folder: Path, manifest: Manifest | Part) -> None:
    """Write a manifest into its folder, durably, with a checksum of its own."""
    values = asdict(manifest)
    text = json.dumps({"format": FORMAT, "sha256": _digest(values), **values}, indent=1)
    with (folder / MANIFEST).open("w", encoding="utf-8") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())


def read(folder: Path) -> Manifest:
    """The manifest of a checkpoint's folder.

    Raises:
        CheckpointError: it cannot be read, or is damaged.
    """
    values = _values(folder)
    try:
        values["position"] = Position(**values["position"])  # type: ignore[arg-type]
        values["phases"] = tuple(PhaseMark(**mark) for mark in values["phases"])  # type: ignore[attr-defined]
        values["buffers"] = tuple(values["buffers"])  # type: ignore[arg-type]
        return Manifest(**values)  # type: ignore[arg-type]
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / MANIFEST} is not of this version: {error}") from error


def read_part(folder: Path) -> Part:
    """The manifest of a part's folder.

    Raises:
        CheckpointError: it cannot be read, or is damaged.
    """
    try:
        return Part(**_values(folder))  # type: ignore[arg-type]
    except TypeError as error:
        raise CheckpointError(f"{folder / MANIFEST} is not of this version: {error}") from error


def record(path: Path) -> FileRecord:
    """Size and checksum of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return FileRecord(path.stat().st_size, digest)


def problems(folder: Path, files: Mapping[str, FileRecord], *, contents: bool = True) -> list[str]:
    """What is wrong with the files in a folder, a sentence each; none: they are as they were written.

    Args:
        folder: of a checkpoint or a part.
        files: what its manifest says.
        contents: read them all and compare checksums; else only sizes.
    """

    def look(item: tuple[str, FileRecord]) -> str | None:
        name, expected = item
        path = folder / name
        try:
            size = path.stat().st_size
            if size != expected.bytes:
                return f"{path} has {size:,} bytes instead of {expected.bytes:,}"
            if contents and record(path).sha256 != expected.sha256:
                return f"{path} is damaged, its checksum is not the one that was written"
        except FileNotFoundError:
            return f"{path} is missing"
        except OSError as error:
            return f"{path} cannot be read: {error.strerror}"
        return None

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return [problem for problem in pool.map(look, files.items()) if problem is not None]


def _values(folder: Path) -> dict[str, object]:
    path = folder / MANIFEST
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged, it is no JSON: {error}") from error
    if not isinstance(values, dict) or values.pop("format", None) != FORMAT:
        raise CheckpointError(f"{path} is not of format {FORMAT}: another version of flash-launch wrote it")
    if values.pop("sha256", None) != _digest(values):
        raise CheckpointError(f"{path} is damaged, its checksum is not the one that was written")
    values["files"] = {name: FileRecord(**one) for name, one in values["files"].items()}
    return values


def _digest(values: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
