"""The same script, which also saves and stops when flash-launch, or Slurm through it, asks for that."""

import argparse
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from flash_strategies.run_session import EXIT_STOPPED, current_session, stop_requested
from torch import nn
from torch.nn.parallel import DistributedDataParallel


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """This rank's samples of a step."""
    generator = torch.Generator().manual_seed(1000 * step + dist.get_rank())
    inputs = torch.randn(8, 6, generator=generator)
    return inputs, (inputs.sum(dim=1) > 0).long()


def main() -> None:
    """Train, from the last checkpoint on if there is one."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--lr", type=float, default=0.1)
    args = parser.parse_args()
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    model = DistributedDataParallel(nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 2)))
    optimizer = torch.optim.SGD(model.parameters(), lr=args.lr, momentum=0.9)
    checkpoint = (session.checkpoints if (session := current_session()) else Path()) / "checkpoint.pt"
    first = 0
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        first = saved["step"]
    for step in range(first, args.steps):
        inputs, labels = batch(step)
        loss = nn.functional.cross_entropy(model(inputs), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        dist.all_reduce(stop := torch.tensor(int(stop_requested())))  # ranks are asked one after the other
        if (stop or (step + 1) % 10 == 0) and dist.get_rank() == 0:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
            torch.save(state, checkpoint.with_suffix(".tmp"))
            checkpoint.with_suffix(".tmp").replace(checkpoint)
            print(f"step {step + 1}: loss {loss.item():.4f}", flush=True)
        if stop:
            sys.exit(EXIT_STOPPED)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
