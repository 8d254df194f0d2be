"""Flash's Trainer on one rank or more: the invariants of a finetuning run, found through `finetune()`."""

from __future__ import annotations

import logging
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import flash_launch as flash
from flash_strategies import Everything, LastLayers, Matching, Nothing, Phase

EPOCHS, STEPS, BATCH = 4, 3, 4
MILESTONES = ("unfreeze_milestones", ((1, 2), 1))
SAVED = 5
"""Optimizer steps done when a checkpoint is saved: in epoch 1, after an unfreeze."""
ALL = {f"{layer}.{kind}" for layer in ("backbone.0", "backbone.1", "backbone.3", "head") for kind in ("weight", "bias")}
HEAD = {name for name in ALL if name.startswith("head")}
LAST = {name for name in ALL if name.startswith("backbone.3")}
TRAINS = (HEAD, HEAD | LAST, ALL, ALL)
"""What trains in each epoch of MILESTONES."""


@dataclass(frozen=True)
class Case:
    """The Trainer on a setup."""

    world_size: int
    setup: str

    suite = Path(__file__)

    @property
    def name(self) -> str:
        """For `run_case`."""
        return f"{self.world_size}-{self.setup}"


class Task(pl.LightningModule):
    """A backbone and a head; batches by epoch, number and rank."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh())
        self.head = nn.Linear(8, 3)

    def loader(self) -> DataLoader[tuple[torch.Tensor, ...]]:
        """As many batches as there are steps."""
        return DataLoader(TensorDataset(torch.arange(STEPS)))

    train_dataloader = val_dataloader = test_dataloader = loader

    def loss(self, epoch: int, index: int, rank: int) -> torch.Tensor:
        """Cross entropy of a batch."""
        generator = torch.Generator().manual_seed(1000 * epoch + 10 * index + rank)
        inputs, labels = torch.randn(BATCH, 6, generator=generator), torch.randint(0, 3, (BATCH,), generator=generator)
        return nn.functional.cross_entropy(self.head(self.backbone(inputs)), labels)

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        """The loss."""
        return self.loss(self.trainer.current_epoch, batch_idx, self.global_rank)

    def validation_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
        """Log the loss."""
        self.log("loss", self.loss(0, batch_idx, self.global_rank), sync_dist=True)

    test_step = validation_step

    def predict_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        """Logits that name the sample: (n, 5)."""
        nothing = 0 * self.head(self.backbone(torch.zeros(len(batch[0]), 6))).sum()  # at ZeRO-3, gathers
        return 10.0 * nn.functional.one_hot(batch[0], 5).float() + nothing

    def configure_optimizers(self) -> dict[str, object]:
        """The backbone at another rate."""
        groups = [{"params": self.backbone.parameters(), "lr": 3e-3}, {"params": self.head.parameters()}]
        optimizer = torch.optim.AdamW(groups, lr=1e-2)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * STEPS, eta_min=1e-4)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Watch(pl.Callback):
    """Notes the weights after each step, and what holds a gradient; saves once."""

    def __init__(self, save: Path | None = None) -> None:
        self.save = save
        self.weights: list[dict[str, torch.Tensor]] = []
        self.held: list[set[str]] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """A fit begins."""
        self.weights, self.held = [_whole(trainer)], []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: object) -> None:
        """After the optimizer's step."""
        self.weights.append(_whole(trainer))
        self.held.append({name for cohort in _engine(trainer).cohorts for name in cohort.names})
        if self.save is not None and trainer.global_step == SAVED:
            trainer.save_checkpoint(self.save)


class Listed:
    """A strategy of phases."""

    name = "listed"

    def __init__(self, *given: object) -> None:
        self._given = given

    def phases(self, max_epochs: int | None) -> tuple[Phase, ...]:
        """One an epoch."""
        return tuple(Phase(str(i), i, what) for i, what in enumerate(self._given))  # type: ignore[arg-type]


def trainer_on(setup: str, *callbacks: pl.Callback, deals_out: bool = False) -> flash.Trainer:
    """A Trainer; one that deals loaders out to ranks, or leaves that to the task."""
    return flash.Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        devices=int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
        strategy=setup,
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=deals_out,
    )


