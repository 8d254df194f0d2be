"""Reads what wandb wrote to a .wandb file: LevelDB's log format with a header of W&B's own. Read against wandb 0.31."""

import contextlib
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

__all__ = ["messages", "next_step"]

_BLOCK = 32768
_MAGIC = b":W&B"
_FILE_HEADER = _HEADER = 7
"""Bytes before the first record, and of a record's checksum (4), length (2) and kind (1)."""
_FULL, _FIRST, _LAST = 1, 2, 4
_KINDS = (_FULL, _FIRST, 3, _LAST)


def messages(path: Path) -> Iterator[bytes]:
    """The records of a file, in order, up to where it was cut short or damaged.

    Format: https://github.com/google/leveldb/blob/main/doc/log_format.md; the checksum is wandb's own, plain CRC-32.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        part = b""
        for number, block in enumerate(iter(lambda: file.read(_BLOCK), b"")):
            if number == 0 and not block.startswith(_MAGIC):
                return
            at = 0 if number else _FILE_HEADER
            while at + _HEADER <= len(block):
                crc, length, kind = struct.unpack_from("<IHB", block, at)
                body = block[at + _HEADER : at + _HEADER + length]
                if len(body) < length or kind not in _KINDS or crc != zlib.crc32(block[at + 6 : at + _HEADER] + body):
                    return
                at += _HEADER + length
                part = body if kind in (_FULL, _FIRST) else part + body
                if kind in (_FULL, _LAST):
                    yield part


def next_step(path: Path) -> int:
    """The number after those of the steps that a file holds; 0 if it holds none, or cannot be read."""
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

    steps = 0
    with contextlib.suppress(OSError):
        for message in messages(path):
            record = Record()
            record.ParseFromString(message)
            if record.WhichOneof("record_type") == "history":
                steps = record.history.step.num + 1
    return steps
