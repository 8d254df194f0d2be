"""What Lightning Flash's own tests assert of finetuning, as a table: each row is tested here, or named with a reason.

Read in Lightning-Universe/lightning-flash at a374dd4 (0.8.2): tests/core/test_finetuning.py, and the tests of finetune
and of callbacks in tests/core/test_trainer.py. Written anew; no line is taken over.
"""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import BaseFinetuning, EarlyStopping, ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import flash_launch as flash
from flash_launch.core import finetuning
from flash_launch.errors import ConfigError, TaskError
from flash_strategies import FlashBaseFinetuning, StrategyTypeError, StrategyValueError
from flash_strategies.lightning import FinetuningCallback


@dataclass(frozen=True)
class Row:
    """One of Flash's tests."""

    flash: str
    """File and test."""
    asserts: str
    """What it asserts."""
    here: str
    """The test here, or "differs"."""
    reason: str = ""
    """Why it differs."""


CORE, TRAINER = "test_finetuning.py", "test_trainer.py"
TABLE = (
    Row(
        f"{CORE}::test_finetuning_with_none_return_type",
        "modules_to_freeze() may give None: nothing is frozen, and every strategy trains all",
        "test_a_task_that_freezes_nothing",
    ),
    Row(f"{CORE}::test_finetuning", "what requires a gradient in each epoch", "test_what_trains_in_each_epoch"),
    Row(f"{CORE}::test_finetuning", "the same with OneCycleLR by the step", "test_what_trains_in_each_epoch"),
    Row(f"{CORE}::test_finetuning_errors_and_exceptions", "ValueError or TypeError", "test_what_is_no_strategy"),
    Row(
        f"{CORE}::test_deepspeed_finetuning_strategy_key",
        "each strategy has a _deepspeed twin with the same key",
        "test_deepspeed_twins",
    ),
    Row(f"{TRAINER}::test_trainer_fit", "fit() warns of a finetuning callback", "test_fit_warns"),
    Row(
        f"{TRAINER}::test_trainer_finetune",
        "a subclass of Lightning's BaseFinetuning is taken as strategy",
        "test_lightnings_own_callback_is_refused",
        "its unfreezing leaves ranks with different weights; FlashBaseFinetuning has the same methods to override",
    ),
    Row(
        f"{TRAINER}::test_resolve_callbacks_invalid_strategy",
        "any other callback is a TypeError",
        "test_what_is_no_strategy",
    ),
    Row(
        f"{TRAINER}::test_resolve_callbacks_multi_error",
        "configure_finetune_callback with two callbacks is a ValueError",
        "test_a_tasks_own_callback",
    ),
    Row(
        f"{TRAINER}::test_resolve_callbacks_override_warning",
        "no_freeze, also by default, warns of a default callback of the model",
        "differs",
        "the warning comes where nothing is wrong, with models that have no callback, too; ours comes nowhere",
    ),
    Row(
        f"{TRAINER}::test_add_argparse_args, test_from_argparse_args",
        "the Trainer's options by argparse",
        "differs",
        "Lightning 2 has no such methods any more; its LightningCLI does it",
    ),
)


def test_each_row_is_tested_or_has_a_reason() -> None:
    for row in TABLE:
        assert row.here in globals() or (row.here == "differs" and row.reason), row


class Data(TensorDataset):
    """Nine samples."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        super().__init__(torch.randn(9, 4, generator=generator), torch.randint(0, 3, (9,), generator=generator))


class Task(pl.LightningModule):
    """Two layers to freeze, in a list, and a head."""

    def __init__(self, schedule: bool = False) -> None:
        super().__init__()
        self.layer, self.layer1, self.layer2 = nn.Linear(4, 5), nn.Linear(5, 4), nn.Linear(4, 3)
        self.schedule = schedule

    def modules_to_freeze(self) -> list[nn.Module] | None:
        return [self.layer, self.layer1]

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        return nn.functional.cross_entropy(self.layer2(self.layer1(self.layer(batch[0]))), batch[1])

    def configure_optimizers(self) -> object:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        if not self.schedule:
            return optimizer
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-3, epochs=50, steps_per_epoch=10)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class Nothing(Task):
    """Names nothing to freeze."""

    def modules_to_freeze(self) -> None:
        return None


class Trainable(pl.Callback):
    """Which layers train, by epoch."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: object) -> None:
        if trainer.fit_loop.epoch_loop.batch_idx == 0:
            layers = ("layer", "layer1", "layer2")
            self.seen.append(" ".join(n for n in layers if pl_module.get_submodule(n).weight.requires_grad))


