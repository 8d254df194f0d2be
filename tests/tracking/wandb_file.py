"""Reads the records of a .wandb file: LevelDB's log format with a header of W&B's own; protobuf messages inside."""

from __future__ import annotations

import json
import struct
import zlib
from dataclasses import dataclass, field
from pathlib import Path

_BLOCK, _HEADER = 32768, 7
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


@dataclass
class Recorded:
    """What one .wandb file holds."""

    run_id: str = ""
    project: str = ""
    group: str = ""
    job_type: str = ""
    tags: tuple[str, ...] = ()
    resume: bool = False
    config: dict[str, object] = field(default_factory=dict)
    history: list[dict[str, object]] = field(default_factory=list)
    summary: dict[str, object] = field(default_factory=dict)
    metrics: list[tuple[str, str]] = field(default_factory=list)
    artifacts: list[str] = field(default_factory=list)
    exit_code: int | None = None
    preempting: bool = False


def messages(data: bytes) -> list[bytes]:
    """The records of a file; one that was cut short at the end is left out."""
    assert data[:4] == b":W&B", data[:8]
    found: list[bytes] = []
    part, at = b"", _HEADER
    while at + _HEADER <= len(data):
        left = _BLOCK - at % _BLOCK
        if left < _HEADER:
            at += left
            continue
        crc, length, kind = struct.unpack("<IHB", data[at : at + _HEADER])
        body = data[at + _HEADER : at + _HEADER + length]
        if len(body) < length or kind not in (_FULL, _FIRST, _MIDDLE, _LAST):
            break
        assert crc == zlib.crc32(data[at + 6 : at + _HEADER] + body)
        at += _HEADER + length
        part = body if kind in (_FULL, _FIRST) else part + body
        if kind in (_FULL, _LAST):
            found.append(part)
    return found


def read(path: Path) -> Recorded:
    """What a .wandb file holds."""
    from wandb.proto.wandb_internal_pb2 import Record

    found = Recorded()
    for message in messages(path.read_bytes()):
        record = Record()
        record.ParseFromString(message)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run = record.run
            found.run_id, found.project, found.group = run.run_id, run.project, run.run_group
            found.job_type, found.tags = run.job_type, tuple(run.tags)
            found.config |= _items(run.config.update)
        elif kind == "config":
            found.config |= _items(record.config.update)
        elif kind == "history":
            found.history.append(_items(record.history.item))
        elif kind == "summary":
            found.summary |= _items(record.summary.update)
        elif kind == "metric":
            found.metrics.append((record.metric.name or record.metric.glob_name, record.metric.step_metric))
        elif kind == "artifact":
            found.artifacts += [entry.path for entry in record.artifact.manifest.contents]
        elif kind == "exit":
            found.exit_code = record.exit.exit_code
        elif kind == "preempting":
            found.preempting = True
    return found


def _items(items: object) -> dict[str, object]:
    return {
        "/".join(item.nested_key) or item.key: json.loads(item.value_json)  # type: ignore[attr-defined]
        for item in items  # type: ignore[attr-defined]
    }
