"""The invariants of DESIGN.md through LightningCLI and the name `lightning.pytorch`, which is imported before ours."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import lightning.pytorch as pl
import torch
import torch.distributed as dist
import yaml
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import LightningCLI
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

# isort: split
from flash_strategies import Everything, Matching, Nothing, Phase
from flash_strategies.lightning import FinetuningCallback, one_lightning

# isort: split
import pytorch_lightning

EPOCHS, STEPS, BATCH, RATE = 4, 2, 4, 1e-2
UNFROZEN, REFROZEN = 1, 3
"""The epochs in which the whole backbone trains are those from the first of these on, and before the second."""
ONES = pytorch_lightning.LightningModule is pl.LightningModule and one_lightning.used_distribution() == "lightning"


@dataclass(frozen=True)
class Case:
    """Fits on a setup."""

    setup: str

    world_size = 2
    suite = Path(__file__)

    @property
    def name(self) -> str:
        """For `run_case`."""
        return self.setup


@dataclass(frozen=True)
class Refreeze:
    """Frozen, unfrozen, and partly frozen again; with a phase more that changes nothing."""

    noop: bool = False

    name = "refreeze"

    def phases(self, max_epochs: int | None) -> tuple[Phase, ...]:
        """In the epochs above."""
        same = (Phase("the same", UNFROZEN + 1, Everything()),) if self.noop else ()
        refrozen = Phase("refrozen", REFROZEN, Matching(("backbone.2.*",)))
        return (Phase("frozen", 0, Nothing()), Phase("unfrozen", UNFROZEN, Everything()), *same, refrozen)


class Task(pl.LightningModule):
    """A backbone and a head."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(nn.Linear(6, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh())
        self.head = nn.Linear(width, 3)

    def train_dataloader(self) -> DataLoader[tuple[torch.Tensor, ...]]:
        """As many batches as there are steps."""
        return DataLoader(TensorDataset(torch.arange(STEPS)))

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        """Cross entropy of this rank's batch."""
        return loss_of(self, *batch_of(self.current_epoch, index, dist.get_rank()))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """All parameters."""
        return torch.optim.AdamW(self.parameters(), lr=RATE)


