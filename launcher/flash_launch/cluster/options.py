"""The options --slurm.*: what is asked of the cluster, from the command line and the `slurm:` part of YAML files."""

import dataclasses
import re
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flash_launch.errors import ConfigError
from flash_launch.option_parser import nearest, slurm_sections
from flash_launch.options import field_docstrings

__all__ = ["PREFIX", "SlurmOptions", "describe_slurm_options", "parse_slurm_options"]

PREFIX = "--slurm."
_TIME = re.compile(r"\d+(:\d+){0,2}|\d+-\d+(:\d+){0,2}|UNLIMITED|INFINITE")
_LEAST_SECONDS = 60
"""Slurm looks at limits twice a minute."""
_MEMORY = re.compile(r"\d+[KMGT]?B?", re.IGNORECASE)


@dataclass(frozen=True)
class SlurmOptions:
    """What is asked of Slurm; what is left out is the cluster's default."""

    partition: str | None = None
    """Partition, or several with commas."""

    account: str | None = None
    """Account that pays."""

    qos: str | None = None
    """Quality of service."""

    time: str | None = None
    """Time limit: minutes, H:MM:SS or D-HH:MM:SS. The run saves before it is over, and goes on in the next job."""

    gpus_per_node: int | None = None
    """GPUs on each node, one for each rank. Default: none; the ranks compute on the CPU."""

    cpus_per_task: int | None = None
    """CPUs on each node: there is one task, the agent, per node."""

    mem: str | None = None
    """Memory on each node, such as 64G."""

    constraint: str | None = None
    """Features that the nodes must have."""

    exclude: str | None = None
    """Nodes that must not be used."""

    reservation: str | None = None
    """Reservation to run in."""

    dependency: str | None = None
    """Jobs to wait for, such as afterok:1234. A job that can never start is removed."""

    name: str | None = None
    """Name of the job. Default: the name of the run folder."""

    array: dict[str, list[object]] = dataclasses.field(default_factory=dict)
    """A sweep, one run for each combination: OPTION=VALUE,VALUE,... such as seed=0,1,2; may be given again."""

    array_limit: int | None = None
    """How many runs of the sweep may run at once."""

    warning: int = 120
    """Seconds before the time limit at which the run is asked to save; longer for large models."""

    stalled_restarts: int = 3
    """How often the job is requeued from one and the same step before it is given up."""

    extra: tuple[str, ...] = ()
    """More options of sbatch, such as --exclusive; may be given again."""

    setup: tuple[str, ...] = ()
    """Lines of shell that prepare the node, such as `module load cuda`; may be given again."""

    prefix: str | None = None
    """What stands before python in every command, such as `apptainer exec --nv image.sif`."""

    srun: tuple[str, ...] = ()
    """More options of srun, such as --container-image=...; may be given again."""

    def __post_init__(self) -> None:
        for name in ("gpus_per_node", "cpus_per_task", "array_limit", "warning", "stalled_restarts"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{_option(name)} was given {value}: it must be 1 or more")
        if self.warning > 65535:
            raise ConfigError(f"--slurm.warning was given {self.warning}: Slurm takes up to 65535 seconds")
        for name, value in vars(self).items():
            if isinstance(value, str) and not value.strip():
                raise ConfigError(f"{_option(name)} was given an empty text: give a value or leave the option out")
        if self.time is not None and not _TIME.fullmatch(self.time):
            raise ConfigError(
                f"--slurm.time was given {self.time}: it must be minutes, H:MM:SS or D-HH:MM:SS, such as 90 or "
                "1-00:00:00"
            )
        if self.mem is not None and not _MEMORY.fullmatch(self.mem):
            raise ConfigError(f"--slurm.mem was given {self.mem}: it must be a size such as 64G")
        for line in self.extra:
            if not line.startswith("-"):
                raise ConfigError(
                    f"--slurm.extra was given {line}: it must be an option of sbatch, such as --exclusive"
                )
            if re.match(r"(--clusters|-M)\b", line):
                raise ConfigError(
                    f"--slurm.extra was given {line}: set SLURM_CLUSTERS instead, which all of Slurm's commands read"
                )
        for name, value in vars(self).items():
            one_line = [value] if isinstance(value, str) else value if isinstance(value, tuple) else []
            if any(not text.isprintable() for text in one_line):
                raise ConfigError(f"{_option(name)} was given {value!r}: it must be one line of printable text")
        seconds = _seconds(self.time) if self.time is not None else None
        if seconds is not None and seconds < self.warning + _LEAST_SECONDS:
            raise ConfigError(
                f"--slurm.time {self.time} leaves no time to train: the run is asked to save {self.warning} s before "
                "the limit (--slurm.warning); give a longer time, or a shorter warning"
            )
        if self.array_limit is not None and not self.array:
            raise ConfigError("--slurm.array-limit belongs to --slurm.array, which was not given")


def _seconds(time: str) -> int | None:
    """A time limit; None for one that has no end."""
    days, dash, rest = time.rpartition("-")
    parts = [int(part) for part in rest.split(":")] if rest[:1].isdigit() else []
    if not parts:
        return None
    if dash:  # D-HH, D-HH:MM, D-HH:MM:SS
        hours, minutes, seconds = [*parts, 0, 0][:3]
    elif len(parts) == 3:
        hours, minutes, seconds = parts
    else:  # M, M:SS
        hours, (minutes, seconds) = 0, [*parts, 0][:2]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


_OF_ONE_JOB = ("array", "array_limit", "dependency")
"""What another job of the run does not take over."""
_TYPES = typing.get_type_hints(SlurmOptions)


def parse_slurm_options(
    argv: Sequence[str], before: Mapping[str, object] | None = None
) -> tuple[SlurmOptions, list[str]]:
    """The Slurm options of a command line and of the YAML files it names, and the other arguments.

    Args:
        before: what was asked for another job of the run, as JSON has it: holds where nothing else is given.

    Raises:
        ConfigError: an unknown option, a missing or wrong value.
    """
    values: dict[str, object] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in (before or {}).items()
        if name in _TYPES and name not in _OF_ONE_JOB
    }
    for source, section in slurm_sections(argv):
        for key, value in section.items():
            values[_name(str(key), source)] = _from_yaml(_name(str(key), source), value, source)
    rest: list[str] = []
    given: dict[str, list[str]] = {}
    arguments = list(argv)
    while arguments:
        argument = arguments.pop(0)
        if not argument.startswith(PREFIX):
            rest.append(argument)
            continue
        option, equals, value = argument.partition("=")
        name = _name(option.removeprefix(PREFIX), "")
        if not equals:
            # a value may begin with a dash, as in --slurm.extra --exclusive
            if not arguments or arguments[0].startswith(PREFIX):
                raise ConfigError(f"{option} has no value: {_expected(name)}")
            value = arguments.pop(0)
        given.setdefault(name, []).append(value)
    for name, texts in given.items():
        values[name] = _from_texts(name, texts)
    return SlurmOptions(**values), rest  # type: ignore[arg-type]


