"""One rank of benchmarks/step_cost.py: `step_rank.py ours|lightning SETUP FOLDER JSON`, under torchrun's variables."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import warnings
from datetime import timedelta
from pathlib import Path

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from step_calls import SyncCounter
from step_task import BATCH, Net

from flash_launch import worker
from flash_launch.assembly import Assembly, assemble
from flash_launch.checkpoint.attempts import begin, read_attempts
from flash_launch.config import RunConfig
from flash_launch.run_folder import RunFolder

__all__ = ["run_ours"]

RANK, WORLD_SIZE = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def assembled(setup: str, args: dict[str, object], **options: object) -> Assembly:
    """The task on a setup, as the command has it."""
    config = RunConfig(
        accelerator="cpu",
        timeout=60,
        strategy="no_freeze" if setup == "ddp" else "no_freeze_deepspeed",
        setup=setup,
        task="step_task:Net",
        task_args=args,
        max_epochs=1,
        batch_size=BATCH,
    )
    return assemble(
        config.replace(**options), world_size=WORLD_SIZE, procs_per_node=WORLD_SIZE, cuda=False, read_data=False
    )


def run_ours(
    setup: str, folder: RunFolder, args: dict[str, object], counter: SyncCounter | None = None, **options: object
) -> Net:
    """Train through the command's worker; the process group must be there."""
    if RANK == 0:
        folder.logs.mkdir(parents=True)
        begin(folder.attempts)
    dist.barrier()
    assembly = assembled(setup, args, **options)
    task = assembly.task
    assert isinstance(task, Net)
    if counter is not None:
        task.on_begin = counter.begin_step
    with counter or contextlib.nullcontext():
        worker.train(assembly, folder, read_attempts(folder.attempts)[-1])
    return task


def run_lightning(setup: str, folder: RunFolder, args: dict[str, object], counter: SyncCounter | None = None) -> Net:
    """Train with Lightning's Trainer on the same strategy (Lightning's own DeepSpeed strategy needs CUDA)."""
    assembly = assembled(setup, args)
    task = assembly.task
    assert isinstance(task, Net)
    if counter is not None:
        task.on_begin = counter.begin_step
    strategy: object = worker._strategy(assembly)
    if setup == "ddp":
        strategy = pl.strategies.DDPStrategy(timeout=timedelta(seconds=60), **assembly.engine_config)  # type: ignore[arg-type]
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        devices=WORLD_SIZE,
        strategy=strategy,  # type: ignore[arg-type]
        logger=False,
        log_every_n_steps=10,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        use_distributed_sampler=False,
        default_root_dir=str(folder.path),
    )
    with counter or contextlib.nullcontext():
        trainer.fit(task)
    return task


def main() -> None:
    """Run, and write times and calls."""
    kind, setup, folder, values = sys.argv[1], sys.argv[2], RunFolder(Path(sys.argv[3])), json.loads(sys.argv[4])
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    os.environ |= {"GROUP_WORLD_SIZE": "1", "FLASH_LAUNCH_WATCHED": "0", "DS_ACCELERATOR": "cpu"}
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    counter = SyncCounter() if values.pop("count") else None
    run = run_ours if kind == "ours" else run_lightning
    task = run(setup, folder, values, counter)
    calls = [one.to_json() for one in counter.steps] if counter is not None else []
    found = {"began": task.began, "began_cpu": task.began_cpu, "calls": calls}
    folder.path.mkdir(parents=True, exist_ok=True)
    (folder.path / f"step_rank_{RANK}.json").write_text(json.dumps(found))
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
