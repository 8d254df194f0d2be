"""The task and the strategy of the matrix; the task notes what a rank holds at the positions of the cases."""

from __future__ import annotations

from itertools import pairwise

import pytorch_lightning as pl
import torch
from matrix_cases import POSITIONS, TRANSITION, State
from torch import nn

from flash_launch.tasks.sample_mean import SampleMean
from flash_strategies import Everything, LastLayers, Matching, Nothing, Phase
from flash_strategies.lightning import FinetuningCallback

WIDTHS = (64, 13, 11, 9, 7)  # odd, so that partitions end in the middle of a parameter


class Swap:
    """The head; the last two layers; the first two in their stead; everything."""

    name = "swap"

    def phases(self, max_epochs: int | None) -> tuple[Phase, ...]:
        return (
            Phase("head", 0, Nothing()),
            Phase("last two", TRANSITION - 1, LastLayers(2)),
            Phase("first two", TRANSITION, Matching(("backbone.0.*", "backbone.1.*"))),
            Phase("all", TRANSITION + 2, Everything()),
        )


class Net(pl.LightningModule):
    """A chain of layers; the optimizer is the run's. Nothing in it depends on how a batch is dealt out.

    With `norms` it does: batch norms, and dropout from each rank's own random state.
    """

    batches: torch.Tensor

    def __init__(self, norms: bool = False) -> None:
        super().__init__()
        layers = (
            nn.Sequential(nn.Linear(i, o), _norm(o) if norms else nn.Identity(), nn.Tanh()) for i, o in pairwise(WIDTHS)
        )
        self.backbone = nn.Sequential(*layers)
        self.head = nn.Linear(WIDTHS[-1], 5)
        self.train_mean, self.val_mean = SampleMean(), SampleMean()
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))
        self.states: dict[int, State] = {}

    def _loss(self, batch: list[torch.Tensor]) -> torch.Tensor:
        images, labels = batch
        return nn.functional.cross_entropy(self.head(self.backbone(images.flatten(1))), labels)

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        loss = self._loss(batch)
        self.batches += 1
        self.train_mean.update(loss, len(batch[0]))
        self.log("train_loss_epoch", self.train_mean, on_step=False, on_epoch=True, batch_size=len(batch[0]))
        self.log("own_loss", loss.detach(), on_step=False, on_epoch=True, batch_size=len(batch[0]))  # of rank 0
        return loss

    def validation_step(self, batch: list[torch.Tensor], index: int) -> None:
        self.val_mean.update(self._loss(batch), len(batch[0]))
        self.log("val_loss", self.val_mean, on_step=False, on_epoch=True, batch_size=len(batch[0]))

    def on_train_start(self) -> None:
        self._note()  # what was loaded

    def on_train_batch_end(self, *_: object) -> None:
        if self.global_step in POSITIONS.values():
            self._note()

    def _note(self) -> None:
        callbacks: list[pl.Callback] = self.trainer.callbacks  # type: ignore[attr-defined]
        (callback,) = (one for one in callbacks if isinstance(one, FinetuningCallback))
        engine = callback.transitions.engine
        weights = {}
        for name, parameter in self.named_parameters():
            with engine.gathered(parameter):
                weights[name] = parameter.detach().clone()
        rates: dict[str, float] = {}
        for index, cohort in enumerate(engine.cohorts):
            rate = engine.groups.options(index)["lr"]
            assert isinstance(rate, float)
            rates.update(dict.fromkeys(cohort.names, rate))
        self.states[self.global_step] = State(
            self.global_step,
            tuple(name for cohort in engine.cohorts for name in cohort.names),
            weights,
            [(kind, chunk.name, chunk.start, chunk.tensor.clone()) for kind, chunk in engine.state()],
            engine.steps(),
            rates,
        )


def _norm(width: int) -> nn.Module:
    return nn.Sequential(nn.BatchNorm1d(width), nn.Dropout(0.2))
