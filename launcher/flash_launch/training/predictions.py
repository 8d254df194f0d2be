"""Predictions of all ranks, put together: each sample once, in the order of the data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytorch_lightning as pl
import torch.distributed as dist
from pytorch_lightning.callbacks import BasePredictionWriter
from pytorch_lightning.utilities import CombinedLoader

__all__ = ["Indices", "NotedIndices", "all_batches"]


@dataclass(frozen=True)
class Indices:
    """Which samples a loader gave to this rank."""

    batches: Sequence[Sequence[int]] = ()
    """By batch, the positions of its samples in the data set; no batch where that is not known."""
    size: int | None = None
    """Of the loader's batches."""


class NotedIndices(BasePredictionWriter):
    """Notes which samples this rank predicts."""

    def __init__(self) -> None:
        super().__init__(write_interval="epoch")
        self.of_loaders: list[Indices] = []
        """By loader: which samples were in its batches."""

    def write_on_epoch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        predictions: Sequence[object],
        batch_indices: Sequence[Sequence[Sequence[int]]],
    ) -> None:
        """Lightning's list is emptied afterwards."""
        given = trainer.predict_dataloaders
        loaders = CombinedLoader(given, "sequential").flattened
        self.of_loaders = [
            Indices([list(batch) for batch in batches], _batch_size(loader))
            for batches, loader in zip(batch_indices, loaders, strict=True)
        ]


def all_batches(batches: list[list[object]], indices: Indices) -> list[list[object]]:
    """The batches of a loader as one rank alone would have predicted them; every rank calls this, and gets all.

    Args:
        batches: of this rank, an item for each sample.
        indices: of this rank; where they are not known, the ranks' batches follow one another.
    """
    known = [len(batch) for batch in batches] == [len(batch) for batch in indices.batches]
    mine = (batches, indices.batches if known else None)
    world_size = dist.get_world_size() if dist.is_initialized() else 1
    found: list[tuple[list[list[object]], Sequence[Sequence[int]] | None]] = [mine] * world_size
    if world_size > 1:
        dist.all_gather_object(found, mine)
    by_position: dict[int, object] = {}
    for items, positions in found:
        if positions is None:
            return [batch for items, _ in found for batch in items]
        for batch, where in zip(items, positions, strict=True):
            by_position.update(zip(where, batch, strict=True))
    in_order = [by_position[position] for position in sorted(by_position)]
    size = indices.size or max((len(batch) for items, _ in found for batch in items), default=1)
    return [in_order[start : start + size] for start in range(0, len(in_order), size)]


def _batch_size(loader: object) -> int | None:
    size = getattr(loader, "batch_size", None) or getattr(getattr(loader, "batch_sampler", None), "batch_size", None)
    return size if isinstance(size, int) else None
