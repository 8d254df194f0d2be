"""A loop around an `Accelerator` that is not stopped, is asked to stop, and resumes: three runs in one process."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from flash_strategies import run_session
from flash_strategies.accelerate import AccelerateFinetuner

STOP_AT, EPOCHS = 6, 3


class Task(nn.Module):
    """With dropout, whose masks follow from the random state."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Dropout(0.3))
        self.head = nn.Linear(8, 3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.backbone(inputs))
        return logits


def run(accelerator: Accelerator, data: TensorDataset, stop_at: int | None = None) -> dict[str, object]:
    """One start of the program: weights at its end, what it trained on, its steps and its exit code."""
    rank = accelerator.process_index
    torch.manual_seed(3)
    task = Task()
    finetuner = AccelerateFinetuner(accelerator, task, ("freeze_unfreeze", 1), max_epochs=EPOCHS, timeout=30)
    optimizer = torch.optim.AdamW(task.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + 0.02 * step))
    loader = DataLoader(data, batch_size=2, shuffle=True)
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
                if finetuner.steps == stop_at and rank == 1:
                    run_session.note_stop()  # as the launcher's signal does, on one rank first
    except SystemExit as stopped:
        code = stopped.code
    run_session._stop.clear()
    weights = {}
    engine = finetuner.transitions.engine
    for key, parameter in engine.parameters.items():
        with engine.gathered(parameter):
            weights[key] = parameter.detach().clone()
    return {"weights": weights, "seen": seen, "steps": finetuner.steps, "code": code}


def whole_stopped_and_resumed(fresh: Callable[[], Accelerator], data: TensorDataset, folder: Path) -> object:
    """Three runs on the present ranks; the last two in a run folder, as two attempts."""
    whole = run(fresh(), data)
    with (
        mock.patch.dict(os.environ, {run_session.RUN: str(folder), run_session.ATTEMPT: "1"}),
        mock.patch("torch.distributed.destroy_process_group"),  # the next run is in the same processes
    ):
        stopped = run(fresh(), data, STOP_AT)
        os.environ[run_session.ATTEMPT] = "2"
        resumed = run(fresh(), data)
    return [whole, stopped, resumed]
