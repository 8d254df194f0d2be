"""Rates of phases against those of Lightning's BackboneFinetuning, on one device; and under schedulers."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import BackboneFinetuning
from torch import nn
from torch.optim import Optimizer
from torch.optim import lr_scheduler as lr

from flash_strategies import Everything, LastLayers, Nothing, Phase, Rate, StrategyValueError
from flash_strategies.lightning import ScheduledFinetuning

EPOCHS, UNFREEZE, STEPS = 8, 2, 3
Scheduler = Callable[[Optimizer], object]


class Task(pl.LightningModule):
    """A backbone and a head, and the rates that each had in each step."""

    def __init__(self, schedule: Scheduler | None = None, interval: str = "epoch", *, head_only: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 4))
        self.head = nn.Linear(4, 1)
        self.schedule, self.interval, self.head_only = schedule, interval, head_only
        self.rates: list[tuple[float, float | None]] = []

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        groups = self.trainer.optimizers[0].param_groups
        self.rates.append((self.of(groups, self.head.weight) or 0.0, self.of(groups, self.backbone[1].weight)))
        return self.head(self.backbone(batch[0])).square().mean()

    def of(self, groups: list[dict[str, object]], parameter: nn.Parameter) -> float | None:
        """The rate of a parameter; None where it is in no group, or frozen."""
        found = (float(group["lr"]) for group in groups if any(p is parameter for p in group["params"]))
        return next(found, None) if parameter.requires_grad else None

    def configure_optimizers(self) -> object:
        optimizer = torch.optim.SGD((self.head if self.head_only else self).parameters(), lr=0.1)
        if self.schedule is None:
            return optimizer
        return [optimizer], [{"scheduler": self.schedule(optimizer), "interval": self.interval}]


def fit(callback: pl.Callback, task: Task, epochs: int = EPOCHS, **options: object) -> Task:
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        devices=1,
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data = torch.utils.data.TensorDataset(torch.randn(2 * STEPS, 2, generator=torch.Generator().manual_seed(0)))
    trainer.fit(task, torch.utils.data.DataLoader(data, batch_size=2), **options)
    return task


@pytest.mark.parametrize("head_only", [False, True])
@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({}, Rate(ratio=0.1, ramp=2.0)),
        ({"backbone_initial_ratio_lr": 0.03}, Rate(ratio=0.03, ramp=2.0)),
        ({"backbone_initial_lr": 0.004}, Rate(lr=0.004, ramp=2.0)),
        ({"backbone_initial_lr": 0.5}, Rate(lr=0.5, ramp=2.0)),
        ({"lambda_func": lambda epoch: 1.5}, Rate(ratio=0.1, ramp=1.5)),
        ({"lambda_func": lambda epoch: 0.5 + epoch / 4}, Rate(ratio=0.1, ramp=lambda epoch: 0.5 + epoch / 4)),
        ({"lambda_func": lambda epoch: 0.5}, Rate(ratio=0.1, ramp=0.5)),
        ({"should_align": False}, Rate(ratio=0.1, ramp=2.0, align=False)),
        ({"lambda_func": lambda epoch: 1.0}, Rate(ratio=0.1)),
    ],
)
def test_the_rates_of_lightnings_callback(theirs: dict[str, object], ours: Rate, head_only: bool) -> None:
    # its default ratio is 0.1; initial_denom_lr has no effect in it, since it always gives a rate
    reference = fit(BackboneFinetuning(UNFREEZE, **theirs), Task(head_only=True))
    found = fit(ScheduledFinetuning(("freeze_unfreeze", UNFREEZE), rate=ours), Task(head_only=head_only))
    start = UNFREEZE * STEPS
    assert found.rates[:start] == reference.rates[:start] == [(0.1, None)] * start
    for wanted, rates in zip(reference.rates[start:], found.rates[start:], strict=True):
        assert rates == pytest.approx(wanted, rel=1e-12)
    for name, parameter in reference.named_parameters():
        assert torch.allclose(found.get_parameter(name), parameter, rtol=0, atol=1e-6), name


SCHEDULES: dict[str, tuple[Scheduler, str]] = {
    "StepLR": (lambda o: lr.StepLR(o, 2, gamma=0.5), "epoch"),
    "Cosine": (lambda o: lr.CosineAnnealingLR(o, T_max=EPOCHS * STEPS), "step"),
    "OneCycle": (lambda o: lr.OneCycleLR(o, 0.2, total_steps=EPOCHS * STEPS), "step"),
    "zero at times": (lambda o: lr.LambdaLR(o, lambda step: 0.0 if step % 4 == 0 else 1.0), "step"),
}


@pytest.mark.parametrize("rate", [Rate(ratio=0.1), Rate(lr=0.004), Rate(ratio=0.1, ramp=2.0), Rate(lr=0.004, ramp=3.0)])
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedulers_factor_applies_to_both(name: str, rate: Rate) -> None:
    schedule, interval = SCHEDULES[name]
    plain = fit(ScheduledFinetuning("no_freeze"), Task(schedule, interval))
    task = fit(ScheduledFinetuning(("freeze_unfreeze", UNFREEZE), rate=rate), Task(schedule, interval))
    heads = [head for head, _ in plain.rates]
    assert [head for head, _ in task.rates] == heads  # the schedule is not disturbed, to the last bit
    start = UNFREEZE * STEPS
    head_then = heads[start] or 0.1
    for step, (head, backbone) in enumerate(task.rates):
        wanted = rate.at(step // STEPS, head, unfrozen=UNFREEZE, head_then=head_then) if step >= start else None
        assert backbone == (wanted if wanted is None else pytest.approx(wanted, rel=1e-12)), step
    if rate.lr is not None:
        assert task.rates[start][1] == rate.lr


class Again:
    """Unfreezes with a rate, refreezes, unfreezes without and with another."""

    name = "again"

    def phases(self, max_epochs: int | None) -> tuple[Phase, ...]:
        return (
            Phase("head", 0, Nothing()),
            Phase("last", 1, LastLayers(1), Rate(ratio=0.5, ramp=0.5)),
            Phase("all", 3, Everything(), Rate(lr=0.01)),
            Phase("frozen", 4, Nothing()),
            Phase("own", 5, LastLayers(1)),
            Phase("new", 6, Nothing()),
            Phase("last again", 7, LastLayers(1), Rate(ratio=0.2)),
        )


def test_a_phases_rate_lasts_until_what_it_unfroze_is_frozen() -> None:
    task = fit(ScheduledFinetuning(Again()), Task())
    by_epoch = [backbone for _, backbone in task.rates[::STEPS]]
    assert by_epoch == [None, *map(pytest.approx, (0.05, 0.025, 0.0125)), None, 0.1, None, pytest.approx(0.02)]


def test_a_rate_for_nothing_is_refused() -> None:
    class Wrong(Again):
        def phases(self, max_epochs: int | None) -> tuple[Phase, ...]:
            return Phase("all", 0, Everything()), Phase("last", 1, LastLayers(1), Rate(ratio=0.5))

    with pytest.raises(StrategyValueError, match=r"'last' unfreezes nothing of Task and has a rate \(0.5 of"):
        fit(ScheduledFinetuning(Wrong()), Task())


def test_the_head_is_what_lies_outside_of_the_backbone() -> None:
    class Groups(Task):
        def configure_optimizers(self) -> object:
            backbone = {"params": self.backbone.parameters(), "lr": 0.7}
            return torch.optim.SGD([backbone, {"params": self.head.parameters(), "lr": 0.1}], lr=1.0)

    task = fit(ScheduledFinetuning(("freeze_unfreeze", 1), rate=Rate(ratio=0.1, ramp=20.0)), Groups(), 3)
    assert task.rates[::STEPS] == [(0.1, None), (0.1, pytest.approx(0.01)), (0.1, pytest.approx(0.1))]
