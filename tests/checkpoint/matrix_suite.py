"""The matrix on one rank: unstopped runs and runs that go on from them, all by the worker's own `train`."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import warnings
from pathlib import Path
from unittest import mock

import torch.distributed as dist
from matrix_cases import (
    BATCHES_PER_EPOCH,
    BY_NAME,
    EPOCHS,
    GLOBAL_BATCH,
    POSITIONS,
    SAVED,
    TRANSITION,
    Case,
    Run,
    State,
    Unstopped,
)
from safetensors.torch import load_file

from flash_launch.assembly import assemble
from flash_launch.checkpoint.attempts import begin, read_attempts
from flash_launch.config import RunConfig
from flash_launch.run_folder import RunFolder, read_json, read_jsonl
from flash_launch.worker import train

logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
warnings.simplefilter("ignore")
os.environ |= {"GROUP_WORLD_SIZE": "1", "FLASH_LAUNCH_WATCHED": "0"}
RANK, WORLD_SIZE = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
OUTPUT = Path(sys.argv[2])


def run_case(name: str) -> Run:
    """Run it, or go on with it."""
    asked = BY_NAME[name]
    if isinstance(asked, Unstopped):
        assert asked.world_size == WORLD_SIZE
        return _run(asked, asked.setup, RunFolder(_saved(asked)), checkpoint_every=(1, "steps"), keep_last=100)
    assert asked.world_size == WORLD_SIZE
    folder = RunFolder(OUTPUT / "runs" / name)
    if RANK == 0:
        _copy(RunFolder(_saved(asked.unstopped)), folder, asked)
    return _run(asked.unstopped, asked.setup, folder, POSITIONS[asked.position], checkpoint_every=(0, "epochs"))


def _saved(unstopped: Unstopped) -> Path:
    return OUTPUT.parent / SAVED / unstopped.name


def _copy(saved: RunFolder, folder: RunFolder, case: Case) -> None:
    """The run as it would be if it had ended at the position."""
    step = f"step_{POSITIONS[case.position]}"
    shutil.copytree(saved.attempts, folder.attempts)
    shutil.copytree(saved.checkpoints / step, folder.checkpoints / step)
    if (saved.checkpoints / "frozen").exists():
        shutil.copytree(saved.checkpoints / "frozen", folder.checkpoints / "frozen")


def _run(unstopped: Unstopped, setup: str, folder: RunFolder, step: int | None = None, **options: object) -> Run:
    if RANK == 0:
        folder.logs.mkdir(parents=True)
        begin(folder.attempts, resumed_from=None if step is None else f"step_{step}", resumed_step=step or 0)
    dist.barrier()
    assembly = assemble(
        _config(unstopped, setup).replace(**options),
        world_size=WORLD_SIZE,
        procs_per_node=WORLD_SIZE,
        cuda=False,
        read_data=False,
    )
    with mock.patch.object(dist, "destroy_process_group"):  # the ranks go on with the next case
        train(assembly, folder, read_attempts(folder.attempts)[-1])
    dist.barrier()
    states = assembly.task.states
    assert isinstance(states, dict)
    found: dict[int, State] = states if step is None else {step: states[step]}
    summary = read_json(folder.summary_json)
    assert isinstance(summary, dict)
    return Run(found, load_file(folder.weights), summary, list(read_jsonl(folder.metrics_jsonl)))


def _config(unstopped: Unstopped, setup: str) -> RunConfig:
    strategy = unstopped.strategy
    own: dict[str, object] = {}
    if strategy.startswith("freeze_unfreeze"):
        own = {"unfreeze_epoch": TRANSITION}
    if strategy.startswith("unfreeze_milestones"):
        own = {"milestones": (TRANSITION - 1, TRANSITION), "num_layers": 2}
    config = RunConfig(
        accelerator="cpu",
        timeout=30,
        strategy="matrix_task:Swap" if strategy == "swap" else strategy,
        setup=setup,
        task="matrix_task:Net",
        task_args={"norms": unstopped.net == "norms"},
        data="digits",
        max_epochs=EPOCHS,
        batch_size=GLOBAL_BATCH // WORLD_SIZE,
        limit_train_batches=BATCHES_PER_EPOCH,
        lr=1e-2,
        weight_decay=0.1,
        lr_schedule="cosine",
    )
    return config.replace(**own)
