"""The command `submit`: run, or sweep, as a Slurm job."""

import contextlib
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from flash_launch.cluster.job_file import read_job_file
from flash_launch.cluster.options import describe_slurm_options, parse_slurm_options
from flash_launch.console import say, usage
from flash_launch.errors import ConfigError
from flash_launch.run_folder import RunFolder
from flash_launch.submission import how_to_follow, prepare_submission, send

__all__ = ["main"]

_HELP = f"""With RUN, the folder of a run: goes on with it in a new job, with its options but for those that are given.
Takes the options of a run (see flash-launch --help) and these:
  --dry-run                 print the batch script, and do nothing
The options of a cluster can stand in a YAML file, under `slurm:`, and be named with --config.

{describe_slurm_options()}"""


def main(argv: Sequence[str]) -> int:
    """Check everything, write the script into the run folder, submit it, and tell how to follow it."""
    arguments = list(argv)
    if any(argument in ("-h", "--help") for argument in arguments):
        print(f"usage: {usage('submit')}\n\n{_HELP}")
        return 0
    dry_run = "--dry-run" in arguments
    arguments = [argument for argument in arguments if argument != "--dry-run"]
    before: Mapping[str, object] = {}
    if arguments and not arguments[0].startswith("-"):
        folder = RunFolder(Path(given := arguments.pop(0)).absolute())
        if not folder.config_yaml.exists():
            raise ConfigError(f"submit was given {given}, which is no run folder: it has no {folder.config_yaml.name}")
        before = read_job_file(folder).options
        arguments = ["--config", str(folder.config_yaml), *arguments, "--output-dir", given, "--resume", "auto"]
    options, rest = parse_slurm_options(arguments, before)
    with contextlib.redirect_stdout(sys.stderr if dry_run else sys.stdout):
        submission = prepare_submission(rest, options, usage())
    if dry_run:
        print(submission.script, end="")
        return 0
    for message in submission.preparations[0].messages:
        say(message)
    for line in submission.preparations[0].describe():
        say(line)
    said = options.cpus_per_task is not None or any(re.match(r"--(exclusive|cpus-per)", one) for one in options.extra)
    if options.gpus_per_node and not said:
        say("note: without --slurm.cpus-per-task the cluster decides how many CPUs a node's ranks share: mostly one")
    job_id = send(submission)
    count = f", {len(submission.tasks)} runs" if submission.tasks else ""
    say(f"job {job_id}{count}; run folder: {submission.path}")
    say(f"follow it: {how_to_follow(submission.path)}")
    return 0
