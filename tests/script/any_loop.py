"""The script of the tests: a loop that saves every four steps and when asked to; each step waits as `pause` says."""

import os
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

from flash_strategies.run_session import EXIT_STOPPED, current_session, stop_requested

STEPS = 16
HERE = Path(__file__).parent


def main() -> None:
    dist.init_process_group("gloo")
    rank, session = dist.get_rank(), current_session()
    assert session is not None
    print(f"rank {rank} of attempt {session.attempt}, {sys.argv[1:]}", flush=True)
    checkpoint = session.checkpoints / "loop.pt"
    weights, first = torch.zeros(4), 0
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        weights, first = saved["weights"], saved["step"]
    for step in range(first, STEPS):
        gradient = torch.randn(4, generator=torch.Generator().manual_seed(10 * step + rank))
        dist.all_reduce(gradient)
        weights = weights + torch.tanh(gradient + weights)
        stop = torch.tensor(int(stop_requested()))
        dist.all_reduce(stop)
        if rank == 0 and (stop or (step + 1) % 4 == 0):
            torch.save({"weights": weights, "step": step + 1}, checkpoint.with_suffix(".tmp"))
            checkpoint.with_suffix(".tmp").replace(checkpoint)
        (session.folder / f"at{rank}").write_text(f"{session.attempt} {step + 1} {os.getpid()}")
        if stop:
            sys.exit(EXIT_STOPPED)
        time.sleep(float((HERE / "pause").read_text()))
    if rank == 0:
        torch.save(weights, session.folder / "weights.pt")
    sys.exit(0)


if __name__ == "__main__":
    main()
