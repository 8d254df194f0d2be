"""One's own finetuning callbacks, as Flash's guide shows them and beyond, through Lightning on one device."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import BackboneFinetuning
from torch import nn

from flash_strategies.errors import ModulesToFreezeError, StrategyValueError
from flash_strategies.lightning import FlashBaseFinetuning, finetuning_callback
from flash_strategies.transition import TransitionReport

HEAD = {"head.weight", "head.bias"}
NORM = {"backbone.1.weight", "backbone.1.bias"}
LAYERS = {"backbone.0.weight", "backbone.0.bias", "backbone.2.weight", "backbone.2.bias"}


class Task(pl.LightningModule):
    """A backbone with a batch norm, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 4))
        self.head = nn.Linear(4, 1)
        self.modes: list[bool] = []

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        self.modes.append(self.backbone[1].training)
        return self.head(self.backbone(batch[0])).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=0.1)


def fit(callback: pl.Callback, task: Task | None = None, epochs: int = 4, **options: object) -> list[TransitionReport]:
    """Train; every transition, the start of the first phase included."""
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    reports: list[TransitionReport] = []
    if hasattr(callback, "listeners"):
        callback.listeners.append(lambda trainer, report: reports.append(report))
    callbacks = [callback, *options.pop("callbacks", ())]
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        devices=1,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    data = torch.utils.data.TensorDataset(torch.randn(8, 2, generator=torch.Generator().manual_seed(0)))
    trainer.fit(task or Task(), torch.utils.data.DataLoader(data, batch_size=4))
    return reports


class Guide(FlashBaseFinetuning):
    """As Flash's guide prints it."""

    def __init__(self, unfreeze_epoch: int = 2, train_bn: bool = True):
        super().__init__("backbone", train_bn)
        self._unfreeze_epoch = unfreeze_epoch

    def finetune_function(self, pl_module, current_epoch, optimizer, opt_idx):
        if current_epoch == self._unfreeze_epoch:
            self.unfreeze_and_extend_param_group(pl_module.backbone, optimizer)


class Lightning2(Guide):
    """With the arguments of Lightning 2."""

    def finetune_function(self, pl_module, epoch, optimizer):
        super().finetune_function(pl_module, epoch, optimizer, 0)


class Anything(Guide):
    """With whatever it is given."""

    def finetune_function(self, *args):
        assert len(args) == 4
        super().finetune_function(*args)


@pytest.mark.parametrize("kind", [Guide, Lightning2, Anything])
def test_the_guides_strategy_runs_with_either_signature(kind: Callable[[], FlashBaseFinetuning]) -> None:
    start, unfrozen = fit(kind())
    assert set(start.unfrozen) == HEAD | NORM
    assert set(unfrozen.unfrozen) == LAYERS
    assert (unfrozen.number, unfrozen.step) == (1, 4)


@pytest.mark.parametrize("train_bn", [True, False])
def test_train_bn_says_whether_frozen_batch_norms_train(train_bn: bool) -> None:
    task = Task()
    start, _ = fit(Guide(2, train_bn), task)
    assert set(start.unfrozen) == (HEAD | NORM if train_bn else HEAD)
    assert task.modes == [train_bn] * 4 + [True] * 4


class Rates(FlashBaseFinetuning):
    """Unfreezes two layers with rates of their own, then freezes one again."""

    def finetune_function(self, pl_module, epoch, optimizer):
        if epoch == 1:
            self.unfreeze_and_add_param_group(pl_module.backbone[2], optimizer, lr=0.007)
            self.unfreeze_and_add_param_group(pl_module.backbone[0], optimizer)
        if epoch == 2:
            self.freeze(pl_module.backbone[2])


def test_rates_of_their_own_and_freezing_again() -> None:
    callback = Rates()
    found: list[dict[str, float]] = []

    class Look(pl.Callback):
        def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            engine = callback.transitions.engine
            groups = zip(engine.cohorts, engine.optimizer.param_groups, strict=True)
            found.append({name: group["lr"] for cohort, group in groups for name in cohort.names})

    fit(callback, epochs=3, callbacks=[Look()])
    own = dict.fromkeys(HEAD | NORM, 0.1)
    zero, two = (dict.fromkeys((f"backbone.{n}.weight", f"backbone.{n}.bias"), lr) for n, lr in ((0, 0.01), (2, 0.007)))
    assert found == [own, pytest.approx({**own, **zero, **two}), pytest.approx({**own, **zero})]


class Nested(FlashBaseFinetuning):
    """Freezes by hand, lists of modules in lists."""

    def freeze_before_training(self, pl_module: pl.LightningModule) -> None:
        self.freeze([pl_module.backbone[0], [pl_module.backbone[1:]]], train_bn=False)

    def finetune_function(self, pl_module, epoch, optimizer):
        if epoch == 1:
            assert self.make_trainable([[pl_module.backbone]], train_bn=False) == LAYERS


def test_own_freezing_and_nested_lists() -> None:
    task = Task()
    start, unfrozen = fit(Nested(), task, epochs=2)
    assert set(start.unfrozen) == HEAD
    assert set(unfrozen.unfrozen) == LAYERS
    assert task.modes == [False] * 4  # its batch norm stays frozen


def test_what_cannot_be() -> None:
    with pytest.raises(ModulesToFreezeError, match=r"'encoder', and Task has no module of that name; it has backbone"):
        fit(
            type(
                "Wrong", (Guide,), {"freeze_before_training": lambda s, t: s.freeze_using_attr_names(t, ["encoder"])}
            )()
        )
    with pytest.raises(NotImplementedError, match="FlashBaseFinetuning must override finetune_function"):
        fit(FlashBaseFinetuning("backbone"))
    with pytest.raises(StrategyValueError, match="2 finetuning callbacks are given"):
        fit(Guide(), callbacks=[finetuning_callback("freeze")])
    with pytest.raises(StrategyValueError, match="2 finetuning callbacks are given"):
        fit(Guide(), callbacks=[BackboneFinetuning()])


def test_ones_own_callback_is_taken_as_it_is() -> None:
    callback = Guide()
    assert finetuning_callback(callback) is callback
