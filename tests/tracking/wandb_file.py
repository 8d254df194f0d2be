"""What the records of a .wandb file say."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from flash_launch.tracking.recorded_file import messages


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


def read(path: Path) -> Recorded:
    """What a .wandb file holds."""
    from wandb.proto.wandb_internal_pb2 import Record

    found = Recorded()
    for message in messages(path):
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
