"""All that reaches into Lightning's private parts. Read against pytorch_lightning 2.6.6."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import metadata
from typing import cast

import pytorch_lightning as pl
import torch
from pytorch_lightning.core.optimizer import LightningOptimizer
from pytorch_lightning.strategies import DDPStrategy, DeepSpeedStrategy
from pytorch_lightning.trainer.connectors.logger_connector.result import _Metadata, _ResultMetric, _Sync
from torch.optim import Optimizer

from flash_strategies.errors import UnsupportedVersionError

READ_VERSIONS = ("2.6.6",)


def check_version() -> None:
    """Refuse a Lightning whose private parts were not read.

    Raises:
        UnsupportedVersionError: another version is installed.
    """
    version = metadata.version("pytorch-lightning")
    if version not in READ_VERSIONS:
        raise UnsupportedVersionError(
            f"pytorch-lightning {version} is installed; transitions use parts of Lightning that were read at "
            f"{', '.join(READ_VERSIONS)} only. Install one of these: "
            f"pip install pytorch-lightning=={READ_VERSIONS[-1]}"
        )


def torch_optimizer(optimizer: Optimizer | LightningOptimizer) -> Optimizer:
    """The torch optimizer inside of Lightning's wrapper."""
    return optimizer.optimizer if isinstance(optimizer, LightningOptimizer) else optimizer


def wrap_ddp_anew(strategy: DDPStrategy, task: pl.LightningModule) -> None:
    """Build DistributedDataParallel around the task again; no broadcast, the ranks are proved equal."""
    strategy._ddp_kwargs["init_sync"] = False
    strategy.model = strategy._setup_model(task)
    strategy._register_ddp_hooks()


def start_deepspeed_on_cpu(strategy: DeepSpeedStrategy) -> None:
    """What `DeepSpeedStrategy.setup_environment` does, without its insisting on CUDA."""
    if strategy.accelerator is None:
        raise AssertionError("Lightning sets the accelerator before it sets up the environment")
    strategy.accelerator.setup_device(strategy.root_device)
    strategy.set_world_ranks()
    strategy._init_deepspeed_distributed()


def go_on_at(trainer: pl.Trainer, *, epoch: int, batch: int, step: int, validating: bool = False) -> None:
    """Set the counters of the training loops so that the fit, which has not begun, begins at a position.

    Args:
        trainer: its loops are at their start.
        epoch: whose first batches may be done.
        batch: batches done in it; 0: its start, with the hooks of a start.
        step: optimizer steps done.
        validating: the epoch's batches are all done, and its validation comes next.
    """
    loop, inner = trainer.fit_loop, trainer.fit_loop.epoch_loop
    for tracker in (loop.epoch_progress.total, loop.epoch_progress.current):
        tracker.processed = tracker.completed = epoch  # type: ignore[attr-defined]
        tracker.ready = tracker.started = epoch + (batch > 0)  # type: ignore[attr-defined]
    optimizer = inner.automatic_optimization.optim_progress.optimizer
    for counter in (optimizer.step.total, optimizer.zero_grad.total):
        counter.ready = counter.completed = step
    inner._batches_that_stepped = step
    if batch:
        for tracker in (inner.batch_progress.total, inner.batch_progress.current):
            tracker.ready = tracker.started = tracker.processed = tracker.completed = batch  # type: ignore[attr-defined]
        loop.restarting = True
    if validating:
        inner.batch_progress.is_last_batch = True
        inner._batches_that_stepped = step - 1  # counted after validation
        # as if the first batch of the validation had been interrupted: it is run from its start
        evaluated = inner.val_loop.batch_progress.total
        evaluated.ready = evaluated.started = 1  # type: ignore[attr-defined]


def batches_done(trainer: pl.Trainer) -> int:
    """Batches done in the epoch that runs."""
    return trainer.fit_loop.epoch_loop.batch_progress.current.completed


def skip_batches(trainer: pl.Trainer, count: int) -> None:
    """Fetch and drop batches of an epoch whose loader cannot begin in its middle; before the first is fetched."""
    fetcher = trainer.fit_loop._data_fetcher
    assert fetcher is not None
    for _ in range(count):
        next(fetcher)
    fetcher.fetched -= count  # Lightning adds those that were done before


def before_each_fetch(trainer: pl.Trainer, action: Callable[[], None]) -> None:
    """Call `action` before each training batch is fetched: all of the last step is done then, nothing of the next."""
    inner = trainer.fit_loop.epoch_loop
    plain = inner._on_before_fetch

    def wrapped() -> None:
        action()
        plain()

    inner._on_before_fetch = wrapped  # type: ignore[method-assign]


def remember_metrics(trainer: pl.Trainer, metrics: Mapping[str, torch.Tensor]) -> None:
    """Let `trainer.callback_metrics` begin with these, the last ones of another fit."""
    trainer._logger_connector._callback_metrics.update(metrics)


_SYNCED = ("_should", "rank_zero_only")
_DESCRIBED = (
    *("fx", "name", "prog_bar", "logger", "on_step", "on_epoch", "enable_graph", "add_dataloader_idx"),
    *("dataloader_idx", "metric_attribute"),
)


def logged_so_far(trainer: pl.Trainer) -> list[dict[str, object]]:
    """What `self.log` has added up in the epoch that runs, on this rank; metrics by their attribute's name."""
    found: list[dict[str, object]] = []
    for key, result in trainer.fit_loop.epoch_loop._results.items():
        if result.has_reset or not (result.is_tensor or result.meta.metric_attribute):
            continue
        state = {name: getattr(result, name) for name in result._defaults} if result.is_tensor else {}
        meta = {name: getattr(result.meta, name) for name in _DESCRIBED}
        sync = {name: getattr(result.meta.sync, name) for name in _SYNCED}
        reduction = result.meta.reduce_fx.__name__
        found.append({"key": key, "meta": meta, "sync": sync, "reduce_fx": reduction, "state": state})
    return found


def log_on(trainer: pl.Trainer, logged: list[dict[str, object]], *, states: bool) -> None:
    """Let the epoch go on adding up from there.

    Args:
        trainer: before its first batch.
        logged: what `logged_so_far` gave.
        states: whether this rank takes the sums; they are another rank's where the ranks are others now.
    """
    results = trainer.fit_loop.epoch_loop._results
    task = trainer.lightning_module
    for one in logged:
        meta, sync, state = (cast("dict[str, object]", one[key]) for key in ("meta", "sync", "state"))
        described = _Metadata(**meta, reduce_fx=getattr(torch, str(one["reduce_fx"])))  # type: ignore[arg-type]
        described.sync = _Sync(fn=trainer.strategy.reduce, **sync)  # type: ignore[arg-type]
        attribute = described.metric_attribute
        result = _ResultMetric(described, is_tensor=attribute is None)
        if attribute is not None:
            result.value = task.get_submodule(attribute)
        for name, value in state.items() if states else ():
            setattr(result, name, value)
        result._update_count = 1
        results[str(one["key"])] = result
    if logged:
        # else the first call of `self.log` takes its batch for the epoch's first, and sets the sums back to zero
        trainer._logger_connector._first_loop_iter = True


def current_epoch_is_new(trainer: pl.Trainer) -> bool:
    """Whether the epoch that starts has no batch done yet (a run that goes on in the middle of one has)."""
    return trainer.fit_loop.epoch_loop.batch_progress.current.ready == 0
