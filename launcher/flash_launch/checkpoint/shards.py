"""Tensors of a checkpoint, read from its shards in pieces; where each lies is in the shards' headers.

The shards are safetensors files, whose own library maps them into memory: of a tensor of 1 GiB that `get_slice` reads
in pieces of 16 MiB, 1 GiB stays with the process (measured with safetensors 0.8.0). Here the ranges are read as from
any file.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import torch
from torch import Tensor

from flash_strategies.errors import CheckpointError

__all__ = ["DTYPES", "Extent", "Stored", "read_headers"]

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "C64": torch.complex64,
    "U16": torch.uint16,
    "U32": torch.uint32,
    "U64": torch.uint64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
"""What safetensors calls torch's types."""


@dataclass(frozen=True)
class Extent:
    """A range of a flattened tensor in a file."""

    start: int
    """Position of the first element in the flattened tensor."""
    numel: int
    """Elements."""
    path: Path
    """The file."""
    offset: int
    """Position of the first byte in it."""


@dataclass(frozen=True)
class Stored:
    """A flattened tensor, in one file or several."""

    key: str
    """Its name in them."""
    dtype: torch.dtype
    """Its type in them."""
    extents: tuple[Extent, ...]
    """In order, without holes."""

    @property
    def numel(self) -> int:
        """Elements."""
        return sum(extent.numel for extent in self.extents)

    def pieces(self, most: int) -> Iterator[Tensor]:
        """All elements in order, in one-dimensional tensors of at most so many bytes.

        Raises:
            CheckpointError: a file cannot be read.
        """
        for extent in self.extents:
            step = most // self.dtype.itemsize
            try:
                with extent.path.open("rb", buffering=0) as file:
                    file.seek(extent.offset)
                    for begin in range(0, extent.numel, step):
                        data = bytearray(min(step, extent.numel - begin) * self.dtype.itemsize)
                        _fill(file, data)
                        yield torch.frombuffer(data, dtype=self.dtype)
            except OSError as error:
                raise CheckpointError(f"{extent.path} cannot be read: {error.strerror or error}") from error


def read_headers(paths: Iterable[Path]) -> dict[str, Stored]:
    """What the shards in a folder hold, by key.

    Raises:
        CheckpointError: a file cannot be read, or a tensor has a hole.
    """
    extents: dict[str, list[Extent]] = {}
    types: dict[str, str] = {}
    for path in paths:
        header, first = _header(path)
        starts = json.loads(header.pop("__metadata__", {}).get("DCP_SHARDING_INFO", "{}"))
        for key, entry in header.items():
            start = starts[key]["saved_offsets"][0] if key in starts else 0
            numel = entry["shape"][0]
            extents.setdefault(key, []).append(Extent(start, numel, path, first + entry["data_offsets"][0]))
            if types.setdefault(key, entry["dtype"]) != entry["dtype"] or entry["dtype"] not in DTYPES:
                raise CheckpointError(f"{path} holds {key} as {entry['dtype']}, which cannot be read")
    found: dict[str, Stored] = {}
    for key, unordered in extents.items():
        ordered = sorted(unordered, key=lambda extent: extent.start)
        end = 0
        for extent in ordered:
            if extent.start != end:
                raise CheckpointError(f"{key} has a hole from element {end:,} to {extent.start:,} in the shards")
            end += extent.numel
        found[key] = Stored(key, DTYPES[types[key]], tuple(ordered))
    return found


def _header(path: Path) -> tuple[dict[str, dict], int]:  # type: ignore[type-arg]
    """A safetensors file's header, and where its data begin."""
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            return json.loads(file.read(size)), 8 + size
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def _fill(file: FileIO, data: bytearray) -> None:
    view = memoryview(data)
    while view:
        read = file.readinto(view)
        if not read:
            raise OSError("it ends too early")
        view = view[read:]
