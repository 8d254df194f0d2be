"""A user's own schedule with rates, and `with_rate`, through each door on one rank: the same rates everywhere."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

import flash_launch as flash
from flash_launch.config import RunConfig
from flash_launch.finetuning import build_finetuning
from flash_strategies import Everything, Finetuner, LastLayers, Nothing, Phase, Rate, ScheduledFinetuning, with_rate
from flash_strategies.accelerate import AccelerateFinetuner

EPOCHS, STEPS, LR = 5, 2, 0.1

SOURCE = """
from flash_strategies import Everything, LastLayers, Nothing, Phase, Rate

class Mine:
    name = "mine"
    def phases(self, max_epochs):
        return (
            Phase("head", 0, Nothing()),
            Phase("last", 1, LastLayers(1), Rate(ratio=0.25, ramp=2)),
            Phase("all", 3, Everything(), Rate(lr=0.004)),
        )
"""


class Mine:
    """A user's own strategy."""

    name = "mine"

    def phases(self, max_epochs: int | None) -> tuple[Phase, ...]:
        return (
            Phase("head", 0, Nothing()),
            Phase("last", 1, LastLayers(1), Rate(ratio=0.25, ramp=2)),
            Phase("all", 3, Everything(), Rate(lr=0.004)),
        )


def mine() -> tuple[object, Rate | None]:
    return Mine(), None


def rated() -> tuple[object, Rate | None]:
    return with_rate(("freeze_unfreeze", 2), Rate(ratio=0.1, ramp=4)), None


def given() -> tuple[object, Rate | None]:
    return ("freeze_unfreeze", 2), Rate(ratio=0.1, ramp=4)


WANTED = {
    mine: [(None, None), (0.025, None), (0.05, None), (0.1, 0.004), (0.1, 0.004)],
    rated: [(None, None), (None, None), (0.01, 0.01), (0.04, 0.04), (0.1, 0.1)],
}
"""Rates of the last layer and of the first, by epoch."""