class Weights(Callback):
    """Copies of the whole weights before the first step and after each one; saves at the end of an epoch."""

    def __init__(self, folder: str | None = None) -> None:
        self.folder = folder
        self.seen: list[dict[str, torch.Tensor]] = []
        self.gradients: list[set[str]] = []

    def on_train_start(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        """Before the first step."""
        self._look(trainer)

    def on_before_optimizer_step(self, trainer: pl.Trainer, task: pl.LightningModule, optimizer: object) -> None:
        """Which parameters have a gradient buffer."""
        self.gradients.append({name for name, p in task.named_parameters() if p.grad is not None})

    def on_train_batch_end(self, trainer: pl.Trainer, task: pl.LightningModule, *_: object) -> None:
        """After a step."""
        self._look(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        """At the end of the epoch before the last transition."""
        if self.folder is not None and trainer.current_epoch == REFROZEN - 2:
            trainer.save_checkpoint(Path(self.folder) / "middle.ckpt")

    def _look(self, trainer: pl.Trainer) -> None:
        engine = next(one for one in trainer.callbacks if isinstance(one, FinetuningCallback)).transitions.engine
        found = {}
        for name, parameter in engine.parameters.items():
            with engine.gathered(parameter):
                found[name] = parameter.detach().clone()
        self.seen.append(found)


def batch_of(epoch: int, step: int, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs of shape (BATCH, 6) and labels of shape (BATCH,)."""
    generator = torch.Generator().manual_seed(1000 * epoch + 10 * step + rank)
    return torch.randn(BATCH, 6, generator=generator), torch.randint(0, 3, (BATCH,), generator=generator)


def loss_of(task: Task, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The mean over the batch."""
    return nn.functional.cross_entropy(task.head(task.backbone(inputs)), labels)


def trains(name: str, epoch: int) -> bool:
    """Whether a parameter trains in an epoch."""
    if not UNFROZEN <= epoch < REFROZEN:
        return name.startswith("head") or (epoch >= REFROZEN and name.startswith("backbone.2"))
    return True


def reference() -> list[dict[str, torch.Tensor]]:
    """The weights before the first step and after each, of plain torch on the whole batch."""
    task = Task()
    optimizer = torch.optim.AdamW(task.parameters(), lr=RATE)
    seen = [{name: p.detach().clone() for name, p in task.named_parameters()}]
    for epoch in range(EPOCHS):
        for step in range(STEPS):
            parts = [batch_of(epoch, step, rank) for rank in range(dist.get_world_size())]
            loss_of(task, *(torch.cat(tensors) for tensors in zip(*parts, strict=True))).backward()
            for name, parameter in task.named_parameters():
                if not trains(name, epoch):
                    parameter.grad = None
            optimizer.step()
            optimizer.zero_grad()
            seen.append({name: p.detach().clone() for name, p in task.named_parameters()})
    return seen


def strategy(setup: str) -> dict[str, object]:
    """As it stands in the YAML file."""
    ours = "flash_strategies.lightning"
    if setup == "ddp":
        options: dict[str, object] = {"find_unused_parameters": True, "process_group_backend": "gloo"}
        return {"class_path": f"{ours}.FinetuningDDPStrategy", "init_args": options}
    config = {
        "train_micro_batch_size_per_gpu": BATCH,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {"stage": int(setup[-1]), "reduce_bucket_size": 500},
    }
    options = {"config": config, "process_group_backend": "gloo"}
    return {"class_path": f"{ours}.FinetuningDeepSpeedStrategy", "init_args": options}


def fit(setup: str, folder: str | None = None, *, noop: bool = False, resume: Path | None = None) -> Weights:
    """One fit of a LightningCLI project."""
    finetuning = {"strategy": {"class_path": f"{__name__}.Refreeze", "init_args": {"noop": noop}}, "train_bn": False}
    text = yaml.safe_dump(
        {
            "max_epochs": EPOCHS,
            "accelerator": "cpu",
            "devices": int(os.environ["LOCAL_WORLD_SIZE"]),
            "strategy": strategy(setup),
            "callbacks": [
                {"class_path": "flash_strategies.lightning.ScheduledFinetuning", "init_args": finetuning},
                {"class_path": f"{__name__}.Weights", "init_args": {"folder": folder}},
            ],
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "use_distributed_sampler": False,
        }
    )
    cli = LightningCLI(
        Task, args={"trainer": yaml.safe_load(text)}, run=False, save_config_callback=None, seed_everything_default=0
    )
    cli.trainer.fit(cli.model, ckpt_path=resume)
    return next(one for one in cli.trainer.callbacks if isinstance(one, Weights))


def same(some: Mapping[str, torch.Tensor], others: Mapping[str, torch.Tensor]) -> bool:
    """Bit for bit."""
    return all(torch.equal(some[name], others[name]) for name in some) and some.keys() == others.keys()


def run_case(name: str) -> dict[str, object]:
    """What was found, to be looked at by the test."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    folders: list[object] = [tempfile.mkdtemp()]
    dist.broadcast_object_list(folders)
    folder = Path(str(folders[0]))
    whole = fit(name, str(folder))
    again, resumed = fit(name, noop=True), fit(name, resume=folder / "middle.ckpt")
    frozen = [
        {n for n in before if torch.equal(before[n], after[n])}
        for before, after in zip(whole.seen, whole.seen[1:], strict=False)
    ]
    expected = reference()
    return {
        "one": ONES,
        "weights": whole.seen,
        "apart": max(
            float((mine[n] - theirs[n]).abs().max())
            for mine, theirs in zip(whole.seen, expected, strict=True)
            for n in mine
        ),
        "unmoved": frozen,
        "gradients": whole.gradients,
        "noop": all(same(a, b) for a, b in zip(whole.seen, again.seen, strict=True)),
        "resumed": (len(resumed.seen), same(resumed.seen[-1], whole.seen[-1])),
    }
