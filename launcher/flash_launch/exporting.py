"""The command `export` before it needs torch: its arguments, the file it may write, and the checkpoint it reads."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flash_launch.checkpoint.attempts import read_attempts
from flash_launch.checkpoint.store import Found, Store
from flash_launch.errors import ConfigError
from flash_launch.option_parser import nearest
from flash_launch.run_folder import RunFolder

__all__ = ["HELP", "ExportOptions", "find_export", "read_export_options"]

HELP = """RUN is a run folder. The weights and buffers of a checkpoint are written as one file, a piece at a time, in
little memory, also while the run goes on.
  --to FILE           the file, which ends with .safetensors (with --format lightning: .ckpt)
  --checkpoint N      the checkpoint of step N; default: the newest that is as it was written
  --format FORMAT     safetensors: with the names of torchvision's model where the backbone is one of torchvision's,
                      else of the task's state_dict. lightning: a Lightning checkpoint, without optimizer state
  --dtype DTYPE       float32, bfloat16 or float16 for all weights; default: as they were trained, fp32 masters first
  --overwrite         replace FILE if it is there"""

_ENDINGS = {"safetensors": ".safetensors", "lightning": ".ckpt"}
_DTYPES = ("float32", "bfloat16", "float16")
_VALUES = {
    "--to": "a file, for example --to model.safetensors",
    "--checkpoint": "the step of a checkpoint, for example --checkpoint 120",
    "--format": f"one of {', '.join(_ENDINGS)}",
    "--dtype": f"one of {', '.join(_DTYPES)}",
}


@dataclass(frozen=True)
class ExportOptions:
    """What was asked for."""

    run: Path
    """The run folder."""
    target: Path
    """The file."""
    checkpoint: str | None
    """Name of the checkpoint; None: the newest."""
    lightning: bool
    """Write a Lightning checkpoint; else a safetensors file."""
    dtype: str | None
    """Type of the weights; None: as they are."""


def read_export_options(argv: Sequence[str]) -> ExportOptions:
    """The options of a command line, checked as far as that can be done without reading the checkpoint.

    Raises:
        ConfigError: an option that is unknown, wrong or missing, no run folder, or a file that cannot be written.
    """
    given: dict[str, str] = {}
    runs: list[str] = []
    overwrite = False
    arguments = list(argv)
    while arguments:
        argument = arguments.pop(0)
        option, equals, value = argument.partition("=")
        if not argument.startswith("-"):
            runs.append(argument)
        elif argument == "--overwrite":
            overwrite = True
        elif option not in _VALUES:
            raise ConfigError(f"export has no option {option}{nearest(option, [*_VALUES, '--overwrite'])}")
        elif not value if equals else not arguments or arguments[0].startswith("--"):
            raise ConfigError(f"{option} has no value: give {_VALUES[option]}")
        else:
            given[option] = value if equals else arguments.pop(0)
    if len(runs) != 1:
        raise ConfigError(
            f"export was given {len(runs)} run folders{': ' * bool(runs)}{', '.join(runs)}: it takes one, "
            "flash-launch export RUN --to FILE"
        )
    kind = given.get("--format", "safetensors")
    dtype = given.get("--dtype")
    if kind not in _ENDINGS:
        raise ConfigError(f"--format was given {kind}: it must be {_VALUES['--format']}")
    if dtype is not None and dtype not in _DTYPES:
        raise ConfigError(f"--dtype was given {dtype}: it must be {_VALUES['--dtype']}")
    step = given.get("--checkpoint", "").removeprefix("step_")
    if "--checkpoint" in given and not step.isdecimal():
        raise ConfigError(f"--checkpoint was given {given['--checkpoint']}: it must be {_VALUES['--checkpoint']}")
    run = RunFolder(Path(runs[0]))
    if not run.config_yaml.exists():
        raise ConfigError(f"export was given {run.path}, which is no run folder: it has no {run.config_yaml.name}")
    if "--to" not in given:
        raise ConfigError(f"export needs --to: give {_VALUES['--to']}")
    target = Path(given["--to"])
    _check_target(target, kind, run.checkpoints, overwrite=overwrite)
    return ExportOptions(run.path, target, f"step_{int(step)}" if step else None, kind == "lightning", dtype)


def _check_target(target: Path, kind: str, checkpoints: Path, *, overwrite: bool) -> None:
    if target.suffix != _ENDINGS[kind]:
        other = next((name for name, ending in _ENDINGS.items() if ending == target.suffix), None)
        hint = f", or --format {other}" if other else ""
        raise ConfigError(
            f"--to was given {target}: with --format {kind} it must end with {_ENDINGS[kind]}, by which other tools "
            f"know what it is; give {target.with_suffix(_ENDINGS[kind]) if target.name else 'a file'}{hint}"
        )
    folder = target.absolute().parent
    if not folder.is_dir():
        raise ConfigError(f"--to was given {target}, but there is no folder {folder}: make it, or give another file")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(f"--to was given {target}, but {folder} cannot be written to: give another file")
    if folder.resolve().is_relative_to(checkpoints.resolve()):
        raise ConfigError(f"--to was given {target}, which is among the run's own checkpoints: give another file")
    if target.is_dir():
        raise ConfigError(f"--to was given {target}, which is a folder: give a file")
    if target.exists() and not overwrite:
        raise ConfigError(f"--to was given {target}, which exists: give another file, or --overwrite")


def find_export(options: ExportOptions) -> tuple[Store, Found]:
    """The checkpoint that is to be exported, all of whose files are as they were written, by their checksums.

    Raises:
        CheckpointError: there are checkpoints, and none that can be used, or not the one that was named.
        ConfigError: there is none.
    """
    folder = RunFolder(options.run.absolute())
    attempts = read_attempts(folder.attempts)
    store = Store(folder.checkpoints)
    run = next((one.run for one in reversed(attempts) if one.run), "")
    found = store.newest(run, attempts, options.checkpoint)
    if found is not None:
        return store, found
    if folder.weights.exists():
        raise ConfigError(
            f"{options.run} has no checkpoint to export, it was run with --checkpoint-every 0: its last weights are in "
            f"{options.run / folder.weights.name}, under the names of the task's state_dict; take that file as it is"
        )
    raise ConfigError(f"{options.run} has no checkpoint to export: none was saved yet")
