"""What Lightning's own checkpoints need so that `trainer.fit(ckpt_path=...)` resumes in any phase.

Lightning restores optimizer states by index, before training starts, into groups of the first phase. So what it would
restore is taken out of the checkpoint that it has read, and put back by parameter name once the engine is there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import cast

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import DeepSpeedStrategy

from flash_strategies.checkpoint.chunks import Slice
from flash_strategies.checkpoint.engine_state import WEIGHT, EngineState, Read, take_out
from flash_strategies.errors import CheckpointError
from flash_strategies.lightning import private
from flash_strategies.transition import Transitions

_KEY = "flash_strategies"
_FRESH = (
    "To begin a new fit with its weights, load them into the task (load_from_checkpoint) and leave ckpt_path out; "
    "runs of the command resume with `flash-launch resume RUN`, on any setup and number of ranks"
)


@dataclass(frozen=True)
class SavedFit:
    """The part of a fit that transitions must have back."""

    engine: EngineState
    """Phase, param groups and step counts."""
    epoch: int
    """The last epoch that had begun."""
    optimizer: Mapping[str, object] | None
    """The torch optimizer's `state_dict`; None where DeepSpeed keeps it."""
    schedulers: Sequence[Mapping[str, object]]
    """`state_dict` of each learning-rate scheduler."""

    def reader(self, load: Callable[[], None] | None) -> Read:
        """What fills the engine.

        Args:
            load: DeepSpeed's loading, into groups as they were; else moments come from `optimizer`. Lightning has
                loaded the weights.
        """
        if self.optimizer is None:
            assert load is not None
            return lambda slices: load()
        states = cast("Mapping[int, Mapping[str, object]]", self.optimizer["state"])
        by_name = {name: states.get(index, {}) for index, name in enumerate(self.engine.trainable)}

        def read(slices: Sequence[Slice]) -> None:
            for one in slices:
                kind, _, name = one.key.partition("/")
                if kind != WEIGHT:
                    whole = by_name[name][kind]
                    assert isinstance(whole, torch.Tensor)
                    one.tensor.copy_(whole.reshape(-1)[one.start : one.start + one.tensor.numel()])

        return read


def add_fit(checkpoint: dict[str, object], trainer: pl.Trainer, transitions: Transitions, epoch: int) -> None:
    """Add what `taken_from` needs to a checkpoint that Lightning is about to write; to another's, nothing."""
    if "loops" not in checkpoint:
        return
    values: dict[str, object] = {"epoch": epoch, "setup": asdict(_setup(trainer))}
    try:
        values["engine"] = take_out(transitions).to_json()
    except CheckpointError as error:  # of another kind of optimizer; saving goes as without us
        values["problem"] = str(error)
    checkpoint[_KEY] = values


def taken_from(checkpoint: dict[str, object], trainer: pl.Trainer) -> SavedFit | None:
    """What `add_fit` added, where Lightning resumes a fit; Lightning then finds no optimizer and schedule to restore.

    Raises:
        CheckpointError: the checkpoint does not have it, or is of another setup.
    """
    if not private.fits(trainer) or "loops" not in checkpoint:
        return None
    strategy = trainer.strategy
    deepspeed = isinstance(strategy, DeepSpeedStrategy)
    if isinstance(strategy, DeepSpeedStrategy) and strategy.load_full_weights:
        return None  # Lightning says that only weights are restored from a single file
    values = checkpoint.get(_KEY)
    if not isinstance(values, dict):
        raise CheckpointError(
            f"the checkpoint {trainer.ckpt_path} was made without a finetuning callback of flash_strategies (or by "
            f"one of an earlier version): it does not say which parameters its optimizer state is of. {_FRESH}"
        )
    if "problem" in values:
        raise CheckpointError(f"the checkpoint {trainer.ckpt_path} cannot be resumed: {values['problem']}. {_FRESH}")
    then, now = _Setup(**values["setup"]), _setup(trainer)
    if then.stage != now.stage or (deepspeed and then.world_size != now.world_size):
        raise CheckpointError(
            f"the checkpoint {trainer.ckpt_path} was made at {then.described}, and this fit is at {now.described}: use "
            f"the same. {_FRESH}"
        )
    states, schedulers = (cast("list[Mapping[str, object]]", checkpoint.get(key, [])) for key in _RESTORED)
    checkpoint.update({key: [] for key in _RESTORED if key in checkpoint})
    optimizer = states[0] if states and not deepspeed else None
    return SavedFit(EngineState.from_json(values["engine"]), int(values["epoch"]), optimizer, schedulers)


_RESTORED = ("optimizer_states", "lr_schedulers")


def check_kind(path: object, *, folder: bool) -> None:
    """Check that a checkpoint is a folder, as DeepSpeed writes it, or a file.

    Raises:
        CheckpointError: it is the other.
    """
    found = Path(str(path))
    if found.is_dir() if not folder else found.is_file():
        wanted, other = ("a folder of DeepSpeed's", "a single file") if folder else ("a single file", "a folder")
        raise CheckpointError(
            f"the checkpoint {path} is {other}, and this strategy reads {wanted}: resume with the strategy that it was "
            f"made with. {_FRESH}"
        )


def client_state(folder: str | Path, rank: int) -> dict[str, object]:
    """What Lightning gave to DeepSpeed to be saved beside its own, without loading any of that."""
    tag = (Path(folder) / "latest").read_text(encoding="utf-8").strip()
    files = sorted((Path(folder) / tag).glob("*_model_states.pt"))
    if not files:
        raise CheckpointError(
            f"the checkpoint {folder} is no complete one of DeepSpeed's: no *_model_states.pt in {tag}"
        )
    # at stage 3 each rank has its own
    own = next((file for file in files if file.name.startswith(f"zero_pp_rank_{rank}_")), files[0])
    try:
        values: dict[str, object] = torch.load(own, map_location="cpu", weights_only=True, mmap=True)
    except UnpicklingError as error:
        raise CheckpointError(
            f"the checkpoint {folder} holds more than tensors and plain values, and its code is not run ({error}): "
            "save without such objects, which hyperparameters and callbacks' states may be"
        ) from error
    return {key: value for key, value in values.items() if key not in ("module", "optimizer")}


@dataclass(frozen=True)
class _Setup:
    stage: int
    world_size: int

    @property
    def described(self) -> str:
        ranks = f"{self.world_size} rank{'s' * (self.world_size != 1)}"
        return f"ZeRO-{self.stage} on {ranks}" if self.stage else f"DDP or one device, on {ranks}"


def _setup(trainer: pl.Trainer) -> _Setup:
    strategy = trainer.strategy
    config = strategy.config if isinstance(strategy, DeepSpeedStrategy) else None
    zero = config.get("zero_optimization", {}) if isinstance(config, dict) else {}
    return _Setup(int(zero.get("stage", 0)), trainer.world_size)