def run_case(name: str) -> dict[str, object]:
    """What holds, by invariant."""
    _, setup = name.split("-", 1)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    folders: list[object] = [tempfile.mkdtemp()]
    if dist.is_initialized():
        dist.broadcast_object_list(folders)
    saved = Path(str(folders[0])) / "fit.ckpt"
    task, watch = Task(), Watch(saved)
    trainer = trainer_on(setup, watch)
    trainer.finetune(task, strategy=MILESTONES, train_bn=False)
    first, held = watch.weights, watch.held
    found: dict[str, object] = {
        "strategy": type(trainer.strategy).__name__,
        "digests": [sum(float(w.double().sum()) for w in step.values()).hex() for step in first],
        "frozen moved": [
            n
            for i, trains in enumerate(TRAINS)
            for n in ALL - trains
            if not _same(n, first, i * STEPS, (i + 1) * STEPS)
        ],
        "unmoved": [n for i, trains in enumerate(TRAINS) for n in trains if _same(n, first, i * STEPS, i * STEPS + 1)],
        "held": [held[i * STEPS] == trains for i, trains in enumerate(TRAINS)],
        "error": _distance(first[-1], _reference()),
    }
    # fit, validate and test of the same trainer; then once more, as if it were the first time
    found["losses"] = [round(loop(task, verbose=False)[0]["loss"], 5) for loop in (trainer.validate, trainer.test)]
    loader = DataLoader(TensorDataset(torch.arange(5)), batch_size=2)
    found["predicted"] = trainer_on(setup, deals_out=True).predict(Task(), loader, output="classes")
    assert found["predicted"] == trainer.predict(task, loader, output="classes")
    watch.save = None
    trainer.finetune(task, strategy="freeze", train_bn=False)
    again = watch.weights
    fresh = Task()
    fresh.load_state_dict(first[-1])
    other = Watch()
    trainer_on(setup, other).finetune(fresh, strategy="freeze", train_bn=False)
    found["again"] = _distance(again[-1], other.weights[-1])
    found["again begins"] = _distance(again[0], first[-1])
    # a checkpoint of after an unfreeze
    resumed = Watch()
    trainer_on(setup, resumed).finetune(Task(), strategy=MILESTONES, train_bn=False, ckpt_path=saved)
    found["resumed"] = (len(resumed.weights), _distance(resumed.weights[-1], first[-1]))
    # a transition that changes nothing
    plain, noop = Watch(), Watch()
    names = Matching(("backbone.3.*",))
    trainer_on(setup, plain).finetune(Task(), strategy=Listed(Nothing(), LastLayers(1)), train_bn=False)
    trainer_on(setup, noop).finetune(Task(), strategy=Listed(Nothing(), LastLayers(1), names), train_bn=False)
    found["noop"] = _distance(plain.weights[-1], noop.weights[-1])
    found["refrozen"] = _refrozen(setup)
    return found


def _refrozen(setup: str) -> float:
    """How far a refrozen layer moves."""
    watch = Watch()
    trainer_on(setup, watch).finetune(Task(), strategy=Listed(Everything(), Nothing()), train_bn=False)
    frozen = [{n: w for n, w in step.items() if n not in HEAD} for step in (watch.weights[STEPS], watch.weights[-1])]
    return _distance(*frozen)


def _reference() -> dict[str, torch.Tensor]:
    """Plain torch in one process on all ranks' batches; an optimizer group for each part, so states begin with it."""
    task = Task()
    world = dist.get_world_size() if dist.is_initialized() else 1
    optimizer = task.configure_optimizers()["optimizer"]
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * STEPS, eta_min=1e-4)
    for epoch, trains in enumerate(TRAINS):
        for name, parameter in task.named_parameters():
            parameter.requires_grad_(name in trains)
        for index in range(STEPS):
            optimizer.zero_grad()
            torch.stack([task.loss(epoch, index, rank) for rank in range(world)]).mean().backward()
            optimizer.step()
            schedule.step()
    return {name: p.detach() for name, p in task.named_parameters()}


def _engine(trainer: pl.Trainer) -> object:
    return trainer._finetuning.transitions.engine  # type: ignore[attr-defined]


def _whole(trainer: pl.Trainer) -> dict[str, torch.Tensor]:
    engine = _engine(trainer)
    found = {}
    for name, parameter in engine.parameters.items():  # type: ignore[attr-defined]
        with engine.gathered(parameter):  # type: ignore[attr-defined]
            found[name] = parameter.detach().clone()
    return found


def _same(name: str, steps: list[dict[str, torch.Tensor]], before: int, after: int) -> bool:
    return torch.equal(steps[before][name], steps[after][name])


def _distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    return max(float((one[name] - other[name]).abs().max()) for name in one)


if __name__ == "__main__":
    print(run_case("1-auto"))
