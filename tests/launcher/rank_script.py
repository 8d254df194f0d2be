"""What a rank does in the tests of the executor: `rank_script.py MODE RUN_FOLDER`, without Lightning or DeepSpeed."""

import datetime
import os
import signal
import sys
import time
from pathlib import Path

mode, folder = sys.argv[1], Path(sys.argv[2])
rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def wait_for_all() -> None:
    """Until all ranks are here, without torch."""
    (folder / f"here{rank}").touch()
    while len(list(folder.glob("here*"))) < world_size:
        time.sleep(0.02)


def fail_here(how: str) -> None:
    if how == "raise":
        raise ValueError("the loss is a banana")
    if how == "fault":
        from flash_launch.errors import DataError

        raise DataError("the folder 'cats' is empty: put images into it")
    if how == "exit":
        print("I leave", flush=True)
        os._exit(3)
    if how == "sysexit":
        sys.exit(4)
    if how == "leave":
        sys.exit()
    os.kill(os.getpid(), signal.SIGKILL)


def all_reduce_until_one_is_gone(how: str) -> None:
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=60))
    total = torch.tensor([float(rank)])
    dist.all_reduce(total)
    assert total.item() == sum(range(world_size))
    print(f"rank {rank} of {world_size}: sum {total.item():.0f}", flush=True)
    if how != "none" and rank == world_size - 1:
        fail_here(how)
    dist.all_reduce(total)
    dist.destroy_process_group()


print(f"rank {rank} begins", flush=True)
if mode == "bar":
    sys.stderr.write("to stderr\n")
    for step in range(3):
        sys.stdout.write(f"\rstep {step}")
        sys.stdout.flush()
    print(f"\nthreads {os.environ['OMP_NUM_THREADS']} gpus {os.environ.get('CUDA_VISIBLE_DEVICES')}")
elif mode.startswith("gloo_"):
    all_reduce_until_one_is_gone(mode.removeprefix("gloo_"))
elif mode == "until_asked":
    from flash_launch.rank_guard import stop_requested

    wait_for_all()
    while not stop_requested():
        time.sleep(0.02)
    print(f"rank {rank} was asked to stop", flush=True)
else:
    stubborn = mode.startswith("stubborn_")
    if stubborn and rank != world_size - 1:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    wait_for_all()
    if not mode.endswith("sleep") and rank == world_size - 1:
        fail_here(mode.removeprefix("stubborn_"))
    time.sleep(120)
