"""Runs of the worker's own `train` on one rank: what a step calls, stops, fences, and storage that is slow or fails."""

from __future__ import annotations

import errno
import logging
import os
import sys
import threading
import time
import warnings
from pathlib import Path
from unittest import mock

import torch.distributed as dist

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

from step_calls import SyncCounter  # noqa: E402
from step_rank import run_ours  # noqa: E402
from step_task import Net  # noqa: E402

from flash_launch.checkpoint import lookout, saver, writing  # noqa: E402
from flash_launch.checkpoint.attempts import begin  # noqa: E402
from flash_launch.checkpoint.store import Store  # noqa: E402
from flash_launch.errors import FencedError  # noqa: E402
from flash_launch.run_folder import RunFolder, read_json, read_jsonl  # noqa: E402
from flash_strategies import run_session  # noqa: E402

logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
warnings.simplefilter("ignore")
os.environ |= {"GROUP_WORLD_SIZE": "1", "FLASH_LAUNCH_WATCHED": "0"}
RANK, OUTPUT = int(os.environ["RANK"]), Path(sys.argv[2])


def run_case(name: str) -> object:
    """Run it."""
    kind, _, setup = name.partition("_")
    case = {"calls": calls, "stop": stop, "fence": fence, "slow": slow_write, "fails": failing_write}[kind]
    folder = RunFolder(OUTPUT / "runs" / name)
    with mock.patch.object(dist, "destroy_process_group"):  # the ranks go on with the next case
        found = case(folder, setup or "ddp")
    dist.barrier()
    return found


def calls(folder: RunFolder, setup: str) -> list[dict[str, dict[str, int]]]:
    """What each step calls; more than 100 steps, so that only every tenth is logged. At ddp, somebody watches."""
    counter = SyncCounter()
    with mock.patch.dict(os.environ, FLASH_LAUNCH_WATCHED=str(int(setup == "ddp"))):
        run_ours(setup, folder, {"width": 16, "depth": 2, "steps": 240}, counter)
    return [step.to_json() for step in counter.steps]


def at_step(step: int, action: object) -> mock._patch[object]:
    """Do something when a step begins."""
    began = Net.on_train_batch_start

    def begins(task: Net, batch: object, batch_idx: int) -> None:
        began(task, batch, batch_idx)
        if batch_idx == step:
            action()  # type: ignore[operator]

    return mock.patch.object(Net, "on_train_batch_start", begins)


def stop(folder: RunFolder, setup: str) -> object:
    """Rank 1 alone is asked to stop, at step 20."""
    run_session._stop.clear()
    try:
        with at_step(20, run_session.note_stop if RANK == 1 else lambda: None):
            task = run_ours(setup, folder, {"width": 16, "depth": 2, "steps": 2000})
    finally:
        run_session._stop.clear()
    dist.barrier()
    return len(task.began), read_json(folder.summary_json), Store(folder.checkpoints).names()


def fence(folder: RunFolder, setup: str) -> object:
    """A newer attempt begins at step 20: what is raised, and whether step 200 was trained all the same."""
    raised, late = None, list[bool]()
    with mock.patch.object(lookout, "_FENCE_SECONDS", 0.0):
        try:
            with at_step(20, lambda: RANK == 0 and begin(folder.attempts)), at_step(200, lambda: late.append(True)):
                run_ours(setup, folder, {"width": 16, "depth": 2, "steps": 2000}, checkpoint_every=(0, "epochs"))
        except FencedError as error:
            raised = str(error)
    return raised, bool(late)


def slow_write(folder: RunFolder, setup: str) -> object:
    """Rank 1's storage needs until step 60 for the first checkpoint, and then longer than ranks wait for each other."""
    write, reached = writing.write_chunks, threading.Event()
    timeout = 4.0

    def slow(*args: object) -> None:
        if RANK == 1 and not reached.is_set():
            reached.wait()
            time.sleep(timeout + 1)
        write(*args)  # type: ignore[arg-type]

    def wait_for_writer() -> None:
        reached.set()
        for thread in threading.enumerate():
            if thread.name == "checkpoint":
                thread.join()

    with (
        mock.patch.object(writing, "write_chunks", slow),
        mock.patch.object(saver, "_PATIENCE", 0.1),
        at_step(60, wait_for_writer),
    ):
        run_ours(
            *(setup, folder, {"width": 16, "depth": 2, "steps": 200}), checkpoint_every=(20, "steps"), timeout=timeout
        )
    return list(read_jsonl(folder.events_jsonl)), read_json(folder.summary_json), Store(folder.checkpoints).names()


def failing_write(folder: RunFolder, setup: str) -> object:
    """Rank 1 fails to write three checkpoints: it has no folder, meets what nobody expects, and its group breaks."""
    make, write, gather = writing._make_folders, writing._write_bytes, writing._together
    tries: list[object] = []

    def no_folder(*folders: Path | None) -> None:
        tries.append(folders)
        if RANK == 1 and len(tries) == 1:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(folders[0]))
        make(*folders)

    def unexpected(path: Path, data: bytes) -> None:
        if RANK == 1 and len(tries) == 2:
            raise ValueError("not as expected")
        write(path, data)

    def breaking(*args: object) -> object:
        if args[1] == "publishing step_60":
            raise RuntimeError("Connection closed by peer")
        return gather(*args)  # type: ignore[arg-type]

    with (
        mock.patch.object(writing, "_make_folders", no_folder),
        mock.patch.object(writing, "_write_bytes", unexpected),
        mock.patch.object(writing, "_together", breaking),
    ):
        run_ours(
            *(setup, folder, {"width": 16, "depth": 2, "steps": 200}),
            checkpoint_every=(20, "steps"),
            background_checkpoints=False,
        )
    return list(read_jsonl(folder.events_jsonl)), read_json(folder.summary_json), Store(folder.checkpoints).names()
