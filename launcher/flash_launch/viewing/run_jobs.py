"""What Slurm says of a run's jobs: the one place through which it gets to status, report and why."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from flash_launch import telling
from flash_launch.checkpoint.attempts import read_attempts
from flash_launch.cluster.client import Job, show_jobs
from flash_launch.cluster.hostlist import expand, expand_numbers
from flash_launch.cluster.job_file import read_job_file
from flash_launch.cluster.reasons import explain
from flash_launch.errors import SlurmError, SlurmUnavailable
from flash_launch.executors.ends import write_slurm_record
from flash_launch.run_folder import RunFolder
from flash_launch.verdict import SlurmRecord
from flash_launch.viewing.run_state import JobLine

__all__ = ["jobs_of", "jobs_of_sweep", "keep_slurm_record"]

_RETRY_SECONDS = 5.0


def jobs_of(folder: RunFolder, note: Callable[[str], None] = lambda _: None) -> Sequence[JobLine] | None:
    """What Slurm says of a run's newest job; nothing if it knows none, as of a run that was not submitted.

    Args:
        note: is told why Slurm is silent.

    Returns:
        None where Slurm is silent, which says nothing about the job.
    """
    submitted = read_job_file(folder).jobs
    if not submitted:
        return ()
    jobs = _ask(submitted[-1].job_id, note)
    return None if jobs is None else [_line(job) for job in jobs]


def jobs_of_sweep(path: Path, note: Callable[[str], None] = lambda _: None) -> Mapping[str, Sequence[JobLine]] | None:
    """What Slurm says of the tasks of a sweep's array, by the task's id; None where it is silent. Asks once for all."""
    submitted = read_job_file(RunFolder(path)).jobs
    jobs = _ask(submitted[-1].job_id, note) if submitted else []
    if jobs is None:
        return None
    found: dict[str, Sequence[JobLine]] = {}
    for job in jobs:
        # those that wait are told together: 3-5,8%2
        for task in expand_numbers((job.array_task or "").partition("%")[0]) if job.array_job else ():
            found[f"{job.array_job}_{task}"] = [replace(_line(job), job_id=f"{job.array_job}_{task}")]
    return found


def _ask(job_id: str, note: Callable[[str], None]) -> Sequence[Job] | None:
    try:
        return show_jobs(job_id, retry_seconds=_RETRY_SECONDS)
    except (SlurmError, SlurmUnavailable) as error:
        note(str(error))
        return None


def keep_slurm_record(folder: RunFolder) -> None:
    """Keep what Slurm says of the job of the newest attempt, if that is over: Slurm forgets it after a while."""
    attempts = read_attempts(folder.attempts)
    if not attempts:
        return
    ends = folder.ends_of(attempts[-1].number)
    job_id = telling.read(ends / "slurm.json").get("job_id")
    if not isinstance(job_id, str) or (ends / "slurm_end.json").exists():
        return
    jobs = _ask(job_id, lambda _: None)
    if jobs and jobs[-1].ended:
        job = jobs[-1]
        record = SlurmRecord(
            job_id=job.job_id,
            state=job.state,
            reason=job.reason,
            exit_code=job.exit_code,
            nodes=tuple(_nodes(job)),
            time_limit=job.time_limit,
        )
        write_slurm_record(folder, attempts[-1].number, record)


def _line(job: Job) -> JobLine:
    pending = job.state == "PENDING"
    name = f"{job.array_job}_{job.array_task}" if job.array_job and job.array_task else job.job_id
    limit, used = _seconds(job.time_limit), _seconds(job.run_time)
    left = None if limit is None or used is None or job.state != "RUNNING" else max(0.0, limit - used)
    reason = explain(job.reason).words if pending else "" if job.reason == "None" else job.reason
    return JobLine(name, job.state, reason, tuple(_nodes(job)), left)


def _nodes(job: Job) -> list[str]:
    try:
        return expand(job.nodes)
    except ValueError:
        return [job.nodes]


def _seconds(text: str) -> float | None:
    """D-HH:MM:SS as seconds; None for UNLIMITED."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d+):(\d+)", text)
    if match is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60.0 + seconds
