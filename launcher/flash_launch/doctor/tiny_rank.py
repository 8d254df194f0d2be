"""One rank of the doctor's tiny run: imports torch, looks at its GPU, joins the others, adds up. Tells each step."""

import json
import os
import signal
import sys
from datetime import timedelta

__all__ = ["main"]


def main() -> int:
    """Run the rank: RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT are torchrun's; backend and seconds are arguments."""
    backend, seconds = sys.argv[1], int(sys.argv[2])
    signal.alarm(seconds)  # ends with the doctor's patience, whatever became of the doctor
    import torch
    import torch.distributed as dist

    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    count = torch.cuda.device_count()
    told: dict[str, object] = {"step": "imported", "devices": count, "available": torch.cuda.is_available()}
    told["cuda"] = torch.version.cuda
    _tell(told)
    device = torch.device("cpu")
    if rank < count:
        device = torch.device("cuda", rank)
        torch.cuda.set_device(device)
        square = torch.ones(64, 64, device=device) @ torch.ones(64, 64, device=device)
        if square.sum().item() != 64.0**3:
            raise RuntimeError(f"GPU {rank} multiplies wrongly")
        _tell({"step": "computed"})
    dist.init_process_group(backend, timeout=timedelta(seconds=max(1, seconds - 1)))
    _tell({"step": "joined"})
    values = torch.full((1024,), float(rank + 1), device=device if backend == "nccl" else "cpu")
    dist.all_reduce(values)
    right = world_size * (world_size + 1) / 2
    if values.min().item() != right or values.max().item() != right:
        raise RuntimeError(f"the sum over all ranks is {values[0].item()} and should be {right}")
    _tell({"step": "added"})
    dist.destroy_process_group()
    return 0


def _tell(step: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(step) + "\n")  # by one write: ranks share no line
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
