"""What each rank keeps for itself: random states, callbacks, metrics, buffers that differ; one file per rank.

The files are written by torch.save and read back with `weights_only=True`, so they hold plain values, tensors and
numpy's arrays and numbers.
"""

from __future__ import annotations

import argparse
import copy
import io
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy
import pytorch_lightning as pl
import torch
from torch import Tensor

from flash_launch.checkpoint.hook_states import load_callbacks, of_rank_0, saved_by_hooks, with_weights
from flash_launch.checkpoint.metric_states import merged as merged_metrics
from flash_launch.checkpoint.metric_states import metric_states, restore_metrics
from flash_strategies.agreement import ControlGroup
from flash_strategies.buffers import combined, declared_reductions, reduction_of
from flash_strategies.errors import CheckpointError
from flash_strategies.lightning import private
from flash_strategies.random_states import HostStates, give_back_host, take_host

__all__ = [
    "RankState",
    "file_name",
    "load_file",
    "merged",
    "restore_callbacks",
    "restore_random",
    "restore_rest",
    "take",
]

Values = dict[str, object]


def _pickled_by(value: numpy.ndarray[Any, Any] | numpy.generic) -> Callable[..., object]:
    return cast("Callable[..., object]", value.__reduce__()[0])


# Beside what torch reads safely; reading one runs no code. The first two are functions that numpy's pickles name.
_PLAIN: list[Callable[..., object] | tuple[Callable[..., object], str]] = [
    *(_pickled_by(numpy.array(0)), _pickled_by(numpy.float64(0)), numpy.ndarray, numpy.dtype),
    *(type(numpy.dtype(code)) for code in numpy.typecodes["AllInteger"] + numpy.typecodes["AllFloat"] + "?US"),
    *(bytes, pathlib.PosixPath, argparse.Namespace),
]


@dataclass(frozen=True)
class RankState:
    """One rank's own state."""

    random: Values
    """Python's, numpy's, torch's and the GPU's random states."""
    callbacks: Values
    """`state_dict` of each callback, by its state_key."""
    hooks: Values
    """What `on_save_checkpoint` of callbacks and the task left; see hook_states.py."""
    datamodule: Values
    """The data module's `state_dict`."""
    precision: Values
    """The precision plugin's `state_dict`: the loss scale of DDP with fp16."""
    schedulers: list[Values]
    """`state_dict` of each learning-rate scheduler."""
    metrics: dict[str, Values]
    """States of the task's metrics."""
    logged: list[Values]
    """What `self.log` has added up in the epoch."""
    shown: dict[str, Tensor]
    """The last `callback_metrics`."""
    buffers: dict[str, Tensor] = field(default_factory=dict)
    """Buffers that differ between ranks, such as statistics in the middle of an epoch."""

    def to_bytes(self) -> bytes:
        """As a file.

        Raises:
            CheckpointError: an object that cannot be read back safely; names whose it is.
        """
        values = dict(vars(self))
        try:
            data = _saved(values)
            _loaded(io.BytesIO(data))
        except Exception as error:
            raise CheckpointError(_unsafe(values) or f"the rank's state cannot be read back: {error}") from error
        return data


def file_name(rank: int) -> str:
    """A rank's file in a checkpoint's folder."""
    return f"rank_{rank:05}.pt"


def load_file(folder: Path, rank: int) -> RankState:
    """A rank's state.

    Raises:
        CheckpointError: it cannot be read.
    """
    path = folder / file_name(rank)
    try:
        state = RankState(**_loaded(path))
    except Exception as error:  # torch's unpickler raises many kinds
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    return replace(state, hooks=of_rank_0(state.hooks, lambda: load_file(folder, 0).hooks))


def take(trainer: pl.Trainer, schedulers: Sequence[Values], control: ControlGroup) -> RankState:
    """This rank's state, but for buffers, at an optimizer-step boundary; copies. Every rank must call it."""
    task = trainer.lightning_module
    hooks = saved_by_hooks(trainer, control)
    datamodule = trainer.datamodule.state_dict() if trainer.datamodule is not None else {}  # type: ignore[attr-defined]
    callbacks = {one.state_key: state for one in trainer.callbacks if (state := one.state_dict())}  # type: ignore[attr-defined]
    return copy.deepcopy(
        RankState(
            random_states(),
            callbacks,
            hooks,
            datamodule,
            dict(trainer.precision_plugin.state_dict()),
            list(schedulers),
            metric_states(task),
            private.logged_so_far(trainer),
            {name: torch.as_tensor(value).cpu() for name, value in trainer.callback_metrics.items()},
        )
    )


