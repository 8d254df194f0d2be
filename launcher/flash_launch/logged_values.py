"""Reduces what a task logs for an epoch over the ranks, so that every rank sees the value of all samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import pytorch_lightning as pl
from tqdm.auto import tqdm

from flash_strategies.lightning import FinetuningCallback
from flash_strategies.lightning.private import EpochValue, reduce_logged

__all__ = ["LoggedValues", "reduced"]


class LoggedValues(pl.Callback):
    """Stands behind the finetuning callback, and before what brings back the values of an epoch that is resumed."""

    def __init__(self, finetuning: FinetuningCallback) -> None:
        """Prepare.

        Args:
            finetuning: its group of ranks is used.
        """
        self._finetuning = finetuning
        self._said: set[str] = set()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin, where there is more than one rank."""
        if trainer.world_size > 1:
            reduce_logged(trainer, self._reduce)

    def _reduce(self, own: dict[str, EpochValue]) -> dict[str, tuple[tuple[str, ...], float]]:
        control = self._finetuning.transitions.control
        ranks = cast("list[dict[str, EpochValue]]", control.gather(own, "the end of an epoch's batches"))
        found: dict[str, tuple[tuple[str, ...], float]] = {}
        for key in dict.fromkeys(key for values in ranks for key in values):
            those = [rank for rank, values in enumerate(ranks) if key in values]
            first = ranks[those[0]][key]
            found[key] = (first.names, reduced([ranks[rank][key] for rank in those]))
            if len(those) < len(ranks) and first.names[0] not in self._said and control.rank == 0:
                self._said.add(first.names[0])
                who = f"rank {those[0]}" if len(those) == 1 else f"ranks {', '.join(map(str, those))}"
                tqdm.write(f"note: {first.names[0]} is logged on {who} only, so it is of {who}'s samples, not of all")
        return found


def reduced(values: Sequence[EpochValue]) -> float:
    """One value of several ranks': a mean is weighted by samples.

    Args:
        values: of one key, of ranks that logged it.
    """
    match values[0].reduction:
        case "sum":
            return sum(one.value for one in values)
        case "max":
            return math.nan if any(math.isnan(one.value) for one in values) else max(one.value for one in values)
        case "min":
            return math.nan if any(math.isnan(one.value) for one in values) else min(one.value for one in values)
    weight = sum(one.weight for one in values)
    return sum(one.value * one.weight for one in values) / weight if weight else math.nan
