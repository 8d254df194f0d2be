"""What a Slurm job runs: `python -m flash_launch.job begin RUN`, `node RUN ATTEMPT` per node, `end RUN ATTEMPT SRUN`.

`begin` takes the next attempt's number and prints it; nothing if the run has finished. `end` tells how it ended, with
the run's own exit code, and prints "requeue" where starting again may help: after Slurm's own stop, and after a failure
that may not repeat. What is meant for people goes to stderr.
"""

import contextlib
import itertools
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from flash_launch.checkpoint.attempts import STOPPED, Attempt, Fence, read_attempts
from flash_launch.cluster.allocation import Allocation, find_allocation
from flash_launch.cluster.job_file import note_job, read_job_file
from flash_launch.console import say
from flash_launch.continuation import find
from flash_launch.errors import ConfigError, FlashLaunchError, LaunchError
from flash_launch.executors.ends import attempt_verdict
from flash_launch.executors.local import LaunchResult
from flash_launch.executors.node import NodeTask, run_node
from flash_launch.executors.outcome import outcome
from flash_launch.launching import begin_attempt, tell_end
from flash_launch.run_folder import RunFolder, read_json, write_json, write_text
from flash_launch.script.config import ScriptConfig, read_config
from flash_launch.script.tracking import tracking_environment
from flash_launch.telling import read, stopped_by_hand
from flash_launch.verdict import Kind, Verdict
from flash_launch.viewing.sweep_view import is_sweep, sweep_table

__all__ = ["begin", "end", "main", "node"]


def begin(folder: RunFolder, environment: Mapping[str, str]) -> Attempt | None:
    """Take the next attempt's number for this job; None if nothing is left to do.

    Raises:
        FlashLaunchError: the run cannot go on: its checkpoints are damaged, or it was restarted in vain too often.
    """
    allocation = _allocation(environment)
    config = read_config(folder)
    attempts = read_attempts(folder.attempts)
    manifest = None
    if attempts:
        continuation = find(folder, config)
        for note in continuation.notes:
            say(note)
        if continuation.finished:
            return None
        manifest = continuation.manifest
        if isinstance(config, ScriptConfig):
            _check_saved(folder, attempts, allocation)
        else:
            _check_progress(folder, attempts, manifest.position.step if manifest else 0, allocation)
    attempt = begin_attempt(folder, config, manifest)
    note_job(folder, attempt.number, allocation)
    ranks = f"{config.nodes} node{'s' * (config.nodes != 1)} x {config.procs_per_node} ranks"
    say(f"job {allocation.job_id}: attempt {attempt.number}, {ranks} on {', '.join(allocation.nodes)}")
    return attempt


def node(folder: RunFolder, attempt: int, environment: Mapping[str, str]) -> int:
    """Run this node's agent; the exit code.

    Raises:
        LaunchError: it could not be started.
    """
    allocation = _allocation(environment)
    config = read_config(folder)
    os.environ.setdefault("FLASH_LAUNCH_WATCHED", "0")  # nobody sees progress bars
    worker: tuple[str, ...] = ()
    if isinstance(config, ScriptConfig):
        worker = config.worker
        os.environ.update(tracking_environment(config, folder, environment))
    task = NodeTask(
        str(folder.path),
        attempt,
        int(environment["SLURM_NODEID"]),
        allocation.nodes,
        config.procs_per_node or 1,
        allocation.port(attempt),
        config.timeout,
        worker=worker,
    )
    return run_node(task)


def end(folder: RunFolder, attempt: int, srun_code: int) -> tuple[int, bool]:
    """Tell how an attempt ended, in the job's output and in the run folder.

    Args:
        srun_code: how srun ended, which counts only if it started nothing.

    Returns:
        The run's exit code, and whether to start again.
    """
    this = next(one for one in read_attempts(folder.attempts) if one.number == attempt)
    seconds = time.time() - this.began
    if srun_code != 0 and not any(folder.ends_of(attempt).glob("node*")):
        result = LaunchResult(1, _nothing_began(srun_code), seconds)
    else:
        result = outcome(folder, attempt, read_config(folder).nodes or 1, seconds, attempt_verdict(folder, attempt))
    code = tell_end(folder, folder.path, result, this)
    _write_results(folder)
    if Fence(folder.attempts, attempt).newer() is not None:
        return code, False
    if code == 1 and result.verdict is not None and result.verdict.transient:
        say("this may not happen again: the job is requeued")
        return code, True
    return code, code == STOPPED and not stopped_by_hand(folder.ends_of(attempt))


