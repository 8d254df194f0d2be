"""What Lightning's own tests of its finetuning callbacks assert about behaviour, asked of ours, through `lightning`.

Read in Lightning-AI/pytorch-lightning, tests/tests_pytorch/callbacks/test_finetuning_callback.py, at 7f0c3436cd.

| there | here |
| --- | --- |
| finetuning_callback: the backbone trains from an epoch on, at a lower rate; both follow the schedule | (1) |
| finetuning_callback: its rate rises to the head's, and stays there | (2) |
| finetuning_callback_warning: what the optimizer has already is not added again, with a warning | (3), no warning |
| finetuning_callback_warning: a fit resumes without the callback | (4), differs |
| freeze_unfreeze_function: freeze with and without batch norms, unfreeze | (5) |
| freeze_unfreeze_function: nested lists of modules | (6) |
| freeze_unfreeze_function: a frozen norm's `track_running_stats` is switched off | (7), differs |
| unfreeze_and_add_param_group_function: groups; rates lr, or the first group's / 10; train_bn=False | (8) |
| base_finetuning_internal_optimizer_metadata: groups by parameter names, one more in each epoch | (9) |
| base_finetuning_internal_optimizer_metadata: an error of the user's function in a resumed fit | (10) |
| complex_nested_model: parents with parameters of their own freeze and unfreeze with their leaves | (11) |
| callbacks_restore, callbacks_restore_backbone: groups are back before optimizer states load | (12) |
| unsupported_strategies: DeepSpeed is refused | test_lightning_names.py, zero2: ours runs on it |

(3) Nothing changes, so nothing is said. (4) Without the callback the optimizer has
other groups, and its state is refused. (7) Switched off, a norm takes the statistics of each batch;
ours is in eval mode while it is frozen, so that its statistics stand still and are used.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import flash_strategies.lightning  # noqa: F401 - before Lightning's other name

# isort: split
import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, TensorDataset

from flash_strategies import FlashBaseFinetuning

FinetuneFunction = Callable[["Written", L.LightningModule, int, Optimizer], None]


class Task(L.LightningModule):
    """A backbone and a head; SGD with momentum over what requires a gradient, as Lightning's documentation has it."""

    def __init__(self, backbone: nn.Module | None = None, gamma: float | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = backbone or nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU())
        self.head = nn.Linear(4, 2)
        self.gamma = gamma

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        return self.head(self.backbone(batch[0])).square().mean()

    def configure_optimizers(self) -> object:
        optimizer = torch.optim.SGD((p for p in self.parameters() if p.requires_grad), lr=0.1, momentum=0.9)
        if self.gamma is None:
            return optimizer
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=self.gamma)]


class Written(FlashBaseFinetuning):
    """A user's callback; notes the param groups by name after each epoch's start."""

    def __init__(self, function: FinetuneFunction, *, freezes: str = "backbone", train_bn: bool = False) -> None:
        super().__init__(freezes, train_bn)
        self.function = function
        self.groups: list[list[tuple[list[str], float]]] = []

    def finetune_function(self, pl_module: L.LightningModule, epoch: int, optimizer: Optimizer) -> None:
        self.function(self, pl_module, epoch, optimizer)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_epoch_start(trainer, pl_module)
        names = {id(p): name for name, p in pl_module.named_parameters()}
        groups = trainer.optimizers[0].param_groups
        self.groups.append([([names[id(p)] for p in group["params"]], group["lr"]) for group in groups])


def fit(task: L.LightningModule, *callbacks: L.Callback, epochs: int, resume: Path | None = None) -> L.Trainer:
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    trainer = L.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        devices=1,
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=any(isinstance(one, ModelCheckpoint) for one in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data = TensorDataset(torch.randn(8, 4, generator=torch.Generator().manual_seed(1)))
    trainer.fit(task, DataLoader(data, batch_size=4), ckpt_path=resume)
    return trainer


def prepared(callback: FlashBaseFinetuning, task: L.LightningModule) -> set[str]:
    """Names of what trains once the callback has frozen the task."""
    callback.prepare(L.Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False), task)
    return {name for name, parameter in task.named_parameters() if parameter.requires_grad}


def nothing(*_: object) -> None:
    """Unfreezes nothing."""


