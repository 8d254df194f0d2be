"""Takes a checkpoint out of a running fit: copies of what it holds, and what is stored already and only referred to."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn

from flash_launch.checkpoint.manifest import Manifest, Part, PhaseMark, Position
from flash_launch.checkpoint.rank_state import RankState
from flash_launch.checkpoint.writing import Job
from flash_strategies.agreement import ControlGroup
from flash_strategies.checkpoint.chunks import Slice, share, staged
from flash_strategies.checkpoint.engine_state import WEIGHT, frozen_slices, take_out, trainable_slices
from flash_strategies.digest import slice_digest
from flash_strategies.transition import Transitions

__all__ = ["BUFFER", "Told", "persistent_buffers", "take_job", "trainable_digest"]

BUFFER = "buffer"
"""Kind of a buffer, as WEIGHT is of a weight."""


@dataclass(frozen=True)
class Told:
    """What the manifest says of the run beside its position."""

    run: str
    """The run's own name."""
    attempt: int
    """Number of the attempt."""
    phases: tuple[PhaseMark, ...]
    """The phases so far."""
    metrics: dict[str, float]
    """The metrics of the last epoch that ended."""
    setup: str
    """The setup's name."""
    batch_size: int
    """Samples per rank and micro batch."""
    accumulate: int
    """Micro batches per step."""
    stopped_early: dict[str, object] | None = None
    """How the task ended the run here, before its last epoch."""


def take_job(
    task: nn.Module,
    transitions: Transitions,
    position: Position,
    told: Told,
    parts: Mapping[str, Part],
    own: RankState,
) -> Job:
    """This rank's part of a checkpoint, in CPU memory; on every rank, which compare their buffers.

    Args:
        task: whose buffers are meant.
        transitions: at an optimizer-step boundary.
        position: where the run is.
        told: what else the manifest says.
        parts: what is stored already, by name.
        own: this rank's own state, without buffers.
    """
    engine, control = transitions.engine, transitions.control
    rank, world_size = control.rank, control.world_size
    state = take_out(transitions)
    equal, differing = _compared(persistent_buffers(task), control)
    frozen = {
        f"{WEIGHT}/{name}": _typed(engine.parameters[name], digest) for name, digest in transitions.frozen().items()
    }
    buffers = {f"{BUFFER}/{name}": _typed(one, int(slice_digest(one))) for name, one in equal.items()}
    where = _stored({**frozen, **buffers}, parts)
    part: Part | None = None
    part_slices: list[Slice] = []
    if missing := [key for key in frozen if key not in where]:
        # with the buffers as they are now: those of a frozen part do not change either
        new_buffers = [key for key in buffers if key not in where]
        digests = {key: {**frozen, **buffers}[key] for key in (*missing, *new_buffers)}
        part = Part(f"step_{position.step}_attempt_{told.attempt}", told.run, digests, {})
        where |= dict.fromkeys(digests, part.name)
        weights = frozen_slices(engine, [_name(key) for key in missing], rank, world_size)
        part_slices = staged([*weights, *share(_buffer_slices(equal, new_buffers), rank, world_size)])
    own_buffers = [key for key in buffers if key not in where]
    slices = staged(
        [*trainable_slices(engine, rank, world_size), *share(_buffer_slices(equal, own_buffers), rank, world_size)]
    )
    keys_by_part: dict[str, list[str]] = {}
    for key, part_name in where.items():
        keys_by_part.setdefault(part_name, []).append(key)
    manifest = Manifest(
        f"step_{position.step}",
        told.run,
        told.attempt,
        position,
        time.time(),
        state.phase,
        state.fingerprint,
        told.phases,
        world_size,
        told.setup,
        told.batch_size,
        told.accumulate,
        told.metrics,
        tuple(buffers),
        keys_by_part,
        stopped_early=told.stopped_early,
    )
    own = replace(own, buffers={name: one.detach().cpu().clone() for name, one in differing.items()})
    return Job(manifest, json.dumps(state.to_json()).encode(), slices, part, part_slices, own.to_bytes())


def persistent_buffers(task: nn.Module) -> dict[str, torch.Tensor]:
    """The buffers that are part of the task's state_dict."""
    state = task.state_dict(keep_vars=True)
    return {name: one for name, one in task.named_buffers() if name in state and one.numel()}


def trainable_digest(names: Collection[str]) -> str:
    """SHA-256 of what trains."""
    return hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()


def _stored(digests: Mapping[str, str], parts: Mapping[str, Part]) -> dict[str, str]:
    """Key -> the part that holds it with this type and digest."""
    return {
        key: part.name for part in parts.values() for key, digest in part.digests.items() if digests.get(key) == digest
    }


def _compared(
    buffers: dict[str, torch.Tensor], control: ControlGroup
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Those that are equal on all ranks, and the others."""
    digests = torch.tensor([int(slice_digest(one)) for one in buffers.values()], dtype=torch.int64)
    low, high = control.min_max(digests)
    same = (low == high).tolist()
    equal = {name: one for (name, one), alike in zip(buffers.items(), same, strict=True) if alike}
    return equal, {name: one for name, one in buffers.items() if name not in equal}


def _typed(tensor: torch.Tensor, digest: int) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {digest & (2**64 - 1):016x}"


def _name(key: str) -> str:
    return key.partition("/")[2]


def _buffer_slices(buffers: Mapping[str, torch.Tensor], keys: list[str]) -> list[Slice]:
    found = []
    for key in keys:
        one = buffers[_name(key)]
        found.append(Slice(key, 0, one.detach().reshape(-1), one.numel()))
    return found
