"""From what a Trainer is given as `strategy=` to a Lightning strategy that transitions can rebuild."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import cast

import pytorch_lightning as pl
from pytorch_lightning.strategies import DDPStrategy, DeepSpeedStrategy, SingleDeviceStrategy, Strategy

from flash_launch.assembly import model_numbers
from flash_launch.errors import SetupError
from flash_launch.setup_keys import Json
from flash_launch.setups import RunNumbers, Setup, check_machine, load_setup, resolve_setup, setup_names, setup_of
from flash_strategies.lightning import FinetuningDDPStrategy, FinetuningDeepSpeedStrategy, private

__all__ = ["check_rebuildable", "made_rebuildable", "understood"]

LIGHTNING_NAMES: Mapping[str, str] = {
    "deepspeed": "zero2",
    "deepspeed_stage_1": "zero1",
    "deepspeed_stage_2": "zero2",
    "deepspeed_stage_2_offload": "zero2_offload",
    "deepspeed_stage_3": "zero3",
    "deepspeed_stage_3_offload": "zero3_offload",
    "deepspeed_stage_3_offload_nvme": "zero3_nvme",
}
"""Lightning's names for DeepSpeed, and the setup that each stands for here."""

_NVME_PATH = "/local_nvme"
"""Lightning's default."""

_WORDS = {
    "--batch-size": "train_micro_batch_size_per_gpu in the file",
    "--accumulate": "accumulate_grad_batches",
    "--gradient-clip": "gradient_clip_val",
    "--precision": "precision",
    "--setup": "strategy",
    "--nvme-path DIR": 'strategy="FILE.json" with nvme_path',
}
"""Options of the command, and what the Trainer calls the same."""


def understood(given: str | Strategy) -> str | Strategy:
    """What Lightning's Trainer is given in the place of `strategy=`; what is Lightning's own affair stays as it is.

    Args:
        given: a name of Lightning's or of a setup, a DeepSpeed JSON file, or an object.

    Raises:
        SetupError: a file, or a DeepSpeed configuration, that cannot be used.
        TransitionError: an object that transitions cannot rebuild.
    """
    if isinstance(given, DeepSpeedStrategy):
        if isinstance(given, FinetuningDeepSpeedStrategy):
            return given
        strategy = FinetuningDeepSpeedStrategy.of(given)
        strategy.complete = _Completion(setup_of("of the DeepSpeedStrategy", _without_unknown(given.config)))
        return strategy
    if not isinstance(given, str):
        return given
    name = LIGHTNING_NAMES.get(given, given)
    if name == "ddp" or (name not in setup_names() and not name.endswith(".json")):
        return given
    setup = load_setup(name)
    check_machine(setup)
    if setup.engine == "ddp":
        return FinetuningDDPStrategy(**_ddp_options(setup))  # type: ignore[arg-type]
    return FinetuningDeepSpeedStrategy(setup.template, complete=_Completion(setup))


def made_rebuildable(trainer: pl.Trainer) -> None:
    """Let a new Trainer whose strategy is Lightning's DDP, by whatever name, use one that transitions can rebuild.

    Raises:
        TransitionError: its strategy cannot be rebuilt.
    """
    strategy = trainer.strategy
    if isinstance(strategy, DeepSpeedStrategy):
        if strategy.root_device.type == "cpu":
            os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed computes on a GPU where there is one
    elif type(strategy) is DDPStrategy:
        private.replace_strategy(trainer, FinetuningDDPStrategy.of(strategy, **_ddp_options(load_setup("ddp"))))


def check_rebuildable(strategy: Strategy) -> None:
    """Check that parameters can unfreeze under a strategy.

    Raises:
        SetupError: its engine could not be rebuilt.
    """
    if not isinstance(strategy, (FinetuningDDPStrategy, FinetuningDeepSpeedStrategy, SingleDeviceStrategy)):
        raise SetupError(
            f"Trainer(strategy=...) is {type(strategy).__name__}, whose engine cannot be rebuilt when parameters "
            "unfreeze: use 'ddp', 'deepspeed_stage_1', 'deepspeed_stage_2', 'deepspeed_stage_3', a setup "
            f"({', '.join(setup_names())}), a DeepSpeed JSON file, or one device"
        )


def _ddp_options(setup: Setup) -> dict[str, object]:
    options = setup.template.get("ddp") or {}
    assert isinstance(options, dict)
    return {key: value for key, value in options.items() if value is not None}


def _without_unknown(config: object) -> Json:
    """A DeepSpeedStrategy's configuration without the key that Lightning writes and DeepSpeed does not know."""
    found = cast("Json", dict(config)) if isinstance(config, dict) else {}
    aio = found.get("aio")
    if isinstance(aio, dict):
        found["aio"] = {key: value for key, value in aio.items() if key != "thread_count"}
    return found


class _Completion:
    """Fills a setup in from a Trainer and its task."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup

    def __call__(self, task: pl.LightningModule) -> Mapping[str, object]:
        """The complete configuration; Lightning adds the batch size, which it knows later."""
        trainer, micro = task.trainer, self._setup.template.get("train_micro_batch_size_per_gpu")
        known = isinstance(micro, int)
        numbers = RunNumbers(
            world_size=trainer.num_nodes * trainer.num_devices,
            procs_per_node=trainer.num_devices,
            micro_batch_size=int(micro) if isinstance(micro, int) else 1,
            accumulate=trainer.accumulate_grad_batches,
            gradient_clip=trainer.gradient_clip_val,
            precision=str(trainer.precision),
            cuda=trainer.strategy.root_device.type == "cuda",
            nvme_path=_NVME_PATH,
        )
        try:
            config = resolve_setup(self._setup, numbers, model_numbers(task, ()))
        except SetupError as error:
            raise SetupError(_in_the_trainers_words(str(error))) from None
        left_to_lightning = ("train_batch_size",) if known else ("train_batch_size", "train_micro_batch_size_per_gpu")
        return {key: value for key, value in config.items() if key not in left_to_lightning}


def _in_the_trainers_words(message: str) -> str:
    for option, word in _WORDS.items():
        message = message.replace(f"{option} ", f"{word} ").replace(option, word)
    return message