def test_a_backbone_unfreezes_at_a_part_of_the_heads_rate() -> None:
    """(1)"""

    def unfreeze(callback: Written, task: L.LightningModule, epoch: int, optimizer: Optimizer) -> None:
        if epoch == 3:
            callback.unfreeze_and_add_param_group(task.backbone, optimizer, initial_denom_lr=10)

    callback = Written(unfreeze)
    task = Task(gamma=0.7)
    before = task.backbone[0].weight.detach().clone()
    fit(task, callback, epochs=6)
    heads = [0.1 * 0.7**epoch for epoch in range(6)]
    assert [groups[0][1] for groups in callback.groups] == pytest.approx(heads)
    assert [len(groups) for groups in callback.groups] == [1, 1, 1, 2, 2, 2]
    # a tenth at the unfreeze, and on with the same schedule
    assert [groups[1][1] for groups in callback.groups[3:]] == pytest.approx([rate / 10 for rate in heads[3:]])
    assert not torch.equal(before, task.backbone[0].weight)


def test_the_ramp_of_a_rate_is_written_in_finetune_function() -> None:
    """(2) As BackboneFinetuning's lambda_func: twice the rate in each epoch, up to the head's."""

    def ramp(callback: Written, task: L.LightningModule, epoch: int, optimizer: Optimizer) -> None:
        if epoch == 1:
            callback.unfreeze_and_add_param_group(task.backbone, optimizer, lr=0.02)
        if epoch > 1:
            head, backbone = optimizer.param_groups
            backbone["lr"] = min(2 * backbone["lr"], head["lr"])

    callback = Written(ramp)
    fit(Task(), callback, epochs=6)
    assert [groups[1][1] for groups in callback.groups[1:]] == pytest.approx([0.02, 0.04, 0.08, 0.1, 0.1])


def test_what_trains_already_is_not_added_again() -> None:
    """(3)"""

    def again(callback: Written, task: L.LightningModule, epoch: int, optimizer: Optimizer) -> None:
        callback.unfreeze_and_add_param_group(task.head, optimizer, lr=0.5)

    callback = Written(again)
    fit(Task(), callback, epochs=2)
    assert callback.groups == [[(["head.weight", "head.bias"], 0.1)]] * 2


def test_freezing_and_batch_norms() -> None:
    """(5)"""
    assert prepared(Written(nothing, train_bn=True), Task()) == {
        *("backbone.1.weight", "backbone.1.bias", "head.weight", "head.bias")
    }
    callback, task = Written(nothing), Task()
    assert prepared(callback, task) == {"head.weight", "head.bias"}
    assert callback.make_trainable(task.backbone) == {
        *("backbone.0.weight", "backbone.0.bias", "backbone.1.weight", "backbone.1.bias")
    }


def test_nested_lists_of_modules() -> None:
    """(6)"""

    class Nested(Written):
        def freeze_before_training(self, pl_module: L.LightningModule) -> None:
            self.freeze([pl_module.backbone[1], [pl_module.backbone[0]]], train_bn=True)

    assert "backbone.1.weight" in prepared(Nested(nothing), task := Task())
    assert not task.backbone[0].weight.requires_grad


def test_a_frozen_norm_keeps_its_statistics() -> None:
    """(7)"""
    modes: list[bool] = []

    class Watch(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, task: L.LightningModule, *_: object) -> None:
            modes.append(task.backbone[1].training)

    def unfreeze(callback: Written, task: L.LightningModule, epoch: int, optimizer: Optimizer) -> None:
        if epoch == 1:
            assert torch.equal(task.backbone[1].running_mean, torch.zeros(4))
            callback.unfreeze_and_extend_param_group(task.backbone, optimizer)

    task = Task()
    fit(task, Written(unfreeze), Watch(), epochs=2)
    assert modes == [False, False, True, True]
    assert task.backbone[1].track_running_stats
    assert not torch.equal(task.backbone[1].running_mean, torch.zeros(4))


