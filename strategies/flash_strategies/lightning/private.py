"""All that reaches into Lightning's private parts. Read against pytorch_lightning 2.5.6 and 2.6.6."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from inspect import signature
from typing import Any, Literal, ParamSpec, TypeVar, cast

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins import CheckpointIO, TorchCheckpointIO
from lightning_fabric.utilities.apply_func import convert_tensors_to_scalars
from lightning_fabric.utilities.types import _PATH
from pytorch_lightning.callbacks import Checkpoint, EarlyStopping, ModelCheckpoint
from pytorch_lightning.core.optimizer import LightningOptimizer
from pytorch_lightning.strategies import DDPStrategy, DeepSpeedStrategy, Strategy, deepspeed
from pytorch_lightning.trainer.connectors.logger_connector.logger_connector import _LoggerConnector
from pytorch_lightning.trainer.connectors.logger_connector.result import (
    _METRICS,
    _Metadata,
    _ResultCollection,
    _ResultMetric,
    _Sync,
)
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities.data import _extract_batch_size
from torch.optim import Optimizer

from flash_strategies.errors import UnsupportedVersionError
from flash_strategies.lightning import one_lightning

READ_VERSIONS = ("2.5.6", "2.6.6")
P = ParamSpec("P")
T = TypeVar("T")
remove_module_hooks = deepspeed.remove_module_hooks  # as Lightning does before it builds another DeepSpeed engine


def check_version() -> None:
    """Refuse a Lightning whose private parts were not read.

    Raises:
        UnsupportedVersionError: another version is installed.
    """
    name = one_lightning.used_distribution()
    version = metadata.version(name)
    if version.split("+")[0] not in READ_VERSIONS:
        raise UnsupportedVersionError(
            f"{name} {version} is installed; transitions use parts of Lightning that were read at "
            f"{', '.join(READ_VERSIONS)} only. Install one of these: "
            f"pip install {name}=={READ_VERSIONS[-1]}"
        )


def torch_optimizer(optimizer: Optimizer | LightningOptimizer) -> Optimizer:
    """The torch optimizer inside of Lightning's wrapper."""
    return optimizer.optimizer if isinstance(optimizer, LightningOptimizer) else optimizer


def wrap_ddp_anew(strategy: DDPStrategy, task: pl.LightningModule) -> None:
    """Build DistributedDataParallel around the task again; no broadcast, the ranks are proved equal."""
    given = strategy._ddp_kwargs
    strategy._ddp_kwargs = {**given, "init_sync": False}
    try:
        strategy.model = strategy._setup_model(task)
    finally:
        strategy._ddp_kwargs = given  # the next fit of this strategy broadcasts at its start
    strategy._register_ddp_hooks()


def replace_strategy(trainer: pl.Trainer, strategy: Strategy) -> None:
    """Let a Trainer that has not begun anything use another strategy, which is configured as the one it has."""
    trainer._accelerator_connector.strategy = strategy
    strategy._configure_launcher()


def begin_anew(trainer: pl.Trainer) -> None:
    """Let the next fit begin at epoch 0 and step 0, whatever was trained before; the limits stay."""
    done = trainer.fit_loop
    loop = type(done)(trainer, min_epochs=done.min_epochs, max_epochs=done.max_epochs)
    inner = done.epoch_loop
    loop.epoch_loop = type(inner)(trainer, min_steps=inner.min_steps, max_steps=inner.max_steps)
    trainer.fit_loop = loop
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, ModelCheckpoint):
            callback._last_global_step_saved = 0  # else the same step of the next fit counts as saved already


def fits(trainer: pl.Trainer) -> bool:
    """Whether it runs `fit`, and not validate, test or predict."""
    return trainer.state.fn == TrainerFn.FITTING


def start_deepspeed_on_cpu(strategy: DeepSpeedStrategy) -> None:
    """What `DeepSpeedStrategy.setup_environment` does, without its insisting on CUDA."""
    if strategy.accelerator is None:
        raise AssertionError("Lightning sets the accelerator before it sets up the environment")
    strategy.accelerator.setup_device(strategy.root_device)
    strategy.set_world_ranks()
    strategy._init_deepspeed_distributed()


