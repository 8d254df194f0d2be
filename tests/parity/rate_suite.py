"""Learning rates at ZeRO on one rank: every schedule through phases, beside plain torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import deepspeed
import torch
from rate_cases import PATHS, SCHEDULES, Pair, Task, optimizer_of

from flash_strategies.deepspeed_private import DeepSpeedEngine
from flash_strategies.engines.zero3 import Zero3Engine
from flash_strategies.engines.zero12 import Zero12Engine

AT_STAGE_3 = ("CosineAnnealingLR with a floor", "HeadFirst", "CyclicLR of lists")


def run_case(name: str) -> dict[str, list[str]]:
    """What differs, by schedule; stage 3 takes half a second to build, and has a few of them."""
    stage = int(name[-1])
    return {each: differences(stage, each) for each in (SCHEDULES if stage == 2 else AT_STAGE_3)}


def differences(stage: int, name: str) -> list[str]:
    """At ZeRO, head last, frozen and unfrozen again."""
    task, order, schedule = Task(), "backbone head", SCHEDULES[name]
    for parameter in task.backbone.parameters():
        parameter.requires_grad_(False)
    optimizer = optimizer_of(task, order)
    scheduler = schedule.make(optimizer)
    engine = (Zero3Engine if stage == 3 else Zero12Engine)(task, optimizer, [scheduler])
    config = {
        "train_micro_batch_size_per_gpu": 2,
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
        "zero_optimization": {"stage": stage, "reduce_bucket_size": 1000},
    }
    trainable = [p for p in task.parameters() if p.requires_grad]
    model = deepspeed.initialize(
        model=task, optimizer=optimizer, model_parameters=trainable, config=config, dist_init_required=False
    )[0]
    engine.attach(cast(DeepSpeedEngine, model))
    pair = Pair(schedule, order, task, engine, scheduler)

    def step() -> None:
        model.backward(model(torch.ones(2, 3)).sum())
        model.step()

    def move(number: int, names: Sequence[str]) -> None:
        engine.rebuild(engine.plan(str(number), names, number=number, step=pair.done))

    return pair.differences("refreeze" if stage == 2 else next(iter(PATHS)), step, move)