def _nothing_began(srun_code: int) -> Verdict:
    return Verdict(
        None,
        None,
        f"srun ended with code {srun_code} before any node began",
        kind=Kind.NEVER_STARTED,
        advice="the lines above say why, in the words of srun or of what --slurm.prefix names (a container's image); "
        "see --slurm.srun, too",
        who="the job",
    )


def _write_results(folder: RunFolder) -> None:
    """Write the table of a sweep's results anew, where this is one of its runs."""
    sweep = folder.path.parent
    if is_sweep(sweep):
        with contextlib.suppress(OSError):
            write_text(sweep / "results.md", sweep_table(sweep, time.time()).as_markdown() + "\n")


def _check_progress(folder: RunFolder, attempts: Sequence[Attempt], step: int, allocation: Allocation) -> None:
    """Refuse to start from the same step again and again.

    Raises:
        LaunchError: as many attempts of this job as are allowed began there.
    """
    _check_stalled(
        folder,
        attempts,
        allocation,
        lambda one: one.resumed_step == step,
        f"from step {step} and never got further",
        "or --checkpoint-every more often",
    )


def _check_saved(folder: RunFolder, attempts: Sequence[Attempt], allocation: Allocation) -> None:
    """Refuse to start a script again and again that saves nothing.

    Raises:
        LaunchError: as many attempts of this job as are allowed neither said that they saved nor wrote to checkpoints/.
    """
    newest = max((path.stat().st_mtime for path in folder.checkpoints.rglob("*") if path.exists()), default=0.0)
    _check_stalled(
        folder,
        attempts,
        allocation,
        lambda one: one.began > newest and read(folder.ends_of(one.number) / "end.json").get("exit_code") != STOPPED,
        f"and saved nothing, neither in {folder.checkpoints} nor as it says by exit code {STOPPED}",
        "or to save more often",
    )


def _check_stalled(
    folder: RunFolder,
    attempts: Sequence[Attempt],
    allocation: Allocation,
    stalled: Callable[[Attempt], bool],
    how: str,
    what: str,
) -> None:
    allowed = read_job_file(folder).stalled_restarts
    ours = (stalled(one) and _job_of(folder, one.number) == allocation.own_id for one in reversed(attempts))
    if sum(1 for _ in itertools.takewhile(bool, ours)) <= allowed:
        return
    told = (
        f"the job was restarted {allowed} times {how}: it is given up. See what stopped it with "
        f"`flash-launch why {folder.path}`; it may need more time, {what}"
    )
    write_json(folder.summary_json, {"status": "failed", "verdict": told})
    raise LaunchError(told)


def _job_of(folder: RunFolder, attempt: int) -> str | None:
    with contextlib.suppress(OSError, ValueError):
        read = read_json(folder.ends_of(attempt) / "slurm.json")
        return str(read.get("job_id")) if isinstance(read, dict) else None
    return None


def _allocation(environment: Mapping[str, str]) -> Allocation:
    if (found := find_allocation(environment)) is None:
        raise ConfigError(
            "this runs in a Slurm job, and there is none here (no SLURM_JOB_ID): use `flash-launch submit`"
        )
    return found


def main(argv: Sequence[str]) -> int:
    """Run one of the steps; the exit code."""
    name, folder = argv[0], RunFolder(Path(argv[1]))
    if name != "node":  # Slurm's SIGTERM reaches every process of a job; these two are done in a moment
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        if name == "begin":
            with contextlib.redirect_stdout(sys.stderr):
                attempt = begin(folder, os.environ)
            if attempt is not None:
                print(attempt.number)
            return 0
        if name == "node":
            return node(folder, int(argv[2]), os.environ)
        with contextlib.redirect_stdout(sys.stderr):
            code, again = end(folder, int(argv[2]), int(argv[3]))
        if again:
            print("requeue")
        return code
    except FlashLaunchError as error:
        say(f"error: {error} ({socket.gethostname()})", error=True)
        return 1 if isinstance(error, LaunchError) else 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