def describe_slurm_options() -> str:
    """The options as --help shows them."""
    lines = ["slurm: what is asked of the cluster, with `flash-launch submit`"]
    for name, text in field_docstrings(SlurmOptions).items():
        lines.append(f"  {_option(name):<26}{' '.join(text.split())}")
    return "\n".join(lines)


def _option(name: str) -> str:
    return PREFIX + name.replace("_", "-")


def _name(given: str, source: str) -> str:
    name = given.replace("-", "_")
    if name not in _TYPES:
        known = [field.name.replace("_", "-") for field in dataclasses.fields(SlurmOptions)]
        where = f"{source}: unknown key slurm.{given}" if source else f"unknown option {PREFIX}{given}"
        close = nearest(given, known)
        prefix = "slurm." if source else PREFIX
        told = close.replace("did you mean ", f"did you mean {prefix}").replace("--help", "submit --help")
        raise ConfigError(where + told)
    return name


def _expected(name: str) -> str:
    hint = _TYPES[name]
    if name == "array":
        return "it must be an option and its values, for example seed=0,1,2"
    return "it must be a whole number" if int in (hint, *typing.get_args(hint)) else "it must be a text"


def _from_texts(name: str, texts: Sequence[str]) -> object:
    hint = _TYPES[name]
    if name == "array":
        found: dict[str, list[object]] = {}
        for text in texts:
            key, equals, listed = text.partition("=")
            if not equals or not key.strip() or not all(part.strip() for part in listed.split(",")):
                raise ConfigError(f"--slurm.array was given {text}: {_expected(name)}")
            found[key.strip().removeprefix("--").replace("-", "_")] = [part.strip() for part in listed.split(",")]
        return found
    if hint == tuple[str, ...]:
        return tuple(texts)
    if int in (hint, *typing.get_args(hint)):
        try:
            return int(texts[-1])
        except ValueError:
            raise ConfigError(f"{_option(name)} was given {texts[-1]}: {_expected(name)}") from None
    return texts[-1]


def _from_yaml(name: str, value: object, source: str) -> object:
    hint = _TYPES[name]
    wrong = ConfigError(f"{source}: slurm.{name} was given {value!r}: {_expected(name)}")
    if value is None:
        raise ConfigError(f"{source}: slurm.{name} has no value: {_expected(name)}")
    if name == "array":
        if not isinstance(value, Mapping) or not all(isinstance(one, list) and one for one in value.values()):
            raise ConfigError(f"{source}: slurm.array was given {value!r}: it must be like {{seed: [0, 1, 2]}}")
        return {str(key).replace("-", "_"): list(one) for key, one in value.items()}
    if hint == tuple[str, ...]:
        texts = value if isinstance(value, list) else [value]
        if not all(isinstance(text, str) for text in texts):
            raise wrong
        return tuple(texts)
    if int in (hint, *typing.get_args(hint)):
        if not isinstance(value, int) or isinstance(value, bool):
            raise wrong
        return value
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise wrong
    return str(value)
