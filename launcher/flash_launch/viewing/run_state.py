"""The state of a run in plain words, by how its newest attempt ended, its launcher's process, and Slurm's word."""

import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from flash_launch.checkpoint.attempts import STOPPED, Attempt, launcher_runs
from flash_launch.early_stop import EarlyStop
from flash_launch.processes import process_began
from flash_launch.viewing.json_fields import text
from flash_launch.viewing.run_view import AttemptView, RunView
from flash_launch.viewing.wording import ago, resume_command

__all__ = ["JobLine", "RunState", "State", "attempt_end", "job_goes_on", "launcher_gone", "state_of"]


class State(StrEnum):
    """What a run is at."""

    PREPARING = "preparing"
    PENDING = "pending"
    RUNNING = "running"
    FINISHED = "finished"
    STOPPED = "stopped"
    FAILED = "failed"
    DIED = "died"


@dataclass(frozen=True)
class JobLine:
    """What Slurm says of a job of the run."""

    job_id: str
    """Its id, with the array's task if it has one: 123 or 123_4."""
    state: str
    """PENDING, RUNNING, COMPLETED, ..."""
    reason: str = ""
    """Why it is pending, or how it ended, in plain words."""
    nodes: tuple[str, ...] = ()
    """Where it runs."""
    seconds_left: float | None = None
    """Of its time limit."""


@dataclass(frozen=True)
class RunState:
    """The state, and what to do."""

    name: State
    """In one word."""
    words: str
    """In one sentence."""
    command: str = ""
    """What to run next, where there is something to do."""


_ALIVE = ("RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT")
_WAITING = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD")
_SILENT_SECONDS = 300.0


def job_goes_on(job: JobLine) -> bool:
    """Whether a job runs, or will."""
    return job.state in (*_ALIVE, *_WAITING)


def launcher_gone(
    attempt: Attempt, *, host: str | None = None, began: Callable[[int], float | None] = process_began
) -> bool:
    """Whether an attempt was started on this machine, and its launcher does not run any more."""
    if attempt.host != (host or socket.gethostname()):
        return False
    return not launcher_runs(attempt, began)


def state_of(
    view: RunView,
    now: float,
    jobs: Sequence[JobLine] | None = None,
    *,
    shown: Path | None = None,
    host: str | None = None,
    began: Callable[[int], float | None] = process_began,
) -> RunState:
    """The state of a run.

    Args:
        view: the run folder.
        now: the time.
        jobs: what Slurm says of its newest job; empty: it knows none; None: it is silent, or was not asked.
        shown: the folder as the user wrote it, for commands.
        host: this machine's name.
        began: when a process of this machine began.
    """
    resume = resume_command(shown or view.path) if view.checkpoints or view.is_script else ""
    newest = view.attempts[-1] if view.attempts else None
    job = jobs[-1] if jobs else None
    if job is not None and job.state in _WAITING:
        why = f": {job.reason}" if job.reason else ""
        before = f", to go on after attempt {newest.attempt.number}" if newest is not None else ""
        return RunState(State.PENDING, f"job {job.job_id} waits in Slurm's queue{before}{why}")
    forgotten = jobs is not None and job is None and bool(view.jobs)
    if newest is None:
        if forgotten:
            return RunState(
                State.FAILED, f"job {view.jobs[-1]} ended before the run began, and Slurm knows it no longer"
            )
        if job is None and view.jobs:
            return RunState(State.PENDING, f"submitted to Slurm as job {view.jobs[-1]}, not begun yet")
        if job is not None and job.state not in _ALIVE:
            return RunState(State.FAILED, f"job {job.job_id} ended before the run began: {_job_end(job)}")
        return RunState(State.PREPARING, "nothing was started yet")
    # A job speaks for its own attempts only: others were started by hand, here or in another allocation.
    submitted = newest.job_id in view.jobs
    its_job = job if job is not None and job.job_id == newest.job_id else None
    if newest.exit_code is not None or _summary_tells(view, newest):
        if job is not None and job.state in _ALIVE and (its_job is None or newest.exit_code != 0):
            coming = "is about to go on" if its_job is None else "is ending, or about to be requeued"
            end = attempt_end(newest)
            words = (
                f"attempt {newest.attempt.number} has ended{f' ({end})' if end else ''}, and job {job.job_id} {coming}"
            )
            return RunState(State.RUNNING, words)
        return _ended(view, newest, resume)
    if its_job is not None and its_job.state not in _ALIVE:
        return RunState(State.DIED, f"the job ended without telling how: {_job_end(its_job)}", resume)
    if submitted and forgotten:
        return RunState(State.DIED, f"job {newest.job_id} told no end, and Slurm knows it no longer", resume)
    if not submitted and launcher_gone(newest.attempt, host=host, began=began):
        sign = f", its last sign of life is {ago(view.last_sign, now)}" if view.last_sign else ""
        return RunState(
            State.DIED, f"its launcher (process {newest.attempt.pid}) is gone and told no end{sign}", resume
        )
    local = not submitted and newest.attempt.host == (host or socket.gethostname())
    return _alive(view, newest, its_job, now, local=local)


