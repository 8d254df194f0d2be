"""The command `logs`: show a rank's log, the agents' or the Slurm job's, and follow it while it grows."""

import sys
import time
from collections.abc import Sequence

from flash_launch.checkpoint.attempts import STOPPED
from flash_launch.command_arguments import Arguments, read_arguments, run_folder, whole_number
from flash_launch.console import say, usage
from flash_launch.errors import ConfigError
from flash_launch.run_folder import RunFolder
from flash_launch.viewing.log_follower import Follower, find_logs, has_ended, is_submitted, newest_exit_code
from flash_launch.viewing.run_jobs import jobs_of
from flash_launch.viewing.run_state import JobLine, job_goes_on

__all__ = ["main"]

_HELP = """RUN is a run folder. Its logs are in RUN/logs; attempts follow each other in them.
  -f, --follow        go on until the run has ended, over restarts; wait for the log if the run has not begun
  --rank N            the log of rank N; default: rank 0
  --all               all ranks, each line with its rank
  --agents            the torchrun agent of each node
  --job               the output of the Slurm job itself
  --lines N           only the last N lines of what is there already"""

_ASK_SECONDS = 15.0
_VALUES = {
    "--rank": "the number of a rank, for example --rank 1",
    "--lines": "a number of lines, for example --lines 50",
}
_FLAGS = {"-f": "--follow"} | {name: name for name in ("--follow", "--all", "--agents", "--job")}


def main(argv: Sequence[str]) -> int:
    """Show logs of a run."""
    if not argv or any(argument in ("-h", "--help") for argument in argv):
        print(f"usage: {usage('logs')}\n\n{_HELP}")
        return 0
    arguments = read_arguments("logs", argv, _VALUES, _FLAGS)
    chosen: list[str] = [name for name in ("--all", "--agents", "--job") if name in arguments.flags]
    chosen += ["--rank"] if "--rank" in arguments.values else []
    if len(chosen) > 1:
        raise ConfigError(f"logs was given {' and '.join(chosen)}: give one of them")
    rank, lines = whole_number(arguments, "--rank"), whole_number(arguments, "--lines")
    folder = run_folder("logs", arguments.run)
    kind = {"--agents": "agents", "--job": "job"}.get(chosen[0] if chosen else "", "ranks")
    only = None if kind != "ranks" or "--all" in arguments.flags else rank or 0
    follower = Follower(
        lambda: find_logs(folder, kind, only), sys.stdout.buffer, prefixed=bool({"--all", "--agents"} & set(chosen))
    )
    follower.lines = lines
    sys.stdout.flush()
    if "--follow" in arguments.flags:
        follower.follow(_End(folder), waiting=lambda: say("waiting for the log", error=True))
    else:
        follower.pump(last=True)
    if not follower.files:
        raise ConfigError(_nothing(arguments, folder, kind, only))
    return 0


class _End:
    """Whether the run has ended, and no job of it runs or waits to go on with it; Slurm is asked now and then only."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._jobs: Sequence[JobLine] | None = ()
        self._ask_at = 0.0

    def __call__(self) -> bool:
        ended = has_ended(self._folder)
        if time.monotonic() >= self._ask_at or (ended and not self._jobs):
            self._jobs = jobs_of(self._folder)
            self._ask_at = time.monotonic() + _ASK_SECONDS
        if any(job_goes_on(job) for job in self._jobs or ()):
            return False
        if self._jobs is None:  # Slurm is silent: what has saved may be requeued
            return ended and not (is_submitted(self._folder) and newest_exit_code(self._folder) == STOPPED)
        # a job that was cancelled in the queue, or lost its node, has ended without a word in the run folder
        return ended or is_submitted(self._folder)


def _nothing(arguments: Arguments, folder: RunFolder, kind: str, rank: int | None) -> str:
    if kind == "job":
        return f"{arguments.run} has no output of a Slurm job: it was not submitted, or the job has not begun"
    have = [name for name, _ in find_logs(folder, "ranks")]
    if kind == "ranks" and have:
        return f"{arguments.run} has no log of rank {rank}: it has those of {', '.join(dict.fromkeys(have))}"
    return f"{arguments.run} has no logs yet: wait for them with -f"