def merged(trainer: pl.Trainer, ranks: Sequence[RankState], rank: int) -> RankState:
    """The state of a rank that goes on with other ranks than those that saved; rank 0's where it cannot be merged."""
    first = ranks[0]
    declared = declared_reductions(trainer.lightning_module)
    buffers = {
        name: combined([one.buffers[name] for one in ranks], reduction_of(name, value, declared))
        for name, value in first.buffers.items()
    }
    logged: dict[object, list[Values]] = {}
    for value in (value for one in ranks for value in one.logged):
        logged.setdefault(value["key"], []).append(value)
    return RankState(
        {},
        first.callbacks,
        first.hooks,
        first.datamodule,
        first.precision,
        first.schedulers,
        merged_metrics(trainer.lightning_module, [one.metrics for one in ranks], rank),
        [_added(parts) for parts in logged.values()],
        first.shown,
        buffers,
    )


def restore_callbacks(trainer: pl.Trainer, state: RankState) -> None:
    """Callbacks, data module and the task's own hook, before the engine is given back its state."""
    for one in trainer.callbacks:  # type: ignore[attr-defined]
        if (saved := state.callbacks.get(one.state_key)) is not None:
            one.load_state_dict(saved)
    if trainer.datamodule is not None and state.datamodule:  # type: ignore[attr-defined]
        trainer.datamodule.load_state_dict(state.datamodule)  # type: ignore[attr-defined]
    trainer.lightning_module.on_load_checkpoint(with_weights(state.hooks, trainer.lightning_module))


def restore_rest(trainer: pl.Trainer, state: RankState, *, states: bool = True) -> None:
    """Precision, metrics, what was logged, buffers, and what callbacks left; after the engine.

    Args:
        trainer: of the running fit.
        state: this rank's own, or a merged one.
        states: whether this rank takes the sums of what was logged.
    """
    if state.precision:
        trainer.precision_plugin.load_state_dict(state.precision)
    restore_metrics(trainer.lightning_module, state.metrics)
    private.remember_metrics(trainer, state.shown)
    private.log_on(trainer, state.logged, states=states)
    present = dict(trainer.lightning_module.named_buffers())
    for name, value in state.buffers.items():
        present[name].copy_(value)
    load_callbacks(trainer, state.hooks)


def random_states() -> Values:
    """All random states of this process, as plain values; of GPUs that of this rank's."""
    return {**take_host(), "cuda": [torch.cuda.get_rng_state()] if torch.cuda.is_available() else []}


def restore_random(states: Values) -> None:
    """Give them back."""
    give_back_host(cast(HostStates, states))
    cuda = states["cuda"]
    assert isinstance(cuda, list)
    if cuda and torch.cuda.is_available():
        torch.cuda.set_rng_state(cuda[0])


def _added(parts: Sequence[Values]) -> Values:
    """One logged value of all ranks together; what is logged at steps only is a mean over the last step's samples."""
    first = parts[0]
    meta, state = first["meta"], first["state"]
    assert isinstance(meta, Mapping)
    assert isinstance(state, Mapping)
    batches = torch.tensor([int(str(one["last_batch"])) for one in parts])
    result: Values = {}
    for name in state:
        stacked = torch.stack(
            [torch.as_tensor(one["state"][name]) for one in parts if isinstance(one["state"], Mapping)]
        )
        way = first["reduce_fx"]
        if way == "mean" and not meta["on_epoch"]:
            shares = (batches / batches.sum()).to(stacked).view(-1, *[1] * (stacked.dim() - 1))
            result[name] = (stacked * shares).sum(0) if stacked.is_floating_point() else stacked[0]
        else:
            result[name] = stacked.amax(0) if way == "max" else stacked.amin(0) if way == "min" else stacked.sum(0)
    samples = sum(int(str(one["samples"])) for one in parts)
    return {**first, "state": result, "last_batch": int(batches.sum()), "samples": samples}


def _saved(values: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(values, buffer)
    return buffer.getvalue()


def _loaded(file: Path | io.BytesIO) -> dict[str, Any]:
    with torch.serialization.safe_globals(_PLAIN):
        values: dict[str, Any] = torch.load(file, weights_only=True, map_location="cpu")
    return values


def _unsafe(values: Values) -> str | None:
    for kind, told in (
        ("callbacks", "the callback {}'s state_dict()"),
        ("hooks", "what on_save_checkpoint puts under {!r}"),
        ("datamodule", "what the data module's state_dict() has under {!r}"),
    ):
        part = values[kind]
        for name, value in part.items() if isinstance(part, dict) else ():
            try:
                _loaded(io.BytesIO(_saved(value)))
            except Exception as error:
                refused = re.search(r"(?:GLOBAL |Unsupported class |global )([\w.]+\.\w+)", str(error))
                return (
                    f"{told.format(name)} holds an object that cannot be read back safely "
                    f"({refused[1] if refused else type(value).__name__}): a checkpoint holds numbers, texts, "
                    "lists, dicts, tensors and numpy's arrays"
                )
    return None
