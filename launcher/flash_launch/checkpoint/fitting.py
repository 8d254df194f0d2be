"""Whether a run, as its options ask for it now, can go on from a checkpoint; asked before any rank starts."""

from __future__ import annotations

import json
from pathlib import Path

from flash_launch.assembly import Assembly
from flash_launch.checkpoint.manifest import Manifest, PhaseMark, read
from flash_launch.checkpoint.resumer import position_in
from flash_launch.checkpoint.snapshot import trainable_digest
from flash_launch.checkpoint.writing import ENGINE_STATE
from flash_launch.errors import ConfigError
from flash_strategies.checkpoint.engine_state import EngineState
from flash_strategies.errors import CheckpointError
from flash_strategies.phases import phase_at

__all__ = ["check_fits"]


def check_fits(assembly: Assembly, folder: Path) -> list[str]:
    """What the user should know of going on from a checkpoint, a sentence each.

    Raises:
        CheckpointError: it is of another model.
        ConfigError: epochs that have begun would have trained something else.
    """
    manifest = read(folder)
    state = EngineState.from_json(json.loads((folder / ENGINE_STATE).read_text(encoding="utf-8")))
    sizes = dict(assembly.task.named_parameters())
    if unknown := [name for name in state.trainable if name not in sizes]:
        raise CheckpointError(
            f"{folder} trains {unknown[0]}, which {type(assembly.task).__name__} does not have: go on with the task "
            "and the model that the run was started with"
        )
    _check_phases(assembly, manifest)
    return _batches(assembly, manifest)


def _check_phases(assembly: Assembly, manifest: Manifest) -> None:
    if not assembly.phases:
        return
    at = manifest.position
    for epoch in range(at.epoch + (at.batch > 0)):
        now, then = phase_at(assembly.phases, epoch), _mark(manifest, epoch)
        if then is not None and trainable_digest(now.selection.trainable) != then.trainable:
            raise ConfigError(
                f"with these options epoch {epoch} trains phase {now.phase.name!r}, but the run has done it in phase "
                f"{then.name!r}: --strategy and its options may change only what comes after {at}"
            )


def _mark(manifest: Manifest, epoch: int) -> PhaseMark | None:
    return next((mark for mark in reversed(manifest.phases) if mark.first_epoch <= epoch), None)


def _batches(assembly: Assembly, manifest: Manifest) -> list[str]:
    config, saved = assembly.config, manifest.position
    told: list[str] = []
    before = manifest.batch_size * manifest.accumulate * manifest.world_size
    after = config.batch_size * config.accumulate * assembly.world_size
    if before != after:
        told.append(
            f"an optimizer step takes {after} samples from now on, before it took {before}; with --batch-size and "
            "--accumulate it can be kept"
        )
    now = position_in(saved, batch_size=config.batch_size, accumulate=config.accumulate, world_size=assembly.world_size)
    if now.samples != saved.samples:
        told.append(
            f"{saved.samples - now.samples} samples of epoch {saved.epoch} are seen a second time, because its "
            f"{saved.samples} samples so far are no whole number of optimizer steps now"
        )
    return told