def attempt_end(attempt: AttemptView) -> str:
    """How an attempt ended, in a few words; empty where nobody told."""
    match attempt.exit_code:
        case None:
            return ""
        case 0:
            return "finished"
        case 75:
            return "stopped, saved"
        case 130:
            return "ended by Ctrl-C"
        case code if code > 128:
            return f"ended by signal {code - 128}"
        case code:
            first = (attempt.verdict or "").strip().partition("\n")[0]
            return f"failed: {first}" if first else f"failed (exit code {code})"


def _ended(view: RunView, newest: AttemptView, resume: str) -> RunState:
    status, code = text(view.summary, "status"), newest.exit_code
    if status == "finished" and code in (0, None):
        stop = EarlyStop.from_json(view.summary.get("stopped_early"))
        done = "the script has ended well" if view.is_script else "all epochs are done"
        return RunState(State.FINISHED, str(stop) if stop is not None else done)
    if code in (75, 0, None) and status == "stopped":
        if view.is_script and code == STOPPED:
            return RunState(State.STOPPED, "it was asked to stop, and the script has saved", resume)
        saved = text(view.summary, "checkpoint")
        return RunState(State.STOPPED, f"it was asked to stop and saved {saved}" if saved else "it was stopped", resume)
    if code == 0:
        return RunState(State.FINISHED, "the newest attempt ended without a fault")
    if code is not None and code > 128:
        return RunState(State.STOPPED, f"{attempt_end(newest)}, without saving", resume)
    told = (view.verdict or "").strip().partition("\n")[0]
    return RunState(State.FAILED, told or f"exit code {code}, and nobody told why", resume)


def _summary_tells(view: RunView, newest: AttemptView) -> bool:
    """In the moment between the ranks' end and the launcher's; a new attempt deletes the summary of the one before."""
    path = view.path / "summary.json"
    try:
        return text(view.summary, "status") is not None and path.stat().st_mtime >= newest.attempt.began - 1
    except OSError:
        return False


def _alive(view: RunView, newest: AttemptView, job: JobLine | None, now: float, *, local: bool) -> RunState:
    where = ", ".join(newest.hosts) or newest.attempt.host
    if job is not None:
        where = f"job {job.job_id} on {', '.join(job.nodes) or where}"
    begun = any(event.time >= newest.attempt.began and event.kind in ("start", "resume") for event in view.events)
    words = f"on {where}" if begun else f"starting its ranks on {where}"
    silent = now - view.last_sign if view.last_sign is not None else 0.0
    if silent > _SILENT_SECONDS and not local and job is None:
        words += f"; whether it lives cannot be seen from here, its last sign of life is {ago(now - silent, now)}"
    return RunState(State.RUNNING, words)


def _job_end(job: JobLine) -> str:
    return f"Slurm says {job.state}{f', {job.reason}' if job.reason else ''}"
