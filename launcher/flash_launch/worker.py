"""One rank of a run: `python -m flash_launch.worker RUN_FOLDER` under torchrun."""

from __future__ import annotations

import logging
import os
import sys
import time
import warnings
from datetime import timedelta
from pathlib import Path

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pytorch_lightning.callbacks import TQDMProgressBar
from pytorch_lightning.callbacks.progress.tqdm_progress import Tqdm
from pytorch_lightning.strategies import Strategy
from torch.distributed.elastic.multiprocessing.errors import record

from flash_launch.assembly import Assembly, assemble, uses_cuda
from flash_launch.config import RunConfig
from flash_launch.final_weights import save_weights
from flash_launch.recorder import Recorder
from flash_launch.run_folder import RunFolder, append_jsonl, write_json
from flash_strategies.digest import combined_digest
from flash_strategies.lightning import FinetuningCallback, FinetuningDDPStrategy, FinetuningDeepSpeedStrategy

_PRECISION = {"32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


@record
def main() -> None:
    """Run one rank to its end."""
    folder = RunFolder(Path(sys.argv[1]).absolute())
    config = RunConfig.from_yaml(folder.config_yaml.read_text(encoding="utf-8"), str(folder.config_yaml))
    _quiet()
    if not uses_cuda(config):
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed looks for one and says that it found none
    if "OMP_NUM_THREADS" in os.environ:
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    local = int(os.environ["LOCAL_WORLD_SIZE"])
    assembly = assemble(
        config,
        world_size=int(os.environ["WORLD_SIZE"]),
        procs_per_node=local,
        cuda=uses_cuda(config),
        read_data=False,
    )
    rank = int(os.environ["RANK"])
    if rank == 0:
        write_json(folder.deepspeed_json, assembly.engine_config)
        append_jsonl(folder.events_jsonl, {"event": "launch", "time": time.time(), "world_size": assembly.world_size})
    train(assembly, folder)


def train(assembly: Assembly, folder: RunFolder) -> None:
    """Train, and leave the summary and the weights in the run folder."""
    config = assembly.config
    finetuning = assembly.finetuning
    recorder = Recorder(folder, finetuning, batch_size=config.batch_size)
    recorder.phase_layers({phase.phase.name: len(phase.selection.layers) for phase in assembly.phases})
    trainer = pl.Trainer(
        max_epochs=config.max_epochs,
        accelerator="cuda" if uses_cuda(config) else "cpu",
        devices=int(os.environ["LOCAL_WORLD_SIZE"]),
        num_nodes=int(os.environ["GROUP_WORLD_SIZE"]),
        strategy=_strategy(assembly),
        precision=_PRECISION[config.precision],  # type: ignore[arg-type]
        callbacks=[finetuning, recorder, _ReseedPerRank(config.seed), _Progress()],
        accumulate_grad_batches=config.accumulate,
        gradient_clip_val=config.gradient_clip,
        limit_train_batches=config.limit_train_batches,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        use_distributed_sampler=False,  # RunData deals the samples out
        num_sanity_val_steps=0,
        default_root_dir=str(folder.path),
    )
    trainer.fit(assembly.task, datamodule=assembly.data)
    if trainer.interrupted:
        raise KeyboardInterrupt
    _finish(assembly, trainer, finetuning, recorder, folder)


def _finish(
    assembly: Assembly, trainer: pl.Trainer, finetuning: FinetuningCallback, recorder: Recorder, folder: RunFolder
) -> None:
    transitions = finetuning.transitions
    control = transitions.control
    transitions.check()
    digests = control.gather(combined_digest(transitions.engine.whole_digests()), "the end of the run")
    save_weights(transitions.engine, assembly.task, folder.weights, write=trainer.is_global_zero)
    if trainer.is_global_zero:
        summary = {
            "status": "finished",
            "metrics": recorder.metrics,
            "parameter_digest": {str(rank): digest for rank, digest in enumerate(digests)},
            "phases": [phase.summary() for phase in recorder.phases],
            "world_size": trainer.world_size,
            "steps": trainer.global_step,
            "epochs": trainer.current_epoch,
        }
        write_json(folder.summary_json, summary)
    control.meet("the end of the run")
    dist.destroy_process_group()


def _strategy(assembly: Assembly) -> Strategy:
    timeout = timedelta(seconds=assembly.config.timeout)
    if assembly.setup.engine == "ddp":
        return FinetuningDDPStrategy(timeout=timeout, **assembly.engine_config)  # type: ignore[arg-type]
    return FinetuningDeepSpeedStrategy(assembly.engine_config, timeout=timeout)


class _Progress(TQDMProgressBar):
    """One bar per epoch where a person watches; validation has none of its own."""

    def __init__(self) -> None:
        super().__init__(refresh_rate=1)
        self._watched = os.environ.get("FLASH_LAUNCH_WATCHED", "1") == "1"

    def init_train_tqdm(self) -> Tqdm:
        return super().init_train_tqdm() if self._watched else Tqdm(disable=True)

    def init_validation_tqdm(self) -> Tqdm:
        return Tqdm(disable=True)


class _ReseedPerRank(pl.Callback):
    """Dropout and augmentation differ between ranks; the initial weights, which were seeded alike, do not."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        pl.seed_everything(self._seed + 1 + trainer.global_rank, workers=True, verbose=False)


def _quiet() -> None:
    """Keep what libraries say about themselves out of the way; warnings of the user's own code are shown."""
    for name in ("DeepSpeed", "pytorch_lightning", "lightning.pytorch", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for module in ("torch", "deepspeed", "pytorch_lightning", "lightning_fabric"):
        warnings.filterwarnings("ignore", module=rf"{module}(\..*)?")
    # the ddp template asks for it knowingly: a phase may leave trainable parameters without a gradient
    warnings.filterwarnings("ignore", message="find_unused_parameters=True was specified")


if __name__ == "__main__":
    main()