def read_checkpoint(
    load: Callable[..., dict[str, Any]], plugin: CheckpointIO | None, path: _PATH, weights_only: bool | None
) -> dict[str, Any]:
    """A checkpoint as Lightning 2.6 reads it: weights and plain values alone, unless somebody says otherwise.

    2.5 cannot be told, and runs what code is in a file.

    Args:
        load: Lightning's `load_checkpoint` of the strategy.
        plugin: the strategy's, where the checkpoint is a file that it reads.
        path: the checkpoint.
        weights_only: as `Trainer.fit` has it.
    """
    if "weights_only" in signature(load).parameters:
        return load(path, weights_only)
    if type(plugin) is TorchCheckpointIO:
        with open(path, "rb") as file:
            return cast("dict[str, Any]", torch.load(file, map_location="cpu", weights_only=True))
    return load(path)


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


def averaged_models(trainer: pl.Trainer) -> list[torch.nn.Module]:
    """The averages that Lightning's weight averaging callbacks hold of the task."""
    averaging = getattr(pl.callbacks, "WeightAveraging", ())  # new at 2.6
    callbacks = [one for one in trainer.callbacks if isinstance(one, averaging)]  # type: ignore[attr-defined]
    return [one._average_model.module for one in callbacks if one._average_model is not None]


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
    inner._on_before_fetch = _preceded(inner._on_before_fetch, action)  # type: ignore[method-assign]


def before_each_iteration(trainer: pl.Trainer, action: Callable[[], None]) -> None:
    """Call `action` before an epoch begins to iterate over its loader, after all hooks of its start."""
    inner = trainer.fit_loop.epoch_loop
    inner.on_run_start = _preceded(inner.on_run_start, action)  # type: ignore[method-assign]


def iterate_anew(trainer: pl.Trainer) -> None:
    """Begin to iterate over the loader again, as Lightning did when the fit was set up."""
    fetcher = trainer.fit_loop._data_fetcher
    assert fetcher is not None
    iter(fetcher)


def epochs_done(trainer: pl.Trainer) -> int:
    """Epochs of which nothing is left to do, schedules and logging included."""
    return trainer.fit_loop.epoch_progress.current.completed


def after_whole_epochs(trainer: pl.Trainer, action: Callable[[], None]) -> None:
    """Call `action` when nothing of an epoch is left to do: a checkpoint begins with the next one."""
    fit = trainer.fit_loop
    plain = fit.on_advance_end

    def wrapped() -> None:
        plain()
        action()

    fit.on_advance_end = wrapped  # type: ignore[method-assign]


def after_each_epoch(trainer: pl.Trainer, action: Callable[[], None]) -> None:
    """Call `action` when all hooks of an epoch's end have logged theirs, the task's own included."""
    plain = trainer._logger_connector.on_epoch_end

    def wrapped() -> None:
        plain()
        if trainer.training:  # not a validation's end
            action()

    trainer._logger_connector.on_epoch_end = wrapped  # type: ignore[method-assign]


def spare_waits_in_steps(trainer: pl.Trainer) -> None:
    """Leave out what Lightning waits for in each step: whether rank 0 got SIGTERM, and numbers for a progress bar.

    For who handles SIGTERM otherwise. What is logged with `prog_bar=True` stays on its device until it is asked for.
    """
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
    results = trainer.fit_loop.epoch_loop._results
    plain = results.metrics

    def metrics(on_step: bool) -> _METRICS:
        shown = [one for _, one in results.valid_items() if one.meta.prog_bar]
        for one in shown:
            one.meta.prog_bar = False
        try:
            found = plain(on_step)
        finally:
            for one in shown:
                one.meta.prog_bar = True
        for one in shown:
            if isinstance(value := results._get_cache(one, on_step), torch.Tensor):
                found["pbar"][results._forked_name(one, on_step)[1]] = value  # type: ignore[assignment]
        return found

    results.metrics = metrics  # type: ignore[method-assign]
    trainer._logger_connector.__class__ = _LateConnector


