"""What callbacks and the task put into a checkpoint in `on_save_checkpoint`, and take out again.

They are given a dictionary as Lightning gives it, with the weights under `state_dict`. A tensor that is a weight or
buffer of the task itself is stored by its name, and one that all ranks hold equally by rank 0 only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.metadata import version

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ProgressBar
from pytorch_lightning.utilities.model_helpers import is_overridden
from torch import Tensor

from flash_strategies.agreement import ControlGroup
from flash_strategies.digest import slice_digest

__all__ = [
    "load_callbacks",
    "may_swap_weights",
    "of_rank_0",
    "own_values",
    "replaced_weights",
    "saved_by_hooks",
    "with_weights",
]

Values = dict[str, object]

_STATE_DICT = "state_dict"
_WEIGHT, _RANK_0 = "flash-launch: weight", "flash-launch: tensor of rank 0"


def saved_by_hooks(trainer: pl.Trainer, control: ControlGroup) -> Values:
    """What the hooks leave; every rank must call it, and holds no copy of a weight."""
    task = trainer.lightning_module
    values: Values = {
        "epoch": trainer.current_epoch,
        "global_step": trainer.global_step,
        "pytorch-lightning_version": version("pytorch-lightning"),
        _STATE_DICT: {},
    }
    savers = [one for one in _callbacks(trainer) if is_overridden("on_save_checkpoint", one, pl.Callback)]
    if not savers and not is_overridden("on_save_checkpoint", task):
        return values
    weights = dict(task.state_dict())
    values[_STATE_DICT] = dict(weights)
    for one in savers:
        one.on_save_checkpoint(trainer, task, values)
    task.on_save_checkpoint(values)
    places = {_place(tensor): name for name, tensor in weights.items() if tensor.numel()}
    # at ZeRO-3 a weight is empty here, and only known as the same object
    same = {id(tensor): name for name, tensor in weights.items()}

    def stored(one: object) -> object:
        if not isinstance(one, Tensor):
            return one
        name = same.get(id(one)) or places.get(_place(one))
        return one.detach() if name is None else (_WEIGHT, name)

    packed = _mapped(values, stored)
    digests = [(str(one.dtype), tuple(one.shape), int(slice_digest(one))) for one in _tensors(packed)]
    first = control.gather(digests, "the state of callbacks")[0]
    if control.rank != 0 and isinstance(first, list) and len(first) == len(digests):
        numbers = iter(range(len(digests)))

        def shared(one: object) -> object:
            if not isinstance(one, Tensor):
                return one
            number = next(numbers)
            return (_RANK_0, number) if first[number] == digests[number] else one

        packed = _mapped(packed, shared)
    assert isinstance(packed, dict)
    return packed


def of_rank_0(values: Values, load: Callable[[], Values]) -> Values:
    """A rank's values with the tensors that only rank 0 stored.

    Args:
        values: as they were stored.
        load: gives those of rank 0; called if there are any.
    """
    held: list[Tensor] = []

    def filled(one: object) -> object:
        number = _marked(one, _RANK_0)
        if not isinstance(number, int):
            return one
        if not held:
            held.extend(_tensors(load()))
        return held[number]

    found = _mapped(values, filled)
    assert isinstance(found, dict)
    return found


def with_weights(values: Values, task: pl.LightningModule) -> Values:
    """Values with the task's own tensors, as they are now, in place of their names."""
    weights = task.state_dict()

    def filled(one: object) -> object:
        name = _marked(one, _WEIGHT)
        return one if name is None else weights[str(name)]

    found = _mapped(values, filled)
    assert isinstance(found, dict)
    return found


def load_callbacks(trainer: pl.Trainer, values: Values) -> None:
    """Give callbacks what they left, when weights and buffers are those of the checkpoint."""
    task = trainer.lightning_module
    loaders = [one for one in _callbacks(trainer) if is_overridden("on_load_checkpoint", one, pl.Callback)]
    checkpoint = with_weights(values, task) if loaders else {}
    for one in loaders:
        one.on_load_checkpoint(trainer, task, checkpoint)


def replaced_weights(values: Values) -> dict[str, Tensor]:
    """What hooks put in the place of weights, such as averages: what Lightning's checkpoint would hold."""
    state = values.get(_STATE_DICT)
    return {name: one for name, one in state.items() if isinstance(one, Tensor)} if isinstance(state, dict) else {}


def own_values(values: Values) -> Values:
    """What hooks added that is no weight of the task, nor in place of one."""
    return {name: value for name, value in values.items() if name != _STATE_DICT and not _has_weights(value)}


def _has_weights(value: object) -> bool:
    found: list[object] = []

    def note(one: object) -> object:
        found.extend([name] if (name := _marked(one, _WEIGHT)) is not None else [])
        return one

    _mapped(value, note)
    return bool(found)


def may_swap_weights(trainer: pl.Trainer) -> bool:
    """Whether something beside ours acts at a validation's start, as callbacks do that validate averaged weights."""
    owners = [trainer.lightning_module, *trainer.callbacks]  # type: ignore[attr-defined]
    others = [one for one in owners if not isinstance(one, ProgressBar)]
    theirs = [one for one in others if not type(one).__module__.startswith("flash_")]
    hooks = ("on_validation_start", "on_validation_epoch_start", "on_validation_model_eval")
    return any(is_overridden(hook, one) for one in theirs for hook in hooks if hasattr(one, hook))


def _place(tensor: Tensor) -> tuple[int, torch.Size, tuple[int, ...], torch.dtype]:
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype


def _mapped(value: object, change: Callable[[object], object]) -> object:
    """A copy of nested dicts, lists and tuples in which `change` has put others for some objects."""
    if (changed := change(value)) is not value:
        return changed
    if isinstance(value, dict):
        return {key: _mapped(one, change) for key, one in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_mapped(one, change) for one in value)  # type: ignore[attr-defined, call-arg]
    return value


def _tensors(value: object) -> list[Tensor]:
    """All tensors, in order."""
    found: list[Tensor] = []

    def note(one: object) -> object:
        if isinstance(one, Tensor):
            found.append(one)
        return one

    _mapped(value, note)
    return found


def _marked(value: object, mark: str) -> object | None:
    """What stands behind a mark."""
    return value[1] if type(value) is tuple and len(value) == 2 and value[0] == mark else None


def _callbacks(trainer: pl.Trainer) -> Sequence[pl.Callback]:
    return trainer.callbacks  # type: ignore[attr-defined, no-any-return]
