"""Rates of phases in a loop written by hand, on two ranks: at the unfreeze, ramped, aligned, refrozen, resumed."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from flash_strategies import Everything, Finetuner, LastLayers, Nothing, Phase, Rate

EPOCHS, STEPS, BATCH, LR = 7, 2, 8, 1e-2
LAST, FIRST = "backbone.2", "backbone.0"


@dataclass(frozen=True)
class Case:
    """A loop on a setup."""

    setup: str
    world_size: int = 2

    suite = Path(__file__)

    @property
    def name(self) -> str:
        """For `run_case`."""
        return self.setup


class Schedule:
    """A user's own: the last layer ramped up to the head's rate, then all, then refrozen, then all again."""

    name = "rates"

    def phases(self, max_epochs: int | None) -> tuple[Phase, ...]:
        """What trains when."""
        return (
            Phase("head", 0, Nothing()),
            Phase("last", 1, LastLayers(1), Rate(ratio=0.3, ramp=2)),
            Phase("all", 3, Everything(), Rate(lr=4e-4, ramp=3, align=False)),
            Phase("head again", 5, Nothing()),
            Phase("all again", 6, Everything()),
        )


SHARES = {
    LAST: [None, 0.3, 0.6, 1.0, 1.0, None, 1.0],
    FIRST: [None, None, None, 4e-4 / (LR * 0.25), 3 * 4e-4 / (LR * 0.25), None, 1.0],
}
"""What each layer trains with by epoch, over the head's rate; the head's halves every other epoch."""
HEAD = [LR * 0.5 ** ((epoch + 1) // 2) for epoch in range(EPOCHS)]


class Task(nn.Module):
    """A backbone of two layers and a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh())
        self.head = nn.Linear(8, 3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Logits (N, 3) of inputs (N, 6)."""
        logits: torch.Tensor = self.head(self.backbone(inputs))
        return logits


def batches(epoch: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The whole batches of an epoch."""
    generator = torch.Generator().manual_seed(epoch)
    of = [torch.randn(BATCH, 6, generator=generator) for _ in range(STEPS)]
    return [(inputs, inputs[:, :3].argmax(dim=1)) for inputs in of]


def scheduler_of(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.MultiStepLR:
    """Halves the rates before epochs 1, 3 and 5."""
    return torch.optim.lr_scheduler.MultiStepLR(optimizer, [1, 3, 5], gamma=0.5)


def config(stage: int) -> dict[str, object]:
    """DeepSpeed's."""
    zero = {"stage": stage, "reduce_bucket_size": 500, "stage3_param_persistence_threshold": 0}
    return {"train_micro_batch_size_per_gpu": BATCH // 2, "zero_allow_untested_optimizer": True} | {
        "zero_optimization": zero,
        "gradient_clipping": 0.0,
    }


def train(setup: str, folder: Path, load: int | None = None) -> dict[str, object]:
    """Rates of each layer by epoch, as they were in its last step, and whole weights at the end.

    Args:
        setup: ddp, zero1, ...
        folder: of checkpoints, one after each epoch.
        load: the epoch after which to resume; else they are saved.
    """
    task = Task()
    finetuner = Finetuner(task, Schedule(), max_epochs=EPOCHS, timeout=20)
    optimizer = torch.optim.AdamW(task.parameters(), lr=LR)
    scheduler = scheduler_of(optimizer)
    if setup == "ddp":
        model = finetuner.ddp(optimizer, [scheduler])
    else:
        model = finetuner.deepspeed(optimizer, config(int(setup[-1])), [scheduler])
    if load is not None:
        finetuner.load(folder / str(load))
    rates: list[dict[str, float]] = []
    reported: list[tuple[float, ...]] = []
    move = finetuner.transitions.move
    finetuner.transitions.move = lambda *a, **k: reported.append((r := move(*a, **k)).rates) or r  # type: ignore
    for epoch in range(0 if load is None else load + 1, EPOCHS):
        model = finetuner.begin_epoch(epoch)
        for inputs, labels in batches(epoch):
            half = slice(dist.get_rank(), None, 2)
            loss = nn.functional.cross_entropy(model(inputs[half]), labels[half])
            if setup == "ddp":
                loss.backward()
                finetuner.before_step()
                optimizer.step()
                optimizer.zero_grad()
            else:
                model.backward(loss)  # type: ignore[operator]
                finetuner.before_step()
                model.step()  # type: ignore[operator]
            finetuner.after_step()
        engine = finetuner.transitions.engine
        groups = zip(engine.cohorts, engine.optimizer.param_groups, strict=True)
        rates.append({name: float(group["lr"]) for cohort, group in groups for name in cohort.names})
        scheduler.step()
        finetuner.end_epoch()
        if load is None:
            finetuner.save(folder / str(epoch))
    weights = {}
    for name, parameter in finetuner.transitions.engine.parameters.items():
        with finetuner.transitions.engine.gathered(parameter):
            weights[name] = parameter.detach().clone()
    return {"rates": rates, "weights": weights, "reported": reported}


def run_case(setup: str) -> dict[str, object]:
    """The loop, and what differs in those that resume from its checkpoints, by epoch."""
    folders: list[object] = [tempfile.mkdtemp()]
    dist.broadcast_object_list(folders)
    folder = Path(str(folders[0]))
    whole = train(setup, folder)
    differs = {}
    for epoch in (0, 1, 2, 3, 5):
        again = train(setup, folder, epoch)
        odd = [n for n, w in again["weights"].items() if not torch.equal(w, whole["weights"][n])]  # type: ignore
        differs[epoch] = (odd, again["rates"] == whole["rates"][epoch + 1 :])  # type: ignore[index]
    return {**whole, "differs": differs}


def reference() -> dict[str, torch.Tensor]:
    """Weights at the end of the same in plain torch: whole batches, a param group per layer, rates set by hand."""
    task = Task()
    parts = {"head": task.head, LAST: task.backbone[2], FIRST: task.backbone[0]}
    optimizers: dict[str, torch.optim.Optimizer] = {}
    for epoch in range(EPOCHS):
        for name, part in parts.items():
            share = 1.0 if name == "head" else SHARES[name][epoch]
            part.requires_grad_(share is not None)
            if share is None:
                optimizers.pop(name, None)  # unfrozen again, it begins without moments
            else:
                optimizer = optimizers.setdefault(name, torch.optim.AdamW(part.parameters()))
                optimizer.param_groups[0]["lr"] = HEAD[epoch] * share
        for inputs, labels in batches(epoch):
            task.zero_grad()
            nn.functional.cross_entropy(task(inputs), labels).backward()
            for optimizer in optimizers.values():
                optimizer.step()
    return {name: parameter.detach() for name, parameter in task.named_parameters()}