def test_groups_and_rates_of_what_unfreezes() -> None:
    """(8)"""
    backbone = nn.Sequential(*(nn.Linear(4, 4, bias=False) for _ in range(4)), nn.BatchNorm1d(4))

    def unfreeze(callback: Written, task: L.LightningModule, epoch: int, optimizer: Optimizer) -> None:
        if epoch == 0:
            callback.unfreeze_and_add_param_group(task.backbone[0], optimizer)
        if epoch == 1:
            callback.unfreeze_and_add_param_group(task.backbone, optimizer, lr=0.5, train_bn=False)

    callback = Written(unfreeze)
    fit(Task(backbone), callback, epochs=2)
    head, first = (["head.weight", "head.bias"], 0.1), (["backbone.0.weight"], pytest.approx(0.01))
    assert callback.groups[0] == [head, first]
    assert callback.groups[1] == [head, first, ([f"backbone.{index}.weight" for index in (1, 2, 3)], 0.5)]


def one_by_one(callback: Written, task: L.LightningModule, epoch: int, optimizer: Optimizer) -> None:
    """A layer more in each epoch."""
    callback.unfreeze_and_add_param_group(task.backbone[epoch], optimizer)


def test_one_group_more_in_each_epoch() -> None:
    """(9)"""
    callback = Written(one_by_one)
    fit(
        Task(nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4), nn.Linear(4, 4, bias=False))),
        callback,
        epochs=3,
    )
    head = ["head.weight", "head.bias"]
    layers = [["backbone.0.weight"], ["backbone.1.weight", "backbone.1.bias"], ["backbone.2.weight"]]
    for epoch, groups in enumerate(callback.groups):
        assert [names for names, _ in groups] == [head, *layers[: epoch + 1]]


def test_an_error_in_the_users_function_is_raised_in_a_resumed_fit_too(tmp_path: Path) -> None:
    """(10)"""

    def layers() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))

    saved = ModelCheckpoint(tmp_path, save_last=True)
    fit(Task(layers()), Written(one_by_one), saved, epochs=2)
    with pytest.raises(IndexError, match="index 2 is out of range"):
        fit(Task(layers()), Written(one_by_one), epochs=4, resume=Path(saved.last_model_path))


def test_parents_with_parameters_of_their_own() -> None:
    """(11)"""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.ModuleDict({"linear": nn.Linear(4, 4), "act": nn.ReLU()})
            self.scale = nn.Parameter(torch.ones(1))
            self.norm = nn.BatchNorm1d(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norm(self.inner["act"](self.inner["linear"](x)) * self.scale)

    backbone = nn.Sequential(Block(), Block())
    callback, task = Written(nothing, train_bn=True), Task(backbone)
    norms = {f"backbone.{index}.norm.{name}" for index in (0, 1) for name in ("weight", "bias")}
    assert prepared(callback, task) == {*norms, "head.weight", "head.bias"}
    rest = {
        f"backbone.{index}.{name}" for index in (0, 1) for name in ("scale", "inner.linear.weight", "inner.linear.bias")
    }
    assert callback.make_trainable(task.backbone) == rest


def test_a_resumed_fit_has_the_groups_and_the_moments(tmp_path: Path) -> None:
    """(12)"""

    def unfreeze(callback: Written, task: L.LightningModule, epoch: int, optimizer: Optimizer) -> None:
        if epoch == 1:
            callback.unfreeze_and_add_param_group(task.backbone, optimizer)

    whole = Task()
    fit(whole, Written(unfreeze), epochs=4)
    saved = ModelCheckpoint(tmp_path, save_last=True)
    fit(Task(), Written(unfreeze), saved, epochs=2)
    again, callback = Task(), Written(unfreeze)
    fit(again, callback, epochs=4, resume=Path(saved.last_model_path))
    assert [len(groups) for groups in callback.groups] == [2, 2]
    assert callback.groups[0][1][1] == pytest.approx(0.01)
    for name, weight in whole.state_dict().items():  # momentum is part of it
        assert torch.equal(weight, again.state_dict()[name]), name


def test_a_checkpoint_of_a_finetuning_resumes_with_its_callback(tmp_path: Path) -> None:
    """(4)"""
    saved = ModelCheckpoint(tmp_path, save_last=True)
    fit(Task(), Written(nothing), saved, epochs=2)
    with pytest.raises(ValueError, match="parameter group that doesn't match the size"):
        fit(Task(), epochs=3, resume=Path(saved.last_model_path))
