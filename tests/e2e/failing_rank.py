"""A rank that fails in a way that is named: `failing_rank.py WAY RUN_FOLDER`, under real agents, without Lightning."""

import contextlib
import ctypes
import datetime
import os
import resource
import signal
import sys
import time
from pathlib import Path
from typing import NoReturn

from flash_launch import progress

way, folder = sys.argv[1], Path(sys.argv[2])
rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
last = rank == world_size - 1


def wait_for_all() -> None:
    """Until all ranks are here, without torch."""
    (folder / f"here{rank}").touch()
    while len(list(folder.glob("here*"))) < world_size:
        time.sleep(0.02)


def be_victim() -> NoReturn:
    """What is left to a rank whose neighbour is gone; torchrun ends it."""
    time.sleep(120)
    sys.exit("nobody ended this rank")


def join(seconds: float = 60.0, *, together: bool = True) -> None:
    import torch.distributed as dist

    if together:  # how long the imports took must not count against the time-out
        wait_for_all()
    dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=seconds))


def all_reduce() -> None:
    import torch
    import torch.distributed as dist

    dist.all_reduce(torch.ones(3))


def load_the_next_batch() -> None:
    """Where the rank that is behind hangs; it heeds no SIGTERM, as a rank that saves on it does not."""
    signal.signal(signal.SIGTERM, lambda *_: None)
    while True:
        with contextlib.suppress(InterruptedError):
            time.sleep(60)


def hang() -> None:
    join(4)
    all_reduce()
    progress.tell("the forward pass", epoch=1, step=7)
    if last:
        progress.tell("fetching data", epoch=1, step=6)
        load_the_next_batch()
    progress.tell("the backward pass")
    all_reduce()


def hang_apart() -> None:
    import torch.distributed as dist

    join(4)
    all_reduce()
    progress.tell("the forward pass", epoch=0, step=3)
    if last:
        dist.barrier()
    else:
        all_reduce()
    be_victim()


def end_early() -> None:
    join(5)
    all_reduce()
    if not last:
        all_reduce()


def fill_memory() -> None:
    """Join the control group that the test made, whose memory is limited, and use more than there is."""
    (Path(os.environ["STAGED_CGROUP"]) / "cgroup.procs").write_text(str(os.getpid()))
    held = bytearray(1)
    while True:
        held += b"x" * (8 << 20)


def memory_error() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
    held = [bytearray(1 << 30) for _ in range(4)]
    print(len(held))


def fill_disk() -> None:
    with (folder / "checkpoint").open("wb") as file:
        while True:
            file.write(b"x" * 65536)
            file.flush()


def data_worker_killed() -> None:
    from torch.utils.data import DataLoader, Dataset

    class Images(Dataset[int]):
        def __len__(self) -> int:
            return 8

        def __getitem__(self, index: int) -> int:
            os.kill(os.getpid(), signal.SIGKILL)
            return index

    list(DataLoader(Images(), num_workers=1))


def data_worker_raises() -> None:
    from torch.utils.data import DataLoader, Dataset

    class Images(Dataset[int]):
        def __len__(self) -> int:
            return 8

        def __getitem__(self, index: int) -> int:
            raise ValueError(f"image {index} has no label")

    list(DataLoader(Images(), num_workers=1))


def compute_with_a_bad_pointer() -> None:
    ctypes.string_at(0)


def lose_connection() -> None:
    """The rank is gone without a word, as with its node: not even its agent is left."""
    join()
    all_reduce()
    if last:
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(60)
    all_reduce()


if way in ("hang", "hang_apart", "end_early", "lose_connection"):
    {"hang": hang, "hang_apart": hang_apart, "end_early": end_early, "lose_connection": lose_connection}[way]()
elif way == "join":
    join(4, together=False)
    all_reduce()
elif way == "several":
    wait_for_all()
    raise ValueError("labels must be below 10")
else:
    wait_for_all()
    if not last:
        be_victim()
    progress.tell("the forward pass", epoch=0, step=12)
    if way == "exception":
        raise ValueError("labels must be below 10")
    if way == "sigkill":
        os.kill(os.getpid(), signal.SIGKILL)
    if way == "interrupt":
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)
    if way == "import_error":
        __import__("kornia_of_another_machine.filters")
    if way == "exit":
        os._exit(3)
    {
        "oom_kill": fill_memory,
        "memory_error": memory_error,
        "disk_full": fill_disk,
        "data_worker_killed": data_worker_killed,
        "data_worker_raises": data_worker_raises,
        "segfault": compute_with_a_bad_pointer,
    }[way]()
