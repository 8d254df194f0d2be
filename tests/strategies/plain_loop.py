"""A loop written by hand with `Finetuner`, run on each rank: `plain_loop.py FOLDER SETUP...`."""

import logging
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from flash_strategies import Finetuner

EPOCHS, STEPS, BATCH = 3, 4, 8


class Task(nn.Module):
    """A backbone and a head, without batch norms: these normalise by what a rank has, not by the whole batch."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(nn.Linear(6, 12), nn.LayerNorm(12), nn.Tanh(), nn.Linear(12, 8), nn.Tanh())
        self.head = nn.Linear(8, 3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.backbone(inputs))
        return logits


def train(setup: str, folder: Path, *, load: Path | None = None) -> dict[str, object]:
    """Digests at the end of each epoch, the phases seen, and all weights at the end; saves after each epoch."""
    task = Task()
    finetuner = Finetuner(task, ("unfreeze_milestones", ((1, 2), 1)), max_epochs=EPOCHS, train_bn=False, timeout=20)
    optimizer = torch.optim.AdamW(task.parameters(), lr=1e-2)
    if setup == "ddp":
        model = finetuner.ddp(optimizer)
    else:
        config = {
            "train_micro_batch_size_per_gpu": BATCH,
            "gradient_clipping": 0.0,
            "zero_allow_untested_optimizer": True,
            "zero_optimization": {"stage": int(setup[-1]), "reduce_bucket_size": 500},
        }
        model = finetuner.deepspeed(optimizer, config)
    many = dist.is_initialized()
    rank, world = (dist.get_rank(), dist.get_world_size()) if many else (0, 1)
    generator = torch.Generator().manual_seed(1)
    digests, trainable = [], []
    start = 0
    if load is not None:
        model = finetuner.load(load)
        start = int(load.name) + 1
        for _ in range(start * STEPS):  # the data that were seen
            torch.randn(BATCH, 6, generator=generator)
            torch.randint(0, 3, (BATCH,), generator=generator)
    for epoch in range(start, EPOCHS):
        model = finetuner.begin_epoch(epoch)
        trainable.append(len(finetuner.transitions.trainable))
        for _ in range(STEPS):
            inputs = torch.randn(BATCH, 6, generator=generator)[rank::world]
            labels = torch.randint(0, 3, (BATCH,), generator=generator)[rank::world]
            loss = nn.functional.cross_entropy(model(inputs), labels)
            if setup == "ddp":
                loss.backward()
                finetuner.before_step()
                optimizer.step()
                optimizer.zero_grad()
            else:
                model.backward(loss)
                finetuner.before_step()
                model.step()
            finetuner.after_step()
        digests.append(finetuner.end_epoch())
        if load is None:
            finetuner.save(folder / setup / str(epoch))
    weights = {}
    for name, parameter in finetuner.transitions.engine.parameters.items():
        with finetuner.transitions.engine.gathered(parameter):
            weights[name] = parameter.detach().clone()
    shm_op = sys.modules["deepspeed"].ops.__compatible_ops__["deepspeed_shm_comm"] if setup != "ddp" else False
    return {"digests": digests, "trainable": trainable, "weights": weights, "compiles": bool(shm_op)}


def main() -> None:
    folder = Path(sys.argv[1])
    rank = int(os.environ.get("RANK", "0"))
    if "RANK" in os.environ:
        import deepspeed

        deepspeed.utils.logger.setLevel(logging.ERROR)
        dist.init_process_group("gloo")
    for setup in sys.argv[2:]:
        (folder / setup).mkdir(exist_ok=True)
    results = {setup: train(setup, folder) for setup in sys.argv[2:]}
    # each setup goes on from what the next one saved, on both sides of an unfreeze; the first also from its own
    setups = sys.argv[2:]
    for setup, other in zip(setups, [*setups[1:], setups[0]], strict=True):
        for epoch in range(EPOCHS - 1):
            results[f"{setup} from {other} {epoch}"] = train(setup, folder, load=folder / other / str(epoch))
        results[f"{setup} from itself"] = train(setup, folder, load=folder / setup / "0")
    torch.save(results, folder / f"{rank}.pt")
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
