"""Sweeps: one run for each combination of some options' values, in a folder that holds all their run folders."""

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from flash_launch.errors import ConfigError
from flash_launch.option_parser import nearest
from flash_launch.options import option_name
from flash_launch.run_folder import write_json

__all__ = ["SweepTask", "combinations", "option_arguments", "sweep_tasks", "write_sweep"]

_MOST = 1000
_NOT_SWEPT = ("nodes", "procs_per_node", "hosts", "hostfile", "output_dir", "resume", "accelerator")


@dataclass(frozen=True)
class SweepTask:
    """One run of a sweep."""

    index: int
    """Its number, from 0: the task of the array."""
    folder: str
    """Name of its run folder."""
    values: dict[str, str]
    """What its options are, by name."""


def combinations(array: Mapping[str, Sequence[object]], options: Sequence[str]) -> list[dict[str, str]]:
    """All combinations of the values of some options, the last one changing first.

    Raises:
        ConfigError: no such option, one that all runs must share, or too many runs.
    """
    for name in array:
        if name not in options:
            raise ConfigError(f"--slurm.array: unknown option {name!r}{nearest(name, options)}")
        if name in _NOT_SWEPT:
            raise ConfigError(f"--slurm.array: {option_name(name)} cannot differ between the runs of a sweep")
        if len(set(map(str, array[name]))) != len(array[name]):
            raise ConfigError(f"--slurm.array: {name} has a value twice: {', '.join(map(str, array[name]))}")
    found = [
        dict(zip(array, map(_text, values), strict=True)) for values in itertools.product(*(array[n] for n in array))
    ]
    if len(found) > _MOST:
        raise ConfigError(f"--slurm.array asks for {len(found)} runs: at most {_MOST} in one sweep")
    return found


def sweep_tasks(values: Sequence[Mapping[str, str]]) -> list[SweepTask]:
    """A task for each combination, whose folder's name tells its values."""
    width = len(str(len(values) - 1))
    return [
        SweepTask(
            index,
            "-".join([f"{index:0{width}}", *(f"{name}={_safe(text)}" for name, text in one.items())]),
            dict(one),
        )
        for index, one in enumerate(values)
    ]


def option_arguments(values: Mapping[str, str]) -> list[str]:
    """The values as a command line gives them."""
    return [f"{option_name(name)}={text}" for name, text in values.items()]


def write_sweep(folder: Path, name: str, tasks: Sequence[SweepTask]) -> None:
    """Write sweep.json: what the sweep's runs are."""
    parameters = list(tasks[0].values) if tasks else []
    write_json(folder / "sweep.json", {"name": name, "parameters": parameters, "tasks": [asdict(one) for one in tasks]})


def _safe(text: str) -> str:
    return re.sub(r"[^\w.+-]", "_", text)


def _text(value: object) -> str:
    return {True: "true", False: "false"}.get(value, str(value)) if isinstance(value, bool) else str(value)
