"""The benchmark's model and setups: a stack of residual blocks of a given size, held by DDP or DeepSpeed."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import AdamW, Optimizer

from flash_launch.setups import ModelNumbers, RunNumbers, load_setup, resolve_setup
from flash_strategies import deepspeed_private as private
from flash_strategies.engines.base import Engine
from flash_strategies.engines.ddp import DDPEngine
from flash_strategies.engines.zero3 import Zero3Engine
from flash_strategies.engines.zero12 import Zero12Engine

BLOCKS = 12
CLASSES = 10
BATCH = 4


class Block(nn.Module):
    """A residual block as in a transformer's feed-forward half."""

    def __init__(self, width: int) -> None:
        """Make its layers, `8 * width**2` weights and a few more."""
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, width) -> (batch, width)."""
        return cast(torch.Tensor, x + self.down(nn.functional.gelu(self.up(self.norm(x)))))


class Stack(nn.Module):
    """Twelve blocks and a head."""

    def __init__(self, parameters: int) -> None:
        """Make about that many parameters."""
        super().__init__()
        self.width = max(8, round(math.sqrt(parameters / (8 * BLOCKS)) / 8) * 8)
        self.blocks = nn.Sequential(*(Block(self.width) for _ in range(BLOCKS)))
        self.head = nn.Linear(self.width, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, width) -> (batch, CLASSES)."""
        return cast(torch.Tensor, self.head(self.blocks(x)))

    def half(self) -> list[str]:
        """Names of the head's and the upper half's parameters."""
        upper = tuple(f"blocks.{i}." for i in range(BLOCKS // 2, BLOCKS))
        return [name for name, _ in self.named_parameters() if name.startswith(("head.", *upper))]


@dataclass
class Held:
    """A model as the ranks hold it."""

    task: Stack
    """The model."""
    engine: Engine
    """Ours around it; for the peers it only serves to read state by name."""
    optimizer: Optimizer
    """torch's."""
    runner: Any
    """What forwards, and with DeepSpeed steps: DistributedDataParallel or DeepSpeed's engine."""


def start_ranks(device: torch.device) -> None:
    """Join the process group, quietly."""
    private.without_shm_op()
    import deepspeed

    deepspeed.utils.logger.setLevel(logging.ERROR)
    backend = "nccl" if device.type == "cuda" else "gloo"
    deepspeed.init_distributed(backend, verbose=False)


def resolved(setup: str, task: Stack, cuda: bool) -> dict[str, Any]:
    """The setup's template, filled in as a run would."""
    world = dist.get_world_size()
    total = sum(private.whole_numel(p) for p in task.parameters())
    numbers = RunNumbers(world, world, BATCH, 1, None, "32" if setup == "ddp" else "bf16", cuda)
    model = ModelNumbers(trainable=total, total=total, hidden_size=task.width, largest_layer=4 * task.width**2)
    options = cast("dict[str, Any]", resolve_setup(load_setup(setup), numbers, model))
    if setup == "zero3":  # save_16bit_model, for peer (b), refuses without it
        options["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"] = True
    return options


def hold(setup: str, task: Stack, groups: Sequence[Sequence[str]], device: torch.device) -> Held:
    """Build a setup's engine around the model, with one param group for each list of names; the rest is frozen."""
    parameters = dict(task.named_parameters())
    trainable = {name for names in groups for name in names}
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in trainable)
    optimizer = AdamW([{"params": [parameters[name] for name in names]} for names in groups], lr=1e-3)
    options = resolved(setup, task, device.type == "cuda")
    if setup == "ddp":
        engine = DDPEngine(
            task, optimizer, rewrap=lambda: wrap(held, options, init_sync=False), wrapped=lambda: held.runner
        )
        held = Held(task, engine, optimizer, None)
        wrap(held, options, init_sync=True)
        return held
    import deepspeed

    zero = (Zero3Engine if setup == "zero3" else Zero12Engine)(task, optimizer)
    runner, _, _, _ = deepspeed.initialize(
        model=task,
        optimizer=optimizer,
        model_parameters=[p for p in task.parameters() if p.requires_grad],
        config=options,
        dist_init_required=False,
    )
    zero.attach(runner)
    return Held(task, zero, optimizer, runner)


def wrap(held: Held, options: dict[str, Any], *, init_sync: bool) -> None:
    """Build DistributedDataParallel around the model."""
    held.runner = DistributedDataParallel(held.task, **options, init_sync=init_sync)


def build(parameters: int, setup: str, device: torch.device) -> Stack:
    """The model, the same on all ranks, on the device and in the setup's type."""
    torch.manual_seed(0)
    return Stack(parameters).to(device, torch.float32 if setup == "ddp" else torch.bfloat16)


def micro_batch(task: Stack, seed: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """One micro batch of this rank."""
    generator = torch.Generator().manual_seed(1000 * seed + int(os.environ["RANK"]))
    dtype = next(task.parameters()).dtype
    x = torch.randn(BATCH, task.width, generator=generator).to(device, dtype)
    return x, torch.randint(CLASSES, (BATCH,), generator=generator).to(device)
