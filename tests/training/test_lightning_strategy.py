"""What `Trainer(strategy=...)` may be, and what becomes of it."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import pytorch_lightning as pl
from pytorch_lightning.strategies import DDPStrategy, DeepSpeedStrategy, FSDPStrategy, SingleDeviceStrategy
from torch import nn

import flash_launch as flash
from flash_launch.errors import SetupError
from flash_launch.setups import load_setup
from flash_launch.training.lightning_strategy import LIGHTNING_NAMES, check_rebuildable
from flash_strategies.errors import TransitionError
from flash_strategies.lightning import FinetuningDDPStrategy, FinetuningDeepSpeedStrategy


def trainer(**options: object) -> flash.Trainer:
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    return flash.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, **options)


class Task(pl.LightningModule):
    """12 + 3 elements."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Linear(4, 3)


def complete(found: flash.Trainer) -> dict[str, object]:
    """The DeepSpeed configuration for a task, as it is when a fit begins."""
    strategy, task = found.strategy, Task()
    assert isinstance(strategy, FinetuningDeepSpeedStrategy)
    task.trainer = found
    strategy.connect(task)
    assert isinstance(strategy.config, dict)
    return strategy.config


TEMPLATE = load_setup("ddp").template["ddp"]


@pytest.mark.parametrize(
    ("name", "method", "changed"),
    [
        ("auto", "popen", {}),
        ("ddp", "popen", {}),
        ("ddp_spawn", "spawn", {}),
        ("ddp_find_unused_parameters_false", "popen", {"find_unused_parameters": False}),
    ],
)
def test_ddp_by_name(name: str, method: str, changed: dict[str, object]) -> None:
    strategy = trainer(strategy=name, devices=2).strategy
    assert type(strategy) is FinetuningDDPStrategy
    assert strategy._start_method == method
    assert strategy._ddp_kwargs == {**TEMPLATE, **changed}  # type: ignore[dict-item]
    assert getattr(strategy.launcher, "_strategy", strategy) is strategy
    assert strategy.num_processes == 2


def test_one_device_and_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert type(trainer(devices=1).strategy) is SingleDeviceStrategy
    monkeypatch.setenv("PL_TRAINER_STRATEGY", "zero1")
    monkeypatch.setenv("PL_TRAINER_MAX_EPOCHS", "7")
    found = trainer(devices=1)
    assert isinstance(found.strategy, FinetuningDeepSpeedStrategy)
    assert found.max_epochs == 7
    assert type(trainer(strategy="ddp", devices=1).strategy) is FinetuningDDPStrategy


@pytest.mark.parametrize(
    ("name", "stage", "offload"),
    [
        ("deepspeed", 2, False),
        ("deepspeed_stage_1", 1, False),
        ("deepspeed_stage_2", 2, False),
        ("deepspeed_stage_2_offload", 2, True),
        ("deepspeed_stage_3", 3, False),
        ("zero1", 1, False),
        ("zero3_offload", 3, True),
    ],
)
def test_deepspeed_by_name_is_filled_in_from_the_trainer_and_the_task(name: str, stage: int, offload: bool) -> None:
    found = trainer(strategy=name, devices=2, accumulate_grad_batches=3, gradient_clip_val=0.5, precision="bf16-mixed")
    config = complete(found)
    zero = config["zero_optimization"]
    assert isinstance(zero, dict)
    assert (zero["stage"], "offload_optimizer" in zero) == (stage, offload)
    assert zero["reduce_bucket_size"] == (9 if stage == 3 else 15)
    assert config["gradient_clipping"] == 0.5
    assert (config["bf16"], config["fp16"]) == ({"enabled": True}, {"enabled": False})
    assert not {"gradient_accumulation_steps", "train_micro_batch_size_per_gpu", "train_batch_size"} & set(config)


def test_lightnings_names_are_all_known() -> None:
    from pytorch_lightning.strategies import StrategyRegistry

    names = {name for name in StrategyRegistry if name.startswith("deepspeed")}
    assert names == set(LIGHTNING_NAMES)


def test_files_and_objects(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({"zero_optimization": {"stage": 1, "reduce_bucket_size": 100}}))
    assert complete(trainer(strategy=str(file), devices=1))["zero_optimization"] == {
        "stage": 1,
        "reduce_bucket_size": 100,
    }
    file.write_text(json.dumps({"gradient_clipping": 2.0, "zero_optimization": {"stage": 1}}))
    with pytest.raises(SetupError, match=r"but the run has 0.0: give gradient_clip_val 2.0"):
        complete(trainer(strategy=str(file), devices=1))
    given = DDPStrategy(bucket_cap_mb=7, start_method="fork")
    strategy = trainer(strategy=given, devices=2).strategy
    assert type(strategy) is FinetuningDDPStrategy
    assert strategy._ddp_kwargs == {**TEMPLATE, "bucket_cap_mb": 7}  # type: ignore[dict-item]
    assert strategy._start_method == "fork"
    ours = FinetuningDDPStrategy()
    assert trainer(strategy=ours, devices=2).strategy is ours
    found = trainer(strategy=DeepSpeedStrategy(stage=3, load_full_weights=True), devices=1)
    assert complete(found)["zero_optimization"]["stage"] == 3  # type: ignore[index]
    assert found.strategy.load_full_weights


class Changed(DDPStrategy):
    """Of the user's."""


class ChangedDeepSpeed(DeepSpeedStrategy):
    """Of the user's."""


def test_what_cannot_be_rebuilt_is_refused_by_name(tmp_path: Path) -> None:
    plain = trainer(strategy=Changed(), devices=2)  # it may fit, and not finetune
    with pytest.raises(SetupError, match=r"is Changed, whose engine cannot be rebuilt.*'deepspeed_stage_2'.*zero3_hpz"):
        plain.finetune(Task())
    with pytest.raises(SetupError, match="is FSDPStrategy"):
        check_rebuildable(FSDPStrategy())
    with pytest.raises(TransitionError, match="ChangedDeepSpeed cannot be rebuilt"):
        trainer(strategy=ChangedDeepSpeed(), devices=1)
    with pytest.raises(TransitionError, match="model_averaging_period"):
        trainer(strategy=DDPStrategy(model_averaging_period=4), devices=2)
    with pytest.raises(SetupError, match=r"zero_optimization.*zenflow"):
        trainer(strategy=DeepSpeedStrategy(config={"zero_optimization": {"stage": 2, "zenflow": {}}}), devices=1)
    with pytest.raises(SetupError, match="cannot be read"):
        trainer(strategy=str(tmp_path / "none.json"), devices=1)
    with pytest.raises(ValueError, match="zero4"):
        trainer(strategy="zero4", devices=1)


def test_public_names() -> None:
    assert flash.__all__ == ["Trainer"]
    assert flash.Trainer.__module__ == "flash_launch.training.trainer"
    with pytest.raises(AttributeError, match="has no attribute 'Trainr'"):
        flash.Trainr  # noqa: B018
