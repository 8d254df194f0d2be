"""The command `submit`: run, or sweep, as a Slurm job."""

import contextlib
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from flash_launch.cluster.job_file import read_job_file
from flash_launch.cluster.options import describe_slurm_options, parse_slurm_options
from flash_launch.console import say, usage
from flash_launch.errors import ConfigError
from flash_launch.run_folder import RunFolder
from flash_launch.script.command_line import leading_options, parse_script, resumed_script
from flash_launch.script.config import is_script
from flash_launch.submission import Submission, how_to_follow, prepare_submission, send

__all__ = ["main"]

_HELP = f"""With RUN, the folder of a run: goes on with it in a new job, with its options but for those that are given.
With script, and then what `flash-launch script` takes: runs a script of any kind.
Takes the options of a run (see flash-launch --help) and these:
  --dry-run                 print the batch script, and do nothing
The options of a cluster can stand in a YAML file, under `slurm:`, and be named with --config.

{describe_slurm_options()}"""


def main(argv: Sequence[str]) -> int:
    """Check everything, write the script into the run folder, submit it, and tell how to follow it."""
    arguments, program = _split_script(argv)
    if any(argument in ("-h", "--help") for argument in arguments):
        print(f"usage: {usage('submit')}\n\n{_HELP}")
        return 0
    dry_run = "--dry-run" in arguments
    arguments = [argument for argument in arguments if argument != "--dry-run"]
    with contextlib.redirect_stdout(sys.stderr if dry_run else sys.stdout):
        submission = _prepare(arguments, program)
    if dry_run:
        print(submission.script, end="")
        return 0
    for message in submission.preparations[0].messages:
        say(message)
    for line in submission.preparations[0].describe():
        say(line)
    options = submission.options
    said = options.cpus_per_task is not None or any(re.match(r"--(exclusive|cpus-per)", one) for one in options.extra)
    if options.gpus_per_node and not said:
        say("note: without --slurm.cpus-per-task the cluster decides how many CPUs a node's ranks share: mostly one")
    job_id = send(submission)
    count = f", {len(submission.tasks)} runs" if submission.tasks else ""
    say(f"job {job_id}{count}; run folder: {submission.path}")
    say(f"follow it: {how_to_follow(submission.path)}")
    return 0


def _split_script(argv: Sequence[str]) -> tuple[list[str], list[str] | None]:
    """The options, and the script with its arguments; None: no script is submitted."""
    before, rest = leading_options(argv)
    folder = len(rest) == 1 and RunFolder(Path(rest[0]).absolute()).config_yaml.exists()
    if rest[:1] != ["script"] or folder:
        return list(argv), None
    options, program = leading_options(rest[1:])
    return [*before, *options], program


def _prepare(arguments: list[str], program: Sequence[str] | None) -> Submission:
    if program is not None:
        options, rest = parse_slurm_options(arguments)
        return prepare_submission(rest, options, usage(), parse_script(rest, program))
    if not arguments or arguments[0].startswith("-"):
        options, rest = parse_slurm_options(arguments)
        return prepare_submission(rest, options, usage())
    folder = RunFolder(Path(given := arguments.pop(0)).absolute())
    if not folder.config_yaml.exists():
        raise ConfigError(f"submit was given {given}, which is no run folder: it has no {folder.config_yaml.name}")
    before = read_job_file(folder).options
    again = ["--output-dir", given, "--resume", "auto"]
    if is_script(folder.config_yaml):
        options, rest = parse_slurm_options(arguments, before)
        script = resumed_script(folder, rest).replace(output_dir=given, resume="auto")
        return prepare_submission(rest, options, usage(), script)
    options, rest = parse_slurm_options(["--config", str(folder.config_yaml), *arguments, *again], before)
    return prepare_submission(rest, options, usage())