class _LateConnector(_LoggerConnector):
    @property
    def progress_bar_metrics(self) -> dict[str, float]:
        """Made numbers when they are asked for."""
        return cast("dict[str, float]", convert_tensors_to_scalars(super().progress_bar_metrics))


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
    results = trainer.fit_loop.epoch_loop._results
    counts = {"last_batch": 1, "samples": 0}
    if isinstance(results, _LocalResults):
        counts = {"last_batch": results.last_batch, "samples": results.samples}
    for key, result in results.items():
        if result.has_reset or not (result.is_tensor or result.meta.metric_attribute):
            continue
        state = {name: getattr(result, name) for name in result._defaults} if result.is_tensor else {}
        meta = {name: getattr(result.meta, name) for name in _DESCRIBED}
        sync = {name: getattr(result.meta.sync, name) for name in _SYNCED}
        reduction = result.meta.reduce_fx.__name__
        found.append({"key": key, "meta": meta, "sync": sync, "reduce_fx": reduction, "state": state, **counts})
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
    if logged and states and isinstance(results, _LocalResults):
        results.last_batch, results.samples = (int(str(logged[0][name])) for name in ("last_batch", "samples"))
    if logged:
        # else the first call of `self.log` takes its batch for the epoch's first, and sets the sums back to zero
        trainer._logger_connector._first_loop_iter = True


def leaves_out_epoch_start(trainer: pl.Trainer) -> bool:
    """Whether Lightning calls no `on_train_epoch_start` in the epoch with which a resumed fit begins.

    It does not after a checkpoint made in an epoch, also not where that was the epoch's last step: the fit then begins
    with the next epoch.
    """
    return trainer.fit_loop.restarted_mid_epoch or trainer.fit_loop.restarted_on_epoch_end


def current_epoch_is_new(trainer: pl.Trainer) -> bool:
    """Whether the epoch that starts has no batch done yet (a run that goes on in the middle of one has)."""
    return trainer.fit_loop.epoch_loop.batch_progress.current.ready == 0


# ---- values of an epoch, over all ranks


@dataclass(frozen=True)
class EpochValue:
    """What one rank logged under one key in an epoch."""

    names: tuple[str, ...]
    """As `trainer.callback_metrics` has it."""
    reduction: Literal["mean", "sum", "max", "min"]
    """`reduce_fx`."""
    value: float
    """Of this rank's samples."""
    weight: float
    """How many samples it is of; counts for a mean."""


class _LocalResults(_ResultCollection):
    """What `self.log` adds up on one rank, without a wait for others; `reduce_logged` reduces it."""

    samples = 0
    """Of the epoch so far, on this rank."""
    last_batch = 0
    """Samples of the last batch: the weight of what is logged at steps only."""
    _batch: object = None

    def __init__(self, before: _ResultCollection) -> None:
        self._weights: dict[str, int] = {}
        super().__init__(before.training)
        self.update(before)

    @property
    def batch(self) -> object:
        """The batch that is worked on; None: none, as in a hook at the end of an epoch."""
        return self._batch

    @batch.setter
    def batch(self, batch: object) -> None:
        self._batch = batch
        if batch is not None:
            self.last_batch = next(
                (size for size in _extract_batch_size(cast("torch.Tensor", batch)) if size is not None), 1
            )
            self.samples += self.last_batch

    def log(self, fx: str, name: str, *args: object, batch_size: int | None = None, **options: object) -> None:
        """As Lightning's; what a hook logs without a batch is of all samples of the epoch so far."""
        super().log(fx, name, *args, batch_size=batch_size, **options)
        if batch_size is None and self._batch is None:
            self._weights[f"{fx}.{name}"] = max(self.samples, 1)

    def reset(self, metrics: bool | None = None, fx: str | None = None) -> None:
        """As Lightning's; the whole is reset at the end of an epoch."""
        super().reset(metrics, fx)
        if metrics is None and fx is None:
            self.samples = 0
            self._weights.clear()

    @staticmethod
    def _get_cache(result_metric: _ResultMetric, on_step: bool) -> torch.Tensor | None:
        if not on_step and result_metric._computed is None and _reducible(result_metric, steps=False):
            result_metric._computed = _computed_here(result_metric)  # type: ignore[assignment]
        return _ResultCollection._get_cache(result_metric, on_step)

    def unreduced(self, *, steps: bool) -> dict[str, EpochValue]:
        """The values of this rank by key that are not reduced yet.

        Args:
            steps: also those that are logged at steps only: the last step's.
        """
        found: dict[str, EpochValue] = {}
        for key, result in self.items():
            if result.has_reset or not _reducible(result, steps=steps):
                continue
            if result._computed is not None and result._computed is getattr(result, "reduced", None):
                continue
            meta, value = result.meta, float(_computed_here(result))
            weight = float(result.cumulated_batch_size) if meta.on_epoch and meta.is_mean_reduction else self.last_batch
            suffix = (
                self.DATALOADER_SUFFIX.format(meta.dataloader_idx)
                if meta.add_dataloader_idx and meta.dataloader_idx is not None
                else ""
            )
            names = tuple(dict.fromkeys((meta.name + suffix, meta.forked_name(on_step=False) + suffix)))
            reduction = cast("Literal['mean', 'sum', 'max', 'min']", meta.reduce_fx.__name__)
            found[key] = EpochValue(names, reduction, value, weight * self._weights.get(key, 1))
        return found

    def put_reduced(self, key: str, value: float, device: torch.device) -> torch.Tensor:
        """Let a value be the epoch's, and give it as a tensor."""
        result = self.get(key)
        if result is None or result.has_reset:
            return torch.tensor(value, device=device)
        reduced = torch.tensor(value, dtype=result.value.dtype, device=result.value.device)
        if result.meta.on_epoch:
            result._computed = result.reduced = reduced
        return reduced


