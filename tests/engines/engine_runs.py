"""A small network trained without Lightning, at any setup: what the cases of the engine suite are made of."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

import deepspeed
import torch
import torch.distributed as dist
from engine_nets import GLOBAL_BATCH, Chain, adamw, one_cycle
from torch import nn

from flash_strategies import deepspeed_private
from flash_strategies.agreement import ControlGroup
from flash_strategies.deepspeed_private import DeepSpeedEngine
from flash_strategies.engines.averaging import AveragingDDP
from flash_strategies.engines.base import Engine
from flash_strategies.engines.ddp import DDPEngine
from flash_strategies.engines.zero3 import Zero3Engine
from flash_strategies.engines.zero12 import Zero12Engine
from flash_strategies.transition import Transitions

RANK, WORLD_SIZE = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def named(task: nn.Module, layers: str) -> list[str]:
    """Names of the parameters of layers given by a string such as "cd"."""
    return [name for name, _ in task.named_parameters() if name.split(".")[0] in layers]


def config(stage: int, *, bf16: bool = False, clip: float = 0.0, **zero: object) -> dict[str, object]:
    """A DeepSpeed configuration."""
    return {
        "train_micro_batch_size_per_gpu": GLOBAL_BATCH // WORLD_SIZE,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "gradient_clipping": clip,
        "steps_per_print": 10**9,
        "bf16": {"enabled": bf16},
        "zero_optimization": {
            "stage": stage,
            "reduce_bucket_size": 1000,
            **({"stage3_param_persistence_threshold": 0, "stage3_prefetch_bucket_size": 50} if stage == 3 else {}),
            **zero,
        },
    }


@dataclass
class Run:
    """A network in training."""

    setup: str
    layers: str
    """The layers that train at first."""
    bf16: bool = False
    net: Callable[[], nn.Module] = Chain
    optimizer_of: Callable[[nn.Module], torch.optim.Optimizer] = adamw
    schedule: Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler] = one_cycle
    config: dict[str, object] | None = None
    timeout: float = 20.0
    find_unused: bool = True
    broadcast_buffers: bool = True
    steps: int = 0
    task: nn.Module = field(init=False)
    transitions: Transitions = field(init=False)

    def __post_init__(self) -> None:
        self.task = self.net()
        if self.bf16 and self.setup == "ddp":
            self.task.bfloat16()
        wanted = set(named(self.task, self.layers))
        for name, parameter in self.task.named_parameters():
            parameter.requires_grad_(name in wanted)
        self.optimizer = self.optimizer_of(self.task)
        self.scheduler = self.schedule(self.optimizer)
        self.model: nn.Module = self.task
        self.engine: Engine
        if self.setup == "ddp":
            self.engine = DDPEngine(
                self.task, self.optimizer, [self.scheduler], rewrap=self._wrap if WORLD_SIZE > 1 else None
            )
            if WORLD_SIZE > 1:
                self._wrap()
        else:
            settings = self.config or config(int(self.setup[4]), bf16=self.bf16)
            stage3 = cast(dict[str, object], settings["zero_optimization"])["stage"] == 3
            kind = Zero3Engine if stage3 else Zero12Engine
            zero = kind(self.task, self.optimizer, [self.scheduler])
            self.model = deepspeed_private.initialize(self.task, self.optimizer, settings)[0]
            zero.attach(cast(DeepSpeedEngine, self.model))
            self.engine = zero
        self.control = ControlGroup(self.timeout)
        self.transitions = Transitions(self.engine, self.control)
        self.transitions.start("start")

    def _wrap(self) -> None:
        self.model = AveragingDDP(
            self.task,
            find_unused_parameters=self.find_unused,
            broadcast_buffers=self.broadcast_buffers,
            init_sync=self.model is self.task,
            gradient_as_bucket_view=True,
        )

    def move(self, layers: str, phase: str | None = None, **options: object) -> None:
        """A transition to these layers."""
        self.transitions.move(phase or f"train {layers}", named(self.task, layers), step=self.steps, **options)

    def step(self, times: int = 1, scale: float = 1.0) -> None:
        """Optimizer steps, on data that depend on the step's number; the loss times `scale`."""
        for _ in range(times):
            generator = torch.Generator().manual_seed(self.steps)
            widths = getattr(self.task, "widths", (7, 3))
            inputs = torch.randn(GLOBAL_BATCH, widths[0], generator=generator)[RANK::WORLD_SIZE]
            targets = torch.randn(GLOBAL_BATCH, widths[-1], generator=generator)[RANK::WORLD_SIZE]
            self.task.even = self.steps % 2 == 0
            if self.bf16:
                inputs = inputs.bfloat16()
            loss = ((self.model(inputs).float() - targets) ** 2).mean() * scale
            if self.setup == "ddp":
                self.optimizer.zero_grad()
                loss.backward()
                self.transitions.before_step()
                self.optimizer.step()
            else:
                self.model.backward(loss)
                self.transitions.before_step()
                self.model.step()
            self.scheduler.step()
            self.steps += 1
            self.transitions.after_step()

    def weights(self) -> dict[str, torch.Tensor]:
        """Copies of the whole parameters."""
        whole = {}
        for name, parameter in self.task.named_parameters():
            if hasattr(parameter, "ds_id"):
                with deepspeed.zero.GatheredParameters([parameter]):
                    whole[name] = parameter.detach().clone()
            else:
                whole[name] = parameter.detach().clone()
        return whole

    def state(self) -> dict[str, torch.Tensor]:
        """Copies of masters and moments on this rank."""
        return {f"{kind} of {c.name} from {c.start}": c.tensor.clone() for kind, c in self.engine.state()}

    def everything(self) -> dict[str, torch.Tensor | dict[str, float] | list[float]]:
        """All that decides how training goes on."""
        rates = [float(group["lr"]) for group in self.optimizer.param_groups]
        return {**self.weights(), **self.state(), "steps": self.engine.steps(), "rates": sorted(rates)}


def same(left: dict[str, object], right: dict[str, object]) -> list[str]:
    """Names of what differs by a bit."""
    missing = sorted(set(left) ^ set(right))
    return missing + [
        name
        for name in left
        if name in right
        and not (
            torch.equal(left[name], right[name]) if isinstance(left[name], torch.Tensor) else left[name] == right[name]
        )
    ]


def over_ranks(value: object) -> list[object]:
    """Every rank's value."""
    values: list[object] = [None] * WORLD_SIZE
    dist.all_gather_object(values, value)
    return values
