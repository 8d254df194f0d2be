"""A checkpoint that all ranks of a script write into one folder, which is there whole or not at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NoReturn

import torch.distributed as dist

from flash_strategies.agreement import ControlGroup
from flash_strategies.errors import CheckpointError
from flash_strategies.reporting import NOTES, say
from flash_strategies.run_session import EXIT_STOPPED, RunSession

POSITION = "position.json"
"""The file in it that says where the script was; written last."""


def remove_cut_off(folder: Path, prefix: str = "") -> None:
    """Remove what saves left in a folder that were cut off, of checkpoints whose names begin so; on one rank."""
    for left in folder.glob(f".{prefix}*.tmp"):
        shutil.rmtree(left, ignore_errors=True)


def write_whole(
    control: ControlGroup,
    path: Path,
    write: Callable[[Path], None],
    position: Mapping[str, int],
    *,
    session: RunSession | None,
    outdated: Callable[[], Iterable[Path]],
) -> None:
    """Write a checkpoint; every rank calls it.

    Args:
        control: the ranks.
        path: of the folder; one that is there is replaced.
        write: writes this rank's part into the folder that it is given.
        position: where the script is; the number of ranks is added.
        session: of the run, whose newer attempts own the folder.
        outdated: checkpoints to remove, asked for on rank 0 when this one is there.

    Raises:
        CheckpointError: a newer attempt of the run has begun.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    if control.rank == 0:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    control.meet(f"saving {path}")
    write(temporary)
    control.meet(f"saving {path}")
    if control.rank == 0:
        if session is not None and session.superseded:
            raise CheckpointError(f"attempt {session.attempt} of this run was superseded: it saves nothing more")
        (temporary / POSITION).write_text(json.dumps({**position, "ranks": control.world_size}), encoding="utf-8")
        shutil.rmtree(path, ignore_errors=True)
        temporary.rename(path)
        for old in outdated():
            shutil.rmtree(old, ignore_errors=True)
    control.meet(f"saving {path}")


def leave(*, groups: bool) -> NoReturn:
    """End this rank, which has saved because it was asked to stop.

    Args:
        groups: let go of the process groups before, where nobody else does.

    Raises:
        SystemExit: with EXIT_STOPPED, always.
    """
    say("stopped, as was asked; all is saved, and the next start resumes here", NOTES)
    if groups and dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
    raise SystemExit(EXIT_STOPPED)