def _reducible(result: _ResultMetric, *, steps: bool) -> bool:
    """Not metrics of torchmetrics, which reduce themselves; not what is one rank's, or some ranks', knowingly."""
    sync = result.meta.sync
    return bool(result.is_tensor and (result.meta.on_epoch or steps) and not sync.rank_zero_only and sync.group is None)


def _computed_here(result: _ResultMetric) -> torch.Tensor:
    value: torch.Tensor = result.value.detach().clone()
    mean = result.meta.on_epoch and result.meta.is_mean_reduction
    return value / result.cumulated_batch_size if mean else value


Reduce = Callable[[dict[str, EpochValue]], dict[str, tuple[tuple[str, ...], float]]]
"""From this rank's values by key to the names and the reduced value of each key of any rank; all ranks call it."""


def reduce_logged(trainer: pl.Trainer, reduce: Reduce) -> None:
    """From now on, from `on_train_start`, what the task logs for an epoch is reduced over ranks.

    That is when the batches of a validation or of an epoch are done, before callbacks that monitor a value, and when
    the hooks of the epoch's end have logged theirs: at the same points on all ranks, whatever they log.
    """
    fit, connector = trainer.fit_loop, trainer._logger_connector
    training, validation = fit.epoch_loop, fit.epoch_loop.val_loop
    training._results, validation._results = _LocalResults(training._results), _LocalResults(validation._results)

    def look(*, steps: bool = False) -> None:
        results = trainer._results
        if not isinstance(results, _LocalResults):
            return
        shown = [connector._logged_metrics, *validation._logged_outputs]
        for key, (names, value) in reduce(results.unreduced(steps=steps)).items():
            tensor = results.put_reduced(key, value, trainer.strategy.root_device)
            for name in names:
                connector._callback_metrics[name] = tensor
                if name in connector._progress_bar_metrics:
                    connector._progress_bar_metrics[name] = value
                for values in shown:
                    if name in values:
                        values[name] = tensor

    validation.on_run_end = _preceded(validation.on_run_end, look)  # type: ignore[method-assign]
    fit.on_advance_end = _preceded(fit.on_advance_end, lambda: look(steps=True))  # type: ignore[method-assign]
    connector.on_epoch_end = _preceded(connector.on_epoch_end, look)  # type: ignore[method-assign]
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    for one in [one for one in callbacks if isinstance(one, (EarlyStopping, Checkpoint))][:1]:
        one.on_train_epoch_end = _preceded(one.on_train_epoch_end, look)  # type: ignore[method-assign]


def _preceded(method: Callable[P, T], action: Callable[[], None]) -> Callable[P, T]:
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        action()
        return method(*args, **kwargs)

    return wrapped
