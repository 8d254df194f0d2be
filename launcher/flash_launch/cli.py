"""The command `flash-launch`: finds the command that is named, and tells its errors."""

import importlib
import os
import sys
from collections.abc import Sequence

from flash_launch.console import COMMANDS, say
from flash_launch.errors import ConfigError, FlashLaunchError, LaunchError
from flash_launch.option_parser import nearest

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code.

    0, 1 a failed run, 2 a user fault, 75 stopped and can go on, 130 and 143 ended by a signal.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = arguments.pop(0) if arguments and not arguments[0].startswith("-") else "run" if arguments else "help"
    try:
        if name not in COMMANDS:
            raise ConfigError(f"unknown command {name!r}{nearest(name, list(COMMANDS))}")
        if name == "help":
            name, arguments = "run", ["--help"]
        module = importlib.import_module(f"flash_launch.commands.{name}")
        code: int = module.main(arguments)
        return code
    except FlashLaunchError as error:
        say(f"error: {error}", error=True)
        return 1 if isinstance(error, LaunchError) else 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `flash-launch templates | head`: nobody reads any more, and Python must not flush again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
