"""slurm.json in a run folder: the jobs that ran it, and what they were told."""

import contextlib
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from flash_launch.cluster.allocation import Allocation
from flash_launch.run_folder import RunFolder, read_json, write_json

__all__ = ["JobFile", "Submitted", "job_path", "note_job", "read_job_file", "write_job_file"]


@dataclass(frozen=True)
class Submitted:
    """A job that was submitted."""

    job_id: str
    """Its number; for a run of a sweep, of the array's task: JOB_TASK."""
    submitted: float
    """When, in seconds since 1970."""


@dataclass(frozen=True)
class JobFile:
    """What submit leaves in a run folder, or in a sweep's."""

    jobs: tuple[Submitted, ...] = ()
    """The jobs, the newest last."""
    stalled_restarts: int = 3
    """How often a job is requeued from one and the same step."""
    options: dict[str, object] = field(default_factory=dict)
    """What was asked of Slurm, for the next job that goes on with the run."""


def job_path(folder: RunFolder) -> Path:
    """Where it lies."""
    return folder.path / "slurm.json"


def read_job_file(folder: RunFolder) -> JobFile:
    """What is known; an empty one where there is none."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        read = read_json(job_path(folder))
        if isinstance(read, dict):
            jobs = tuple(Submitted(**job) for job in read["jobs"])
            return JobFile(jobs, int(read["stalled_restarts"]), dict(read["options"]))
    return JobFile()


def note_job(folder: RunFolder, attempt: int, allocation: Allocation) -> None:
    """Write which job an attempt runs in."""
    ends = folder.ends_of(attempt)
    ends.mkdir(parents=True, exist_ok=True)
    told = {
        "job_id": allocation.own_id,
        "array_job": allocation.array_job,
        "array_task": allocation.array_task,
        "restart_count": allocation.restarts,
        "nodes": list(allocation.nodes),
        "time": time.time(),
    }
    write_json(ends / "slurm.json", told)


def write_job_file(folder: RunFolder, file: JobFile) -> None:
    """Write it."""
    write_json(job_path(folder), asdict(file))
