"""The command `cancel`: end a run, or a sweep, here or in its Slurm job; what runs saves first."""

from collections.abc import Sequence

from flash_launch.console import say, usage
from flash_launch.errors import ConfigError
from flash_launch.locating import ask_to_end, open_run

__all__ = ["main"]

_HELP = """RUN is a run folder, or that of a sweep. Its ranks finish their step, save and end; `flash-launch resume RUN`
or `submit RUN` goes on. On Slurm they have the cluster's KillWait (mostly 30 s) to save."""


def main(argv: Sequence[str]) -> int:
    """End a run."""
    if not argv or any(argument in ("-h", "--help") for argument in argv):
        print(f"usage: {usage('cancel')}\n\n{_HELP}")
        return 0
    if len(argv) > 1 or argv[0].startswith("-"):
        raise ConfigError(f"cancel was given {' '.join(argv)}: it takes one run folder")
    say(ask_to_end(open_run(argv[0]), say))
    return 0
