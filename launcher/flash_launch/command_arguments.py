"""The arguments of a small command, RUN and a few options, read by hand: quick, and clear about what is wrong."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from flash_launch.console import usage
from flash_launch.errors import ConfigError
from flash_launch.option_parser import nearest
from flash_launch.run_folder import RunFolder

__all__ = ["Arguments", "read_arguments", "run_folder", "whole_number"]


@dataclass(frozen=True)
class Arguments:
    """What was given."""

    run: Path
    """The folder, as it was given."""
    values: Mapping[str, str]
    """Option -> value."""
    flags: frozenset[str]
    """Options without a value."""


def read_arguments(command: str, argv: Sequence[str], values: Mapping[str, str], flags: Mapping[str, str]) -> Arguments:
    """One folder and options.

    Args:
        command: the command's name.
        argv: its arguments.
        values: options that take a value -> what it must be, for messages.
        flags: options that take none -> their one name (`-f` and `--follow` may be the same).

    Raises:
        ConfigError: an option that is unknown or lacks its value, no folder or several.
    """
    given: dict[str, str] = {}
    runs: list[str] = []
    set_: set[str] = set()
    arguments = list(argv)
    while arguments:
        argument = arguments.pop(0)
        option, equals, value = argument.partition("=")
        if not argument.startswith("-") or argument == "-":
            runs.append(argument)
        elif argument in flags:
            set_.add(flags[argument])
        elif option in flags:
            raise ConfigError(f"{option} takes no value: leave ={value} out")
        elif option not in values:
            raise ConfigError(f"{command} has no option {option}{nearest(option, [*values, *flags])}")
        elif not value if equals else not arguments or arguments[0].startswith("--"):
            raise ConfigError(f"{option} has no value: give {values[option]}")
        else:
            given[option] = value if equals else arguments.pop(0)
    if len(runs) != 1:
        raise ConfigError(
            f"{command} was given {len(runs)} run folders{': ' * bool(runs)}{', '.join(runs)}: it takes one, "
            f"{usage(command).partition('  ')[0]}"
        )
    return Arguments(Path(runs[0]), given, frozenset(set_))


def run_folder(command: str, path: Path) -> RunFolder:
    """The run folder of that path.

    Raises:
        ConfigError: it is none.
    """
    folder = RunFolder(path.absolute())
    if not folder.config_yaml.exists():
        what = "is not there" if not path.exists() else f"is no run folder: it has no {folder.config_yaml.name}"
        raise ConfigError(f"{command} was given {path}, which {what}")
    return folder


def whole_number(arguments: Arguments, option: str, least: int = 0) -> int | None:
    """An option's value as a number; None if it was not given.

    Raises:
        ConfigError: it is no whole number, or too small.
    """
    value = arguments.values.get(option)
    if value is None:
        return None
    if not value.isdecimal() or int(value) < least:
        raise ConfigError(f"{option} was given {value}: it must be a whole number of {least} or more")
    return int(value)