class Task(pl.LightningModule):
    """A backbone of two layers and a head; notes the rates of each epoch's last step."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 3))
        self.head = nn.Linear(3, 1)
        self.rates: dict[int, tuple[float | None, float | None]] = {}

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.head(self.backbone(inputs))

    def note(self, epoch: int, groups: list[dict[str, object]]) -> None:
        of = {id(p): float(group["lr"]) for group in groups for p in group["params"]}
        last, first = (self.backbone[index].weight for index in (1, 0))
        self.rates[epoch] = (of.get(id(last)), of.get(id(first)))

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        self.note(self.trainer.current_epoch, self.trainer.optimizers[0].param_groups)
        return self(batch[0]).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=LR)

    def train_dataloader(self) -> torch.utils.data.DataLoader[tuple[torch.Tensor, ...]]:
        data = torch.utils.data.TensorDataset(torch.ones(2 * STEPS, 2))
        return torch.utils.data.DataLoader(data, batch_size=2)


def quiet() -> dict[str, object]:
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    return {
        "max_epochs": EPOCHS,
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }


def through_lightning(task: Task, strategy: object, rate: Rate | None) -> None:
    callback = ScheduledFinetuning(strategy, rate=rate)
    pl.Trainer(callbacks=[callback], **quiet()).fit(task)


def through_flash(task: Task, strategy: object, rate: Rate | None) -> None:
    flash.Trainer(**quiet()).finetune(task, strategy=strategy if rate is None else with_rate(strategy, rate))


def through_plain(task: Task, strategy: object, rate: Rate | None) -> None:
    finetuner = Finetuner(task, strategy, max_epochs=EPOCHS, rate=rate)
    optimizer = task.configure_optimizers()
    finetuner.ddp(optimizer)
    for epoch in range(EPOCHS):
        model = finetuner.begin_epoch(epoch)
        for (inputs,) in task.train_dataloader():
            task.note(epoch, optimizer.param_groups)
            model(inputs).square().mean().backward()
            finetuner.before_step()
            optimizer.step()
            optimizer.zero_grad()
            finetuner.after_step()
        finetuner.end_epoch()


def through_accelerate(task: Task, strategy: object, rate: Rate | None) -> None:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    accelerator = Accelerator(cpu=True)
    try:
        finetuner = AccelerateFinetuner(accelerator, task, strategy, max_epochs=EPOCHS, rate=rate)
        model, optimizer, loader = finetuner.prepare(task, task.configure_optimizers(), task.train_dataloader())
        for epoch in range(EPOCHS):
            finetuner.begin_epoch(epoch)
            for (inputs,) in loader:
                task.note(epoch, optimizer.param_groups)
                accelerator.backward(model(inputs).square().mean())
                optimizer.step()
                optimizer.zero_grad()
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


DOORS = [through_lightning, through_flash, through_plain, through_accelerate]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("strategy", [mine, rated, given], ids=lambda strategy: strategy.__name__)
@pytest.mark.parametrize("door", DOORS, ids=lambda door: door.__name__)
def test_the_same_rates_in_each_door(
    door: Callable[[Task, object, Rate | None], None], strategy: Callable[[], tuple[object, Rate | None]]
) -> None:
    task = Task()
    door(task, *strategy())
    wanted = WANTED[rated if strategy is given else strategy]
    assert [task.rates[epoch] for epoch in range(EPOCHS)] == [
        tuple(rate if rate is None else pytest.approx(rate, rel=1e-12) for rate in rates) for rates in wanted
    ]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "schedule_of_mine.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"strategy": "schedule_of_mine:Mine"}, WANTED[mine]),
        (
            {"strategy": "freeze_unfreeze", "unfreeze_epoch": 2, "backbone_lr_ratio": 0.1, "backbone_lr_ramp": 4.0},
            WANTED[rated],
        ),
        (
            {"strategy": "freeze_unfreeze_deepspeed", "unfreeze_epoch": 3, "backbone_lr": 0.004},
            [(None, None)] * 3 + [(0.004, 0.004)] * 2,
        ),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_the_commands_callback_has_them(options: dict[str, object], wanted: list[tuple[float | None, ...]]) -> None:
    task = Task()
    callback = build_finetuning(RunConfig(max_epochs=EPOCHS, **options))
    pl.Trainer(callbacks=[callback], **quiet()).fit(task)
    assert [task.rates[epoch] for epoch in range(EPOCHS)] == [
        tuple(rate if rate is None else pytest.approx(rate, rel=1e-12) for rate in rates) for rates in wanted
    ]


def test_a_loop_reports_its_transitions_with_their_rates() -> None:
    report = logging.getLogger("flash_strategies.report")
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    report.addHandler(handler)
    try:
        through_plain(Task(), *rated())
    finally:
        report.removeHandler(handler)
    assert [line.partition(" layers")[0] for line in lines] == [
        "epoch 2: phase unfrozen, 4 -> 25 trainable parameters of 25, unfrozen at learning rate 0.01, 2",
        "epoch 4: the learning rate of what phase unfrozen unfroze has reached the head's",
    ]


def test_rates_that_are_tensors_stay_with_their_scheduler() -> None:
    task = Task()
    finetuner = Finetuner(task, *rated()[:1], max_epochs=EPOCHS + 2)
    optimizer = torch.optim.AdamW(task.parameters(), lr=torch.tensor(LR), foreach=False)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    finetuner.ddp(optimizer, [scheduler])
    found = []
    for epoch in range(EPOCHS + 2):
        model = finetuner.begin_epoch(epoch)
        for _ in range(STEPS):  # the scheduler writes in the midst of an epoch, too
            model(torch.ones(2, 2)).square().mean().backward()
            finetuner.before_step()
            optimizer.step()
            optimizer.zero_grad()
            finetuner.after_step()
            task.note(epoch, optimizer.param_groups)
            assert all(isinstance(group["lr"], torch.Tensor) for group in optimizer.param_groups)
            found.append(task.rates[epoch][0])
            scheduler.step()
    shares = [share for share in (0.1, 0.4, 1.0, 1.0, 1.0) for _ in range(STEPS)]
    wanted = [LR * 0.5**step * share for step, share in enumerate(shares, 2 * STEPS)]
    assert found[2 * STEPS :] == pytest.approx(wanted, rel=1e-6)
