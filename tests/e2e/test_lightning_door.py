"""A task of the package `lightning` under the command, with the user's callbacks and loggers, stopped and resumed."""

from __future__ import annotations

import csv
import json
import signal
from pathlib import Path

import pytest
import yaml
from command import flash_launch
from safetensors.torch import load_file

pytestmark = pytest.mark.timeout(600)

TASK = '''
import time

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def samples(count: int, seed: int) -> TensorDataset:
    x = torch.randn(count, 6, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(x, (x.sum(dim=1) > 0).long())


class Data(L.LightningDataModule):
    def __init__(self, batch_size: int) -> None:
        super().__init__()
        self.batch_size = batch_size

    def train_dataloader(self) -> DataLoader:
        return DataLoader(samples(64, 1), batch_size=self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(samples(32, 2), batch_size=self.batch_size)


class Task(L.LightningModule):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = nn.Sequential(nn.Linear(6, 8), net), nn.Linear(8, 2)

    def training_step(self, batch, index):
        time.sleep(0.1)
        loss = nn.functional.cross_entropy(self.head(self.backbone(batch[0])), batch[1])
        self.log("loss", loss)
        return loss

    def validation_step(self, batch, index) -> None:
        right = self.head(self.backbone(batch[0])).argmax(dim=1) == batch[1]
        self.log("accuracy", right.float().mean(), sync_dist=True)


class Count(Callback):
    """Counts steps over attempts; writes their number at the end."""

    def __init__(self, name: str) -> None:
        self.name, self.steps = name, 0

    def on_train_batch_end(self, *_: object) -> None:
        self.steps += 1

    def state_dict(self):
        return {"steps": self.steps}

    def load_state_dict(self, state) -> None:
        self.steps = state["steps"]

    def on_train_end(self, trainer, task) -> None:
        if trainer.is_global_zero:
            with open(f"{trainer.default_root_dir}/{self.name}", "w") as file:
                print(self.steps, type(task.logger).__name__, len(trainer.loggers), file=file)
'''

RUN = {
    "nodes": 2,
    "strategy": ["freeze_unfreeze", 1],
    "max_epochs": 3,
    "model": {"class_path": "lit.Task", "init_args": {"net": {"class_path": "torch.nn.Tanh"}}},
    "data": {"class_path": "lit.Data", "init_args": {"batch_size": 4}},
    "trainer": {
        "logger": ["csv", "tensorboard"],
        "log_every_n_steps": 1,
        "callbacks": [
            {"class_path": "lit.Count", "init_args": {"name": "counted"}},
            {"class_path": "lightning.pytorch.callbacks.LearningRateMonitor"},
        ],
    },
}


def logged(folder: Path) -> list[dict[str, str]]:
    with (folder / "csv" / "metrics.csv").open(newline="") as file:
        return [{name: value for name, value in row.items() if value} for row in csv.DictReader(file)]


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "lit.py").write_text(TASK)
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(RUN))
    return tmp_path


@pytest.mark.slow
def test_a_stopped_and_resumed_run_leaves_what_an_unstopped_one_leaves(here: Path) -> None:
    whole, stopped = here / "whole", here / "stopped"
    assert flash_launch(here, "--config", "run.yaml", "--output-dir", "whole").code == 0

    def in_the_middle() -> bool:
        return (stopped / "metrics.jsonl").exists() and '"step": 11' in (stopped / "metrics.jsonl").read_text()

    argv = ("--config", "run.yaml", "--output-dir", "stopped")
    answer = flash_launch(here, *argv, send=signal.SIGUSR1, when=in_the_middle)
    assert answer.code == 75, answer.out + answer.err
    answer = flash_launch(here, "resume", "stopped")
    assert answer.code == 0, answer.out + answer.err
    one, other = (load_file(folder / "model.safetensors") for folder in (whole, stopped))
    assert all((one[name] == other[name]).all() for name in one)
    assert logged(stopped) == logged(whole)
    assert [row["step"] for row in logged(whole) if "accuracy" in row] == ["7", "15", "23"]
    for folder in (whole, stopped):
        assert (folder / "counted").read_text().split() == ["24", "RunCSVLogger", "3"]
        assert yaml.safe_load((folder / "config.yaml").read_text())["trainer"] == RUN["trainer"]
        assert json.loads((folder / "plan.json").read_text())["trainer"] == RUN["trainer"]
        assert list((folder / "tensorboard").glob("events*"))


def test_what_contradicts_ends_before_the_start(here: Path) -> None:
    """By the launcher where a name is enough, by the preflight where classes are looked at."""
    for option, value, message in (
        (
            "max_epochs",
            "3",
            "--trainer.max_epochs 3 is not taken: the strategy's phases are counted in it: give --max-epochs",
        ),
        ("callbacks", "[{class_path: lit.Nobody}]", "--trainer.callbacks Nobody: "),
    ):
        answer = flash_launch(here, "--config", "run.yaml", "--output-dir", "run", f"--trainer.{option}", value)
        assert answer.code == 2
        assert message in answer.err
        assert not (here / "run").exists()
