"""The command line of a script: options of the ranks, the script or `-m` and a module, and the script's arguments."""

from collections.abc import Sequence

from flash_launch.cluster.options import PREFIX
from flash_launch.errors import ConfigError
from flash_launch.option_parser import given_options, option_names, parse_run_options
from flash_launch.options import option_name
from flash_launch.run_folder import RunFolder
from flash_launch.script.config import OPTIONS, ScriptConfig
from flash_launch.script.program import check_program

__all__ = ["USAGE", "leading_options", "parse_script", "resumed_script"]

USAGE = "flash-launch script [options] train.py ARGUMENTS..., or [options] -m package.module ARGUMENTS..."
_ALONE = ("--help", "-h", "--dry-run", "--print_config", "--print-config")
"""Options without a value."""


def leading_options(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """A command line up to its first word that is neither an option nor an option's value, and from there on."""
    words = list(argv)
    at = 0
    while at < len(words) and words[at].startswith("-") and words[at] != "-m":
        word = words[at]
        at += 1
        has_value = word in _ALONE or "=" in word or at == len(words)
        # what is asked of a cluster may begin with dashes: --slurm.extra --exclusive
        if not has_value and (word.startswith(PREFIX) or not words[at].startswith("--")):
            at += 1
    return words[:at], words[at:]


def parse_script(options: Sequence[str], rest: Sequence[str]) -> ScriptConfig:
    """What is to be started.

    Args:
        options: of the ranks, output, W&B.
        rest: the script, or -m and a module, and its arguments.

    Raises:
        ConfigError: an option that is none of a script's, or no script that can run.
    """
    config = script_options(options)
    if not rest:
        raise ConfigError(f"no script was given: {USAGE}")
    if rest[0] != "-m":
        config = config.replace(script=rest[0], arguments=tuple(rest[1:]))
    elif len(rest) > 1:
        config = config.replace(module=rest[1], arguments=tuple(rest[2:]))
    else:
        raise ConfigError(f"-m has no module: {USAGE}")
    check_program(config)
    return config


def resumed_script(folder: RunFolder, options: Sequence[str]) -> ScriptConfig:
    """The script of a run folder, to start again with the same arguments.

    Args:
        options: of the ranks, where they are others than before.

    Raises:
        ConfigError: an option that is none of a script's, or the script is gone.
    """
    known, rest = leading_options(options)
    if rest:
        raise ConfigError(f"unexpected argument {rest[0]!r}: the script starts again with the arguments it had")
    text = folder.config_yaml.read_text(encoding="utf-8")
    old = ScriptConfig.from_yaml(text, str(folder.config_yaml))
    new = script_options([*old.option_arguments(), *known])
    new = new.replace(script=old.script, module=old.module, arguments=old.arguments, directory=old.directory)
    check_program(new)
    return new


def script_options(options: Sequence[str]) -> ScriptConfig:
    """The options alone, checked as those of a run.

    Raises:
        ConfigError: an option that is none of a script's, or a wrong value.
    """
    for name, shown in given_options(options).items():
        if name in option_names() and name not in OPTIONS:
            known = ", ".join(map(option_name, OPTIONS))
            raise ConfigError(
                f"{shown} is for the training of `flash-launch run`, and a script does its own: what is meant for the "
                f"script comes after it. Before it, these are possible: {known}"
            )
    return ScriptConfig.of(parse_run_options(options, USAGE))
