"""A loop around an `Accelerator`, run on each rank: `accelerate_loop.py FOLDER SETUP:STRATEGY...`.

Results go to FOLDER/RANK.pt. After each epoch there is a `save_state` and a `finetuner.save`; other runs resume from
them.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import DeepSpeedPlugin, InitProcessGroupKwargs
from stopping import whole_stopped_and_resumed
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from flash_strategies import deepspeed_private
from flash_strategies.accelerate import AccelerateFinetuner

EPOCHS, MICRO_BATCHES, BATCH, CLIP, RATE = 3, 5, 8, 0.5, 1e-2
STRATEGIES = {"freeze_unfreeze": ("freeze_unfreeze", 1), "milestones": ("unfreeze_milestones", ((1, 2), 1))}


class Task(nn.Module):
    """A backbone and a head, without batch norms: these normalise by what a rank has, not by the whole batch."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(nn.Linear(6, 12), nn.LayerNorm(12), nn.Tanh(), nn.Linear(12, 8), nn.Tanh())
        self.head = nn.Linear(8, 3)
        self.temperature = nn.Parameter(torch.tensor(1.0))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.temperature * self.head(self.backbone(inputs.to(self.temperature.dtype)))
        return logits


def data() -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    count = MICRO_BATCHES * BATCH
    return TensorDataset(torch.randn(count, 6, generator=generator), torch.randint(0, 3, (count,), generator=generator))


def decay(step: int) -> float:
    """The learning rate after so many calls of the schedule, over the first one."""
    return 1 / (1 + 0.02 * step)


def accelerator_of(setup: str, precision: str = "no") -> Accelerator:
    """A new one; Accelerate keeps its state in classes."""
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    os.environ.pop("ACCELERATE_USE_DEEPSPEED", None)
    if setup == "ddp":
        return Accelerator(cpu=True, gradient_accumulation_steps=2, mixed_precision=precision)
    plugin = DeepSpeedPlugin(zero_stage=int(setup[-1]), gradient_accumulation_steps=2, gradient_clipping=CLIP)
    plugin.deepspeed_config["zero_optimization"]["reduce_bucket_size"] = 500
    return Accelerator(
        deepspeed_plugin=plugin,
        mixed_precision=precision,
        kwargs_handlers=[InitProcessGroupKwargs(backend="gloo")],
        dataloader_config=DataLoaderConfiguration(),
    )


class Run:
    """One training run."""

    def __init__(self, setup: str, strategy: str, precision: str = "no") -> None:
        self.accelerator = accelerator = accelerator_of(setup, precision)
        task = Task()
        self.finetuner = AccelerateFinetuner(
            accelerator, task, STRATEGIES[strategy], max_epochs=EPOCHS, train_bn=False, timeout=20
        )
        optimizer = torch.optim.AdamW(task.parameters(), lr=RATE)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, decay)
        world = accelerator.num_processes
        loader = DataLoader(data(), batch_size=BATCH // world)
        self.model, self.optimizer, self.loader, self.schedule = self.finetuner.prepare(
            task, optimizer, loader, schedule
        )
        self.epochs: list[dict[str, object]] = []

    def train(self, first: int = 0, last: int = EPOCHS, folder: Path | None = None) -> None:
        accelerator, model = self.accelerator, self.model
        for epoch in range(first, last):
            self.finetuner.begin_epoch(epoch)
            steps = 0
            for inputs, labels in self.loader:
                with accelerator.accumulate(model):
                    loss = nn.functional.cross_entropy(model(inputs).float(), labels)
                    accelerator.backward(loss)
                    if accelerator.sync_gradients:
                        accelerator.clip_grad_norm_(model.parameters(), CLIP)
                        steps += 1
                    self.optimizer.step()
                    self.schedule.step()
                    self.optimizer.zero_grad()
            digest = self.finetuner.end_epoch()
            self.epochs.append(
                {
                    "digest": digest,
                    "weights": self.weights(),
                    "trainable": len(self.finetuner.transitions.trainable),
                    "steps": steps,
                    "rate": self.schedule.get_last_lr()[0],
                }
            )
            if folder is not None:
                accelerator.save_state(str(folder / f"state{epoch}"))
                self.finetuner.save(folder / f"saved{epoch}")

    def weights(self) -> dict[str, torch.Tensor]:
        engine = self.finetuner.transitions.engine
        found = {}
        for name, parameter in engine.parameters.items():
            with engine.gathered(parameter):
                found[name] = parameter.detach().clone()
        return found


def resumed(setup: str, strategy: str, folder: Path, epoch: int, *, by: str) -> list[dict[str, object]]:
    """The epochs after one, from a fresh process's state."""
    run = Run(setup, strategy)
    if by == "load_state":
        run.accelerator.load_state(str(folder / f"state{epoch}"))
    else:
        run.finetuner.load(folder / f"saved{epoch}")
    run.train(epoch + 1)
    return run.epochs


def main() -> None:
    folder, cases = Path(sys.argv[1]), [case.split(":") for case in sys.argv[2:]]
    rank = int(os.environ.get("RANK", "0"))
    torch.set_num_threads(1)
    faulthandler.dump_traceback_later(150, exit=True)
    if any(setup != "ddp" for setup, _ in cases):
        import deepspeed

        deepspeed_private.without_shm_op()  # Accelerator() would compile it, on a CPU
        deepspeed.utils.logger.setLevel(logging.ERROR)
    results: dict[str, object] = {}
    for setup, strategy in cases:
        name = f"{setup}:{strategy}"
        run = Run(setup, strategy)
        run.train(folder=folder / name)
        results[name] = run.epochs
        for epoch in range(EPOCHS - 1):
            results[f"{name} load_state {epoch}"] = resumed(setup, strategy, folder / name, epoch, by="load_state")
        results[f"{name} load 0"] = resumed(setup, strategy, folder / name, 0, by="load")
    for (setup, strategy), (other, _) in zip(cases, [*cases[1:], cases[0]], strict=True):
        if other != setup:
            there = folder / f"{other}:{strategy}"
            if there.exists():
                results[f"{setup}:{strategy} from {other}"] = resumed(setup, strategy, there, 0, by="load")
    setup = cases[0][0]
    results["stopping"] = whole_stopped_and_resumed(lambda: accelerator_of(setup), data(), folder / "run")
    results["imported"] = [
        name for name in ("deepspeed", "wandb", "pytorch_lightning", "lightning") if name in sys.modules
    ]
    torch.save(results, folder / f"{rank}.pt")
    if dist.is_initialized():
        dist.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
