"""Flash's Trainer: Lightning's, with `finetune`, and with engines that are rebuilt when parameters unfreeze."""

from __future__ import annotations

import copy
import inspect
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import pytorch_lightning as pl
from pytorch_lightning.callbacks import BaseFinetuning, Callback
from pytorch_lightning.strategies import Strategy

from flash_launch.errors import ConfigError, TaskError
from flash_launch.tasks.outputs import convert, output_names
from flash_launch.training.lightning_strategy import check_rebuildable, made_rebuildable, understood
from flash_launch.training.predictions import Indices, NotedIndices, all_batches
from flash_launch.training.script_stop import resumable
from flash_strategies.errors import StrategyTypeError, StrategyValueError
from flash_strategies.lightning import (
    FinetuningCallback,
    FinetuningDeepSpeedStrategy,
    ScheduledFinetuning,
    finetuning_callback,
    private,
)
from flash_strategies.rate import Rate
from flash_strategies.registry import DEEPSPEED_SUFFIX, StrategySpec, with_rate
from flash_strategies.reporting import on_rank_zero
from flash_strategies.up_to_end import UpToEnd

if TYPE_CHECKING:
    from pytorch_lightning.utilities.types import EVAL_DATALOADERS, TRAIN_DATALOADERS

    Train: TypeAlias = TRAIN_DATALOADERS | pl.LightningDataModule | None
    Evaluation: TypeAlias = EVAL_DATALOADERS | pl.LightningDataModule | None

__all__ = ["Trainer"]


