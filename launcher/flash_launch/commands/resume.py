"""The command `resume`: go on with a run that was stopped, or for more epochs."""

from collections.abc import Sequence
from pathlib import Path

from flash_launch.console import usage
from flash_launch.errors import ConfigError
from flash_launch.launching import go_on, located, read_options
from flash_launch.run_folder import RunFolder
from flash_launch.script.command_line import resumed_script
from flash_launch.script.config import is_script

__all__ = ["main"]

_HELP = """RUN is a run folder. Its options are those of the run; these may be given anew:
  --checkpoint N      go on from the checkpoint of step N; default: the newest that is as it was written
  number and place of ranks, --setup, --max-epochs, --batch-size, --accumulate, checkpoint options, and what the
  strategy does in epochs that have not begun. A change of anything else is refused, with the reason.
  A script starts again with the same arguments; of its options, all may be given anew but --output-dir and --resume."""


def main(argv: Sequence[str]) -> int:
    """Go on from a checkpoint of a run, with its options but for those that are given."""
    arguments = list(argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"usage: {usage('resume')}\n\n{_HELP}")
        return 0
    given = arguments.pop(0)
    path = Path(given)
    folder = RunFolder(path.absolute())
    if not folder.config_yaml.exists():
        raise ConfigError(f"resume was given {given}, which is no run folder: it has no {folder.config_yaml.name}")
    checkpoint: str | None = None
    if "--checkpoint" in arguments:
        at = arguments.index("--checkpoint")
        if at + 1 >= len(arguments):
            raise ConfigError("--checkpoint has no value: give the step of a checkpoint, for example --checkpoint 120")
        checkpoint = f"step_{arguments[at + 1].removeprefix('step_')}"
        del arguments[at : at + 2]
    if any(argument.partition("=")[0] in ("--output-dir", "--resume") for argument in arguments):
        raise ConfigError("resume RUN goes on in RUN: leave --output-dir and --resume out")
    if is_script(folder.config_yaml):
        return go_on(*located(resumed_script(folder, arguments), arguments, path), path, checkpoint)
    return go_on(*read_options(["--config", str(folder.config_yaml), *arguments], path), path, checkpoint)
