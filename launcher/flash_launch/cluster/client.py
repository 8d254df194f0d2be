"""Slurm's own commands, called from the login node: with time-outs, tried again while the controller is away."""

import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from flash_launch.errors import SlurmError, SlurmUnavailable

__all__ = ["Job", "call", "cancel", "count_gpus", "count_nodes", "show_jobs", "submit"]

RETRY_SECONDS = 30.0
"""How long a command is tried again while the controller does not answer."""
_PAUSE_SECONDS = 3.0
_CALL_SECONDS = 60.0
_AWAY = re.compile(
    r"unable to contact slurm controller|connect failure|communications? connection failure"
    r"|slurm backup controller in standby|connection refused",
    re.IGNORECASE,
)
_CUT_OFF = re.compile(r"socket timed out|zero bytes were transmitted|transport endpoint", re.IGNORECASE)
"""No answer, which does not say that nothing was done."""


@dataclass(frozen=True)
class Job:
    """Slurm's record of a job, or of one task of an array."""

    job_id: str
    """Its own number."""
    state: str
    """PENDING, RUNNING, COMPLETING, COMPLETED, CANCELLED, FAILED, TIMEOUT, NODE_FAIL, OUT_OF_MEMORY, PREEMPTED, ..."""
    reason: str
    """Slurm's word for why it pends, or how it ended; see reasons.py."""
    exit_code: str
    """Code and signal, such as 1:0."""
    nodes: str
    """Where it runs or ran, in Slurm's short form."""
    time_limit: str
    """D-HH:MM:SS."""
    run_time: str
    """D-HH:MM:SS."""
    restarts: int
    """How often it was requeued."""
    partition: str = ""
    """Partition, or several with commas while it pends."""
    array_job: str | None = None
    """The job of the whole array."""
    array_task: str | None = None
    """Its task's number; several, in Slurm's short form, while they pend."""

    @property
    def ended(self) -> bool:
        """Whether it is over for good."""
        return self.state not in ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED", "REQUEUED", "STOPPED")


def submit(script: str, *, retry_seconds: float = RETRY_SECONDS, note: Callable[[str], None] = lambda _: None) -> str:
    """Submit a batch script; the job's number.

    Raises:
        SlurmError: sbatch says no. SlurmUnavailable: see `call`; or it gave no answer, and may have taken the script.
    """
    # What an allocation around this command has set must not decide for another job; SBATCH_* is the user's own.
    keep = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("SLURM_", "SRUN_")) or key in ("SLURM_CONF", "SLURM_JWT", "SLURM_CLUSTERS")
    }
    argv = ["sbatch", "--parsable", script]
    out = call(argv, retry_seconds=retry_seconds, note=note, environment=keep, once=True)
    return out.strip().splitlines()[-1].partition(";")[0]


def cancel(job_id: str, *, note: Callable[[str], None] = lambda _: None) -> None:
    """Cancel a job: its ranks have the cluster's KillWait (mostly 30 s) to save.

    Raises:
        SlurmError, SlurmUnavailable: see `call`.
    """
    call(["scancel", job_id], note=note)


def show_jobs(
    job_id: str, *, retry_seconds: float = RETRY_SECONDS, note: Callable[[str], None] = lambda _: None
) -> list[Job]:
    """Slurm's records of a job, or of all tasks of an array; empty if it has forgotten it (MinJobAge after its end).

    Raises:
        SlurmError, SlurmUnavailable: see `call`.
    """
    try:
        out = call(["scontrol", "show", "job", "-o", job_id], retry_seconds=retry_seconds, note=note)
    except SlurmError as error:
        if "invalid job id" in str(error).lower():
            return []
        raise
    return [_job(line) for line in out.splitlines() if line.startswith("JobId=")]


