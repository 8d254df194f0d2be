"""One rank of benchmarks/rank_equality.py, under torchrun's variables.

rank_equality_rank.py ours|lightning|scheduler STRATEGY FOLDER EPOCHS UNFREEZE
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from rank_equality_task import LEARNING_RATE, build_task

RANK, WORLD_SIZE = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def callback_of(kind: str, unfreeze: int, epochs: int) -> Any:
    """What unfreezes the backbone at the start of the epoch `unfreeze`, with the head's learning rate."""
    if kind == "ours":
        from flash_strategies import finetuning_callback

        return finetuning_callback(("freeze_unfreeze", unfreeze))
    if kind == "lightning":
        from pytorch_lightning.callbacks import BackboneFinetuning

        return BackboneFinetuning(
            unfreeze_backbone_at_epoch=unfreeze, backbone_initial_lr=LEARNING_RATE, lambda_func=lambda epoch: 1.0
        )
    from finetuning_scheduler import FinetuningScheduler

    schedule = {
        0: {"params": ["head.*"], "max_transition_epoch": unfreeze},
        1: {"params": ["backbone.*"], "lr": LEARNING_RATE, "max_transition_epoch": epochs},
    }
    return FinetuningScheduler(ft_schedule=schedule, epoch_transitions_only=True, restore_best=False)


def strategy_of(kind: str, name: str) -> Any:
    """The Trainer's strategy."""
    if kind != "ours":
        return name
    from flash_strategies.lightning import FinetuningDDPStrategy

    return FinetuningDDPStrategy()


def main() -> None:
    """Train, and write the weights."""
    kind, name, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    epochs, unfreeze = int(sys.argv[4]), int(sys.argv[5])
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    lightning = import_module("lightning.pytorch" if kind == "scheduler" else "pytorch_lightning")
    logging.getLogger(lightning.__name__).setLevel(logging.ERROR)
    task = build_task(lightning, WORLD_SIZE)
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        devices=WORLD_SIZE,
        strategy=strategy_of(kind, name),
        callbacks=[callback_of(kind, unfreeze, epochs)],
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        use_distributed_sampler=False,
        default_root_dir=str(folder),
    )
    trainer.fit(task)
    torch.save(dict(task.state_dict()), folder / f"{RANK}.pt")
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
