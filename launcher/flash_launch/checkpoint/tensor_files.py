"""Writes files of tensors that are never whole in memory: safetensors files, and files as torch.save writes them."""

from __future__ import annotations

import io
import json
import math
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import torch
from torch import Tensor
from torch._utils import _rebuild_tensor_v2

from flash_launch.checkpoint.shards import DTYPES
from flash_strategies.errors import CheckpointError

__all__ = ["Source", "in_file_order", "new_file", "write_safetensors", "write_torch"]

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_STORAGES = {
    torch.float64: torch.DoubleStorage,
    torch.float32: torch.FloatStorage,
    torch.float16: torch.HalfStorage,
    torch.bfloat16: torch.BFloat16Storage,
    torch.int64: torch.LongStorage,
    torch.int32: torch.IntStorage,
    torch.int16: torch.ShortStorage,
    torch.int8: torch.CharStorage,
    torch.uint8: torch.ByteStorage,
    torch.bool: torch.BoolStorage,
    torch.complex64: torch.ComplexFloatStorage,
}


@dataclass(frozen=True, eq=False)
class Source:
    """A tensor that is to be written, and comes in pieces."""

    shape: tuple[int, ...]
    """Its shape."""
    dtype: torch.dtype
    """Its type."""
    pieces: Callable[[], Iterator[Tensor]]
    """Its elements in order, in one-dimensional tensors of its type."""

    @classmethod
    def of(cls, tensor: Tensor) -> Source:
        """A tensor that is in memory."""
        whole = tensor.detach().cpu()
        return cls(tuple(whole.shape), whole.dtype, lambda: iter((whole.reshape(-1),)))

    @property
    def nbytes(self) -> int:
        """Its size."""
        return math.prod(self.shape) * self.dtype.itemsize

    def write(self, file: IO[bytes]) -> None:
        """Write its elements."""
        left = self.nbytes
        for piece in self.pieces():
            assert piece.dtype == self.dtype
            left -= file.write(piece.view(torch.uint8).numpy().data)
        assert left == 0, f"{left} bytes of a tensor of shape {self.shape} are missing"


@contextmanager
def new_file(path: Path) -> Iterator[IO[bytes]]:
    """A file that takes its name when all is written: a reader, or a crash, meets the whole file or none.

    Raises:
        CheckpointError: it cannot be written; nothing is left of it.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def in_file_order(tensors: Mapping[str, Source]) -> list[tuple[str, Source]]:
    """Those with large elements first, so that all are aligned."""
    return sorted(tensors.items(), key=lambda item: -item[1].dtype.itemsize)


def write_safetensors(file: IO[bytes], tensors: Mapping[str, Source], metadata: Mapping[str, str]) -> None:
    """Write the header, then each tensor, in `in_file_order`."""
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    ordered = in_file_order(tensors)
    offset = 0
    for name, source in ordered:
        end = offset + source.nbytes
        header[name] = {
            "dtype": _NAMES[source.dtype],
            "shape": list(source.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write(struct.pack("<Q", len(text)) + text)
    for _, source in ordered:
        source.write(file)


def write_torch(file: IO[bytes], values: Mapping[str, object]) -> None:
    """Write plain values, tensors and sources as torch.save would write them if the sources were tensors.

    The format is a zip archive: data.pkl, in which a tensor is a call of torch's rebuild function with the name of its
    storage, and a record per storage, aligned so that it can be mapped into memory.
    """
    pickled = io.BytesIO()
    pickler = _Pickler(pickled)
    pickler.dump(dict(values))
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, data in (
            ("data.pkl", pickled.getvalue()),
            (".format_version", b"1"),
            (".storage_alignment", str(_ALIGNMENT).encode()),
            ("byteorder", b"little"),
        ):
            archive.writestr(f"{_ROOT}/{name}", data)
        for number, source in enumerate(pickler.sources):
            name, large = f"{_ROOT}/data/{number}", source.nbytes > 2_000_000_000
            record = zipfile.ZipInfo(name)
            # a field that readers pass over, as torch writes it, moves the data to where they are aligned
            before = file.tell() + _ZIP_HEADER + len(name) + _ZIP64_FIELD * large + 4
            padding = -before % _ALIGNMENT
            record.extra = struct.pack("<HH", 0x4246, padding) + b"Z" * padding
            record.file_size = source.nbytes
            with archive.open(record, "w", force_zip64=large) as out:
                source.write(out)
        archive.writestr(f"{_ROOT}/version", b"3\n")


_ROOT = "archive"
_ALIGNMENT = 64
_ZIP_HEADER, _ZIP64_FIELD = 30, 20


@dataclass(frozen=True)
class _Storage:
    """A source's record in the archive."""

    number: int
    source: Source


class _Pickler(pickle.Pickler):
    """Writes sources as torch.save writes tensors; an object that is there twice is written once."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file, protocol=2)
        self.sources: list[Source] = []

    def reducer_override(self, obj: object) -> tuple[Callable[..., Tensor], tuple[object, ...]]:
        """How a source or a tensor is rebuilt."""
        if isinstance(obj, Tensor):
            obj = Source.of(obj)
        if not isinstance(obj, Source):
            return NotImplemented  # type: ignore[no-any-return]
        if obj.dtype not in _STORAGES:
            raise CheckpointError(f"a tensor of type {obj.dtype} cannot be written as torch.save does")
        self.sources.append(obj)
        strides = torch.empty(obj.shape, device="meta").stride()
        storage = _Storage(len(self.sources) - 1, obj)
        return _rebuild_tensor_v2, (storage, 0, obj.shape, strides, False, OrderedDict())

    def persistent_id(self, obj: object) -> object:
        """Storages are not in the pickle."""
        if not isinstance(obj, _Storage):
            return None
        source = obj.source
        return "storage", _STORAGES[source.dtype], str(obj.number), "cpu", math.prod(source.shape)