class Trainer(pl.Trainer):
    """Lightning's Trainer, which also finetunes.

    It takes everything that Lightning's takes. `strategy=` is one of Lightning's names ("ddp", "deepspeed_stage_2"), a
    setup of this package ("zero2", "zero3_offload"), a DeepSpeed JSON file, or an object; under DDP and DeepSpeed the
    engines are rebuilt whenever parameters unfreeze, so that all ranks hold the same weights. DeepSpeed also runs on a
    CPU.
    """

    __signature__ = inspect.signature(pl.Trainer)  # by which Lightning finds PL_TRAINER_* variables

    def __init__(self, *, strategy: str | Strategy | None = None, **options: Any) -> None:
        """Take Lightning's options.

        Args:
            strategy: see the class; None: of the environment's PL_TRAINER_STRATEGY, or "auto".
            options: as for Lightning's Trainer.

        Raises:
            SetupError: a setup or DeepSpeed configuration that cannot be used.
            TransitionError: an object that transitions cannot rebuild.
        """
        given = os.environ.get("PL_TRAINER_STRATEGY", "auto") if strategy is None else strategy
        super().__init__(strategy=understood(given), **options)
        made_rebuildable(self)
        self._finetuning: FinetuningCallback | None = None
        self._fresh = [(one, copy.deepcopy(one.state_dict())) for one in self._callbacks]

    def finetune(
        self,
        model: pl.LightningModule,
        train_dataloader: Train = None,
        val_dataloaders: EVAL_DATALOADERS | None = None,
        datamodule: pl.LightningDataModule | None = None,
        strategy: object = "no_freeze",
        train_bn: bool = True,
        *,
        rate: Rate | None = None,
        ckpt_path: str | Path | None = None,
    ) -> None:
        """Train a model, with parts of it frozen and unfrozen as a strategy says.

        Each call trains anew, from epoch 0 to `max_epochs`: with an optimizer and frozen parts of its own, beginning
        with the weights that the model has. A call's callback stays in `callbacks` until the next one.

        Args:
            model: any LightningModule with a `backbone` or a method `modules_to_freeze()`.
            train_dataloader: what to train on; or a datamodule, as the guide gives it.
            val_dataloaders: what to validate on.
            datamodule: gives both.
            strategy: a name ("freeze"), a pair (("freeze_unfreeze", 7)), a strategy object, or a finetuning callback.
                A transition past the last epoch is never made, which is warned of.
            train_bn: keep the batch norms of what is frozen trainable; a callback decides by itself.
            rate: the learning rate of what the strategy unfreezes, where it is not the head's; not for callbacks.
            ckpt_path: resume the fit that this checkpoint was saved in.

        Raises:
            StrategyTypeError, StrategyNameError, StrategyValueError: no strategy, or one that does not fit.
            ModulesToFreezeError: the model does not say what its backbone is.
            SetupError: an engine that cannot be rebuilt, or not the one that a `_deepspeed` name asks for.
            TaskError: a model that optimizes by hand.
        """
        callback = self._finetuning_callback(model, strategy, train_bn, rate)
        self._check(model, callback)
        self._replace(callback)
        self._begin_anew()
        super().fit(model, train_dataloader, val_dataloaders, datamodule, resumable(self, ckpt_path))

    def fit(
        self,
        model: pl.LightningModule,
        train_dataloaders: Train = None,
        val_dataloaders: EVAL_DATALOADERS | None = None,
        datamodule: pl.LightningDataModule | None = None,
        ckpt_path: str | Path | None = None,
        weights_only: bool | None = None,
        *,
        train_dataloader: Train = None,
    ) -> None:
        """As Lightning's; `train_dataloader` is Flash's name of the second argument.

        Raises:
            TypeError: both names are given.
        """
        if train_dataloader is not None:
            if train_dataloaders is not None:
                raise TypeError("fit() was given train_dataloaders and train_dataloader, which are the same: give one")
            train_dataloaders = train_dataloader
        callback: Callback | None = next((one for one in self._callbacks if isinstance(one, BaseFinetuning)), None)
        callback = callback or self._finetuning
        if callback is not None:
            _warn(
                f"fit() is called, and the trainer is using a fine-tuning callback, {type(callback).__name__}: what it "
                "freezes is frozen in this fit, too. Call finetune(), or use a new Trainer"
            )
        start = resumable(self, ckpt_path)
        super().fit(model, train_dataloaders, val_dataloaders, datamodule, start, weights_only)

    def predict(
        self,
        model: pl.LightningModule | None = None,
        dataloaders: Evaluation = None,
        datamodule: pl.LightningDataModule | None = None,
        return_predictions: bool | None = None,
        ckpt_path: str | Path | None = None,
        weights_only: bool | None = None,
        *,
        output: str | None = None,
    ) -> Any:
        """As Lightning's; with `output`, in the form that is asked for, and of all ranks.

        Args:
            model: whose `predict_step` gives logits (samples, classes) where `output` is given.
            dataloaders: what to predict; or a datamodule.
            datamodule: gives it.
            return_predictions: as Lightning's.
            ckpt_path: as Lightning's.
            weights_only: as Lightning's.
            output: "labels", "classes", "probabilities", "logits" or "preds"; None: what `predict_step` gives, on
                each rank that of its own samples, as Lightning does.

        Returns:
            With `output`: for each batch a list with an item for each sample, each sample once and in the order of the
            data, the same on every rank; a list of such lists where there are several loaders.

        Raises:
            TaskError: an unknown `output`, or a model that does not give logits.
        """
        if output is None:
            found = super().predict(model, dataloaders, datamodule, return_predictions, ckpt_path, weights_only)
            return found
        if output not in output_names():
            convert((), output)  # raises
        noted = NotedIndices()
        self.callbacks = [*self._callbacks, noted]
        try:
            found = super().predict(model, dataloaders, datamodule, return_predictions, ckpt_path, weights_only)
        finally:
            self.callbacks = [one for one in self._callbacks if one is not noted]
        if found is None:
            raise TaskError(
                f"output={output!r} asks for predictions, and a strategy that spawns or forks its ranks gives none "
                "back: use strategy='ddp', or leave return_predictions out"
            )
        task = model or self.lightning_module
        labels, multi_label = getattr(task, "labels", None), bool(getattr(task, "multi_label", False))
        loaders = [found] if self.predict_loop.num_dataloaders == 1 else found
        indices = noted.of_loaders or [Indices() for _ in loaders]
        results = [
            all_batches(convert(batches, output, labels, multi_label), where)
            for batches, where in zip(loaders, indices, strict=True)
        ]
        return results[0] if len(results) == 1 else results

    # ---- one call of finetune()

    @property
    def _callbacks(self) -> list[Callback]:
        callbacks: list[Callback] = self.callbacks
        return callbacks

    def _finetuning_callback(
        self, model: pl.LightningModule, strategy: object, train_bn: bool, rate: Rate | None
    ) -> FinetuningCallback:
        configure: Callable[..., object] | None = getattr(model, "configure_finetune_callback", None)
        if configure is not None:  # Flash's hook of a task
            given = configure(strategy=strategy, train_bn=train_bn)
            if not isinstance(given, (list, tuple)) or len(given) != 1:
                raise StrategyValueError(
                    f"{type(model).__name__}.configure_finetune_callback gave {given!r}: give a list of one callback"
                )
            strategy = given[0]
        if isinstance(strategy, BaseFinetuning):
            raise StrategyTypeError(
                f"strategy is a {type(strategy).__name__}, which derives from Lightning's BaseFinetuning: its "
                "unfreezing leaves ranks with different weights. Derive it from "
                "flash_launch.core.finetuning.FlashBaseFinetuning, which has the same methods to override"
            )
        return finetuning_callback(strategy if rate is None else with_rate(strategy, rate), train_bn=train_bn)

    def _check(self, model: pl.LightningModule, callback: FinetuningCallback) -> None:
        if not model.automatic_optimization:
            raise TaskError(
                f"{type(model).__name__} optimizes by hand (automatic_optimization = False): transitions must know "
                "where an optimizer step ends, so let Lightning optimize, or use flash_strategies.Finetuner in a loop"
            )
        check_rebuildable(self.strategy)
        if not isinstance(callback, ScheduledFinetuning):
            return
        spec = callback.spec
        if spec.deepspeed and not isinstance(self.strategy, FinetuningDeepSpeedStrategy):
            plain = spec.name.removesuffix(DEEPSPEED_SUFFIX)
            raise ConfigError(
                f"strategy {spec.name!r} is for DeepSpeed, and this trainer is at {type(self.strategy).__name__}: "
                f"give Trainer(strategy='deepspeed_stage_2'), or use {plain!r}"
            )
        if not isinstance(spec.strategy, UpToEnd):
            callback.spec = StrategySpec(spec.name, UpToEnd(spec.strategy), spec.deepspeed)
        self._warn_of_the_end(callback.spec)

    def _warn_of_the_end(self, spec: StrategySpec) -> None:
        epochs = self.max_epochs if self.max_epochs != -1 and not getattr(self, "fast_dev_run", False) else None
        assert isinstance(spec.strategy, UpToEnd)
        for phase in spec.strategy.left_out(epochs):
            _warn(
                f"strategy {spec.name!r}: the phase {phase.name!r} begins at epoch {phase.first_epoch}, which a run of "
                f"{epochs} epoch{'s' * (epochs != 1)} never reaches (epochs count from 0): it is left out. Give "
                f"Trainer(max_epochs={phase.first_epoch + 1}) or more for it"
            )

    def _replace(self, callback: FinetuningCallback) -> None:
        """The callback of the call before goes, and this one comes to its place, or to the front."""
        others = [one for one in self._callbacks if one is not self._finetuning]
        self.callbacks = [callback, *(one for one in others if one is not callback)]
        self._finetuning = callback

    def _begin_anew(self) -> None:
        private.begin_anew(self)
        for callback, state in self._fresh:
            saved = copy.deepcopy(state)
            if "dirpath" in saved:  # a ModelCheckpoint finds its folder when it first saves
                saved["dirpath"] = getattr(callback, "dirpath", None)
            callback.load_state_dict(saved)


def _warn(message: str) -> None:
    if on_rank_zero():
        warnings.warn(message, UserWarning, stacklevel=3)
