"""All that reaches into Lightning's private parts. Read against pytorch_lightning 2.6.6."""

from __future__ import annotations

from importlib import metadata

import pytorch_lightning as pl
from pytorch_lightning.core.optimizer import LightningOptimizer
from pytorch_lightning.strategies import DDPStrategy, DeepSpeedStrategy
from torch.optim import Optimizer

from flash_strategies.errors import UnsupportedVersionError

READ_VERSIONS = ("2.6.6",)


def check_version() -> None:
    """Refuse a Lightning whose private parts were not read.

    Raises:
        UnsupportedVersionError: another version is installed.
    """
    version = metadata.version("pytorch-lightning")
    if version not in READ_VERSIONS:
        raise UnsupportedVersionError(
            f"pytorch-lightning {version} is installed; transitions use parts of Lightning that were read at "
            f"{', '.join(READ_VERSIONS)} only. Install one of these: "
            f"pip install pytorch-lightning=={READ_VERSIONS[-1]}"
        )


def torch_optimizer(optimizer: Optimizer | LightningOptimizer) -> Optimizer:
    """The torch optimizer inside of Lightning's wrapper."""
    return optimizer.optimizer if isinstance(optimizer, LightningOptimizer) else optimizer


def wrap_ddp_anew(strategy: DDPStrategy, task: pl.LightningModule) -> None:
    """Build DistributedDataParallel around the task again; no broadcast, the ranks are proved equal."""
    strategy._ddp_kwargs["init_sync"] = False
    strategy.model = strategy._setup_model(task)
    strategy._register_ddp_hooks()


def start_deepspeed_on_cpu(strategy: DeepSpeedStrategy) -> None:
    """What `DeepSpeedStrategy.setup_environment` does, without its insisting on CUDA."""
    if strategy.accelerator is None:
        raise AssertionError("Lightning sets the accelerator before it sets up the environment")
    strategy.accelerator.setup_device(strategy.root_device)
    strategy.set_world_ranks()
    strategy._init_deepspeed_distributed()


def current_epoch_is_new(trainer: pl.Trainer) -> bool:
    """Whether the epoch that starts has no batch done yet (a run that goes on in the middle of one has)."""
    return trainer.fit_loop.epoch_loop.batch_progress.current.ready == 0