def trainer(epochs: int = 1, *, checkpoints: bool = False, **options: object) -> flash.Trainer:
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    return flash.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=checkpoints,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


LOADER = DataLoader(Data(), batch_size=3)
HEAD, ALL = "layer2", "layer layer1 layer2"


@pytest.mark.parametrize("schedule", [False, True])
@pytest.mark.parametrize(
    ("strategy", "seen"),
    [
        ("no_freeze", [ALL] * 5),
        ("freeze", [HEAD] * 5),
        (("freeze_unfreeze", 2), [HEAD] * 2 + [ALL] * 3),
        (("unfreeze_milestones", ((1, 3), 1)), [HEAD] + ["layer1 layer2"] * 2 + [ALL] * 2),
    ],
)
def test_what_trains_in_each_epoch(strategy: object, seen: list[str], schedule: bool) -> None:
    watch = Trainable()
    trainer(5, callbacks=[watch]).finetune(Task(schedule), train_dataloader=LOADER, strategy=strategy)
    assert watch.seen == seen


@pytest.mark.parametrize("strategy", ["no_freeze", "freeze", ("freeze_unfreeze", 1)])
def test_a_task_that_freezes_nothing(strategy: object) -> None:
    watch = Trainable()
    trainer(2, callbacks=[watch]).finetune(Nothing(), train_dataloader=LOADER, strategy=strategy)
    assert watch.seen == [ALL] * 2


@pytest.mark.parametrize(
    ("strategy", "error"),
    [
        (None, TypeError),
        (12, TypeError),
        (EarlyStopping("loss"), TypeError),
        ("chocolate", ValueError),
        ((12, 1), TypeError),
        (("chocolate", 1), TypeError),
        ("freeze_unfreeze", TypeError),
        (("freeze_unfreeze", "True"), TypeError),
        (("freeze_unfreeze", True), TypeError),  # Flash takes it for 1
        (("freeze_unfreeze", -1), ValueError),  # Flash never unfreezes then
        (("unfreeze_milestones", "False"), TypeError),
        (("unfreeze_milestones", (10, 10)), TypeError),
        (("unfreeze_milestones", (10, (10, 10))), TypeError),
        (("unfreeze_milestones", ((10, 10), "True")), TypeError),
        (("unfreeze_milestones", ((10, 10), 1)), ValueError),  # Flash: the second never acts
        (("unfreeze_milestones", ((3.14, 10), 10)), TypeError),
        (("unfreeze_milestones", ((10, 3.14), 10)), TypeError),
        (("freeze", 3), TypeError),  # Flash does not look at it
    ],
)
def test_what_is_no_strategy(strategy: object, error: type[Exception]) -> None:
    task, found = Task(), trainer()
    with pytest.raises(error) as raised:
        found.finetune(task, train_dataloader=LOADER, strategy=strategy)
    assert isinstance(raised.value, flash_error())
    assert found.global_step == 0
    assert all(parameter.requires_grad for parameter in task.parameters())


def flash_error() -> type[Exception]:
    from flash_strategies import FlashLaunchError

    return FlashLaunchError


@pytest.mark.parametrize("name", list(finetuning.FinetuningStrategies))
def test_deepspeed_twins(name: str) -> None:
    classes = {"no_freeze": "NoFreeze", "freeze": "Freeze"}
    classes |= {"freeze_unfreeze": "FreezeUnfreeze", "unfreeze_milestones": "UnfreezeMilestones"}
    given = {"freeze_unfreeze": (2,), "unfreeze_milestones": (((5, 10), 15),)}.get(name, ())
    plain, twin = (getattr(finetuning, classes[name] + suffix)(*given) for suffix in ("", "DeepSpeed"))
    assert plain.strategy == twin.strategy == name
    assert plain.spec.strategy == twin.spec.strategy
    assert (plain.spec.name, twin.spec.name) == (name, f"{name}_deepspeed")
    assert (plain.spec.deepspeed, twin.spec.deepspeed) == (False, True)
    with pytest.raises(ConfigError, match=f"'{name}_deepspeed' is for DeepSpeed.*deepspeed_stage_2.*or use '{name}'"):
        trainer(20).finetune(Task(), LOADER, strategy=twin)


