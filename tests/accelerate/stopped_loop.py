"""A loop around an `Accelerator` that is asked to stop, or resumes: `stopped_loop.py FOLDER SETUP NAME [STOP_AT]`.

Weights and what was trained on go to FOLDER/NAME.RANK.pt; under a run folder in the environment, checkpoints go there.
"""

from __future__ import annotations

import faulthandler
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate_loop import BATCH, accelerator_of, data
from torch import nn
from torch.utils.data import DataLoader

from flash_strategies import deepspeed_private, run_session
from flash_strategies.accelerate import AccelerateFinetuner


class Task(nn.Module):
    """With dropout, whose masks follow from the random state."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Dropout(0.3))
        self.head = nn.Linear(8, 3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.backbone(inputs))
        return logits


def main() -> None:
    folder, setup, name = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    stop_at = int(sys.argv[4]) if len(sys.argv) > 4 else -1
    faulthandler.dump_traceback_later(150, exit=True)
    torch.set_num_threads(1)
    if setup != "ddp":
        deepspeed_private.without_shm_op()
    accelerator = accelerator_of(setup)
    rank = accelerator.process_index
    torch.manual_seed(3)
    task = Task()
    finetuner = AccelerateFinetuner(accelerator, task, ("freeze_unfreeze", 1), max_epochs=3, timeout=30)
    optimizer = torch.optim.AdamW(task.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + 0.02 * step))
    loader = DataLoader(data(), batch_size=BATCH // 2 // 2, shuffle=True)
    model, optimizer, loader, schedule = finetuner.prepare(task, optimizer, loader, schedule)
    torch.manual_seed(10 + rank)
    seen: list[list[float]] = []
    code: object = 0
    try:
        for _ in finetuner.epochs():
            for inputs, labels in finetuner.batches(loader):
                with accelerator.accumulate(model):
                    accelerator.backward(nn.functional.cross_entropy(model(inputs), labels))
                    optimizer.step()
                    schedule.step()
                    optimizer.zero_grad()
                seen.append(inputs[:, 0].tolist())
                if finetuner.steps >= stop_at > 0 and rank == 1:
                    run_session.note_stop()  # as the launcher's signal does, on one rank first
    except SystemExit as stopped:
        code = stopped.code
    weights = {}
    engine = finetuner.transitions.engine
    if code == 0:
        for key, parameter in engine.parameters.items():
            with engine.gathered(parameter):
                weights[key] = parameter.detach().clone()
    torch.save({"weights": weights, "seen": seen, "steps": finetuner.steps}, folder / f"{name}.{rank}.pt")
    if dist.is_initialized():
        dist.destroy_process_group()
    sys.stdout.flush()
    os._exit(int(str(code)))


if __name__ == "__main__":
    main()
