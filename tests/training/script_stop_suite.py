"""Fits of flash.Trainer in a run folder, stopped and resumed: each case gives what differs from one that was not."""

from __future__ import annotations

import itertools
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
from flash_launch.training import script_stop
from flash_strategies import agreed_looks, run_session

EPOCHS, STEPS, BATCH = 3, 5, 4
STOPS = {"frozen": (2, 3), "an epoch's last step": (5, 5), "unfrozen": (8, 9), "the last epoch": (13, 14)}
"""After which step one rank is asked, and how many steps are done when all stop."""


@dataclass(frozen=True)
class Case:
    """Fits on a setup."""

    world_size: int
    setup: str

    suite = Path(__file__)

    @property
    def name(self) -> str:
        """The setup, for `run_case`; `lightning` is Lightning's own Trainer, without finetuning."""
        return self.setup


class Task(pl.LightningModule):
    """Dropout, whose masks follow from random states, and a batch norm, whose statistics differ between ranks."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.3))
        self.head = nn.Linear(8, 3)
        self.seen: list[float] = []

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        inputs, labels = batch
        self.seen.append(float(inputs[0, 0]))
        return nn.functional.cross_entropy(self.head(self.backbone(inputs)), labels)

    def configure_optimizers(self) -> dict[str, object]:
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)}


class StopAt(pl.Callback):
    """Asks one rank to stop, as the launcher's signal does, after so many steps."""

    def __init__(self, step: int) -> None:
        self._step = step

    def on_train_batch_end(self, trainer: pl.Trainer, *_: object) -> None:
        if trainer.global_step == self._step and trainer.global_rank == trainer.world_size - 1:
            run_session.note_stop()


def train(setup: str, stop_at: int = -1) -> tuple[object, Task]:
    """A fit, as one start of a script makes it; the exit code, and the task."""
    script_stop._calls = itertools.count(1)
    run_session._stop.clear()
    torch.manual_seed(5 + int(os.environ["RANK"]))
    generator = torch.Generator().manual_seed(1)
    data = TensorDataset(torch.randn(40, 6, generator=generator), torch.randint(0, 3, (40,), generator=generator))
    task = Task()
    plain = setup == "lightning"
    trainer = (pl.Trainer if plain else flash.Trainer)(
        max_epochs=EPOCHS,
        accelerator="cpu",
        devices=int(os.environ["LOCAL_WORLD_SIZE"]),
        strategy="ddp" if plain else setup,
        callbacks=[StopAt(stop_at)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loader = DataLoader(data, batch_size=BATCH, shuffle=True)
    try:
        if plain:
            trainer.fit(task, loader, ckpt_path=script_stop.resumable(trainer, None))
        else:
            trainer.finetune(task, loader, strategy=("freeze_unfreeze", 1))
    except SystemExit as end:
        return end.code, task
    return 0, task


def state(task: Task) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in task.state_dict().items()}


def shared_folder() -> Path:
    made = [tempfile.mkdtemp() if dist.get_rank() == 0 else ""]
    dist.broadcast_object_list(made)
    return Path(made[0])


def run_case(name: str) -> dict[str, object]:
    """By the stop: exit codes, whether the rest was seen, and tensors that differ at the end."""
    folder = shared_folder()
    agreed_looks._MOST_STEPS = 1  # so short steps would be over before the ranks look again
    os.environ |= {"FLASH_LAUNCH_RUN": str(folder / "whole"), "FLASH_LAUNCH_ATTEMPT": "1"}
    code, whole = train(name)
    assert code == 0
    found: dict[str, object] = {}
    for when, (step, _) in STOPS.items():
        os.environ |= {"FLASH_LAUNCH_RUN": str(folder / when), "FLASH_LAUNCH_ATTEMPT": "1"}
        first, stopped = train(name, step)
        os.environ["FLASH_LAUNCH_ATTEMPT"] = "2"
        second, resumed = train(name)
        left = sorted(path.name[:10] for path in (folder / when / "checkpoints").iterdir())
        differing = [key for key, value in state(whole).items() if not torch.equal(value, state(resumed)[key])]
        same = stopped.seen + resumed.seen == whole.seen
        found[when] = (first, len(stopped.seen), second, same, differing, left)
        os.environ["FLASH_LAUNCH_ATTEMPT"] = "3"
        third, over = train(name)
        again = [key for key, value in state(whole).items() if not torch.equal(value, state(over)[key])]
        found[f"over: {when}"] = (third, over.seen, again)
    del os.environ["FLASH_LAUNCH_RUN"]
    return found