@pytest.mark.parametrize("name", ["FreezeUnfreeze", "UnfreezeMilestones"])
def test_classes_that_need_metadata(name: str) -> None:
    with pytest.raises(StrategyTypeError, match="needs"):
        getattr(finetuning, name)(None)


class Lightnings(BaseFinetuning):
    """Of Lightning's own kind."""

    def freeze_before_training(self, pl_module: pl.LightningModule) -> None:
        """Nothing."""

    def finetune_function(self, pl_module: pl.LightningModule, epoch: int, optimizer: object) -> None:
        """Nothing."""


def test_lightnings_own_callback_is_refused() -> None:
    with pytest.raises(StrategyTypeError, match=r"derives from Lightning's BaseFinetuning.*FlashBase"):
        trainer().finetune(Task(), LOADER, strategy=Lightnings())


def test_fit_warns() -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*fine-tuning callback.*")
        trainer().fit(Task(), train_dataloader=LOADER)
    with pytest.warns(UserWarning, match="trainer is using a fine-tuning callback, Lightnings"):
        trainer(callbacks=[Lightnings()]).fit(Task(), LOADER)
    found = trainer()
    found.finetune(Task(), LOADER)
    with pytest.warns(UserWarning, match="trainer is using a fine-tuning callback, ScheduledFinetuning"):
        found.fit(Task(), LOADER)


class WithCallbacks(Task):
    """Chooses its callback itself."""

    def __init__(self, *callbacks: pl.Callback) -> None:
        super().__init__()
        self._given = callbacks

    def configure_finetune_callback(self, strategy: object = "no_freeze", train_bn: bool = True) -> list[pl.Callback]:
        return list(self._given)


class Custom(FlashBaseFinetuning):
    """Freezes one layer and counts its calls."""

    calls = 0

    def finetune_function(self, pl_module: pl.LightningModule, epoch: int, optimizer: object) -> None:
        self.calls += 1


def test_a_tasks_own_callback() -> None:
    callback = Custom("layer")
    trainer(2).finetune(WithCallbacks(callback), LOADER)
    assert callback.calls == 2
    with pytest.raises(StrategyValueError, match="give a list of one callback"):
        trainer().finetune(WithCallbacks(Custom("layer"), Custom("layer")), LOADER)


def test_a_task_that_optimizes_by_hand_is_refused() -> None:
    task = Task()
    task.automatic_optimization = False
    with pytest.raises(TaskError, match="optimizes by hand"):
        trainer().finetune(task, LOADER)


class Logs(Task):
    """Logs its loss."""

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        loss = super().training_step(batch, batch_idx)
        self.log("loss", loss, on_step=False, on_epoch=True)
        return loss


def test_a_second_call_begins_with_callbacks_as_the_trainer_was_given_them(tmp_path: Path) -> None:
    stop = EarlyStopping("loss", patience=1, min_delta=100.0, check_on_train_epoch_end=True)
    best, watch = ModelCheckpoint(tmp_path, monitor="loss", filename="best"), Trainable()
    found, task, kept = trainer(6, callbacks=[stop, best, watch], checkpoints=True), Logs(), []
    for strategy in ("no_freeze", "freeze", FlashFreeze("layer")):
        found.finetune(task, LOADER, strategy=strategy)
        assert (found.current_epoch, stop.stopped_epoch) == (2, 1)  # as patience says, each time
        kept.append(best.best_model_path)
        assert [one for one in found.callbacks if isinstance(one, FinetuningCallback)] == [found.callbacks[0]]
    assert watch.seen == [ALL] * 2 + [HEAD] * 2 + ["layer1 layer2"] * 2
    assert len(set(kept)) == 3
    assert all(Path(path).is_file() for path in kept)


class FlashFreeze(FlashBaseFinetuning):
    """Freezes."""

    def finetune_function(self, pl_module: pl.LightningModule, epoch: int, optimizer: object, opt_idx: int) -> None:
        """Unfreezes nothing."""