def count_gpus(job_id: str) -> int:
    """GPUs that a job has on each of its nodes.

    Raises:
        SlurmError, SlurmUnavailable: see `call`.
    """
    record = call(["scontrol", "show", "job", "-o", job_id])
    if on_node := re.search(r"\bTresPerNode=\S*?gpu(?::[A-Za-z]\w*)?[:=](\d+)", record):
        return int(on_node[1])
    every = re.search(r"\b(?:Alloc)?TRES=\S*?gres/gpu=(\d+)", record)
    nodes = re.search(r"\bNumNodes=(\d+)", record)
    return int(every[1]) // max(1, int(nodes[1])) if every and nodes else 0


def count_nodes(partition: str) -> int | None:
    """How many nodes a job may have at most in a partition; None where that cannot be told.

    Raises:
        SlurmError, SlurmUnavailable: see `call`.
    """
    record = call(["scontrol", "show", "partition", "-o", partition], retry_seconds=0)
    found = [int(number) for number in re.findall(r"\b(?:TotalNodes|MaxNodes)=(\d+)\b", record)]
    return min(found, default=None)


def call(
    argv: Sequence[str],
    *,
    retry_seconds: float = RETRY_SECONDS,
    note: Callable[[str], None] = lambda _: None,
    environment: dict[str, str] | None = None,
    once: bool = False,
) -> str:
    """Run one of Slurm's commands; its standard output.

    Args:
        retry_seconds: how long it is tried again while the controller does not answer.
        note: is told, once, that this is so.
        once: it must not be done twice, so it is not tried again where the controller may have done it.

    Raises:
        SlurmUnavailable: no answer. SlurmError: any other failure, or there is no such command here.
    """
    if shutil.which(argv[0]) is None:
        raise SlurmError(f"{argv[0]} is not on this machine: run this on a login node of the cluster")
    end = time.monotonic() + retry_seconds
    told = False
    while True:
        try:
            done = subprocess.run(
                argv,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_CALL_SECONDS,
                stdin=subprocess.DEVNULL,
                env=environment,
            )
            said = done.stderr.strip()
        except subprocess.TimeoutExpired:
            done, said = None, f"no answer within {_CALL_SECONDS:.0f} s, socket timed out"
        if done is not None and done.returncode == 0:
            return done.stdout
        if once and _CUT_OFF.search(said):
            raise SlurmUnavailable(
                f"the Slurm controller gave no answer to {argv[0]} ({_without_prefix(said)}), and may have done it all "
                "the same: look at `squeue --me` before you try again"
            )
        if not _AWAY.search(said) and not _CUT_OFF.search(said):
            raise SlurmError(_without_prefix(said) or f"{argv[0]} failed without a word")
        if time.monotonic() > end:
            raise SlurmUnavailable(
                f"the Slurm controller did not answer for {retry_seconds:.0f} s ({_without_prefix(said)}): jobs go on "
                "meanwhile; try again later"
            )
        if not told:
            note(f"the Slurm controller does not answer: trying again for {retry_seconds:.0f} s")
            told = True
        time.sleep(_PAUSE_SECONDS)


def _job(line: str) -> Job:
    # values may hold blanks, but each key begins after one and is followed by =
    found = dict(re.findall(r"(?:^|\s)([A-Za-z/:]+)=(.*?)(?=\s[A-Za-z/:]+=|$)", line))
    return Job(
        found.get("JobId", ""),
        found.get("JobState", "?"),
        found.get("Reason", "None"),
        found.get("ExitCode", "0:0"),
        found.get("NodeList", "").replace("(null)", ""),
        found.get("TimeLimit", ""),
        found.get("RunTime", ""),
        int(found.get("Restarts", "0") or 0),
        found.get("Partition", ""),
        found.get("ArrayJobId"),
        found.get("ArrayTaskId"),
    )


def _without_prefix(said: str) -> str:
    lines = [re.sub(r"^\w+: (error|fatal): ", "", line) for line in said.splitlines() if line.strip()]
    return " ".join(lines)
