"""One rank of a run: `python -m flash_launch.worker RUN_FOLDER` under torchrun."""

from __future__ import annotations

import os
import signal
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pytorch_lightning.strategies import Strategy
from torch.distributed.elastic.multiprocessing.errors import record

from flash_launch import progress
from flash_launch.assembly import Assembly, assemble, uses_cuda
from flash_launch.checkpoint.attempts import Attempt, Fence, read_attempts
from flash_launch.checkpoint.manifest import read as read_manifest
from flash_launch.checkpoint.resumer import Resumer, position_in
from flash_launch.checkpoint.saver import EpochStart, RunStopped, Saver, SaverOptions
from flash_launch.checkpoint.schedule import Cadence, Keeping
from flash_launch.config import RunConfig
from flash_launch.final_weights import save_weights
from flash_launch.library_warnings import show_library_warnings
from flash_launch.logged_values import LoggedValues
from flash_launch.loss_guard import LossGuard
from flash_launch.metric_goal import MetricGoal
from flash_launch.progress_bar import EpochBar
from flash_launch.progress_callback import ProgressCallback
from flash_launch.rank_guard import note_stop
from flash_launch.recorder import Recorder
from flash_launch.run_folder import RunFolder, append_jsonl, write_json
from flash_launch.tracking.logger import RunLogger, start_tracking
from flash_launch.training.trainer_parts import LoggersSaved, build_loggers
from flash_strategies import reporting
from flash_strategies.buffers import buffer_digests, prove_buffers_equal
from flash_strategies.digest import combined_digest
from flash_strategies.errors import ProofError
from flash_strategies.lightning import FinetuningCallback, FinetuningDDPStrategy, FinetuningDeepSpeedStrategy
from flash_strategies.run_session import ATTEMPT

_PRECISION = {"32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


@record
def main() -> None:
    """Run one rank to its end."""
    folder = RunFolder(Path(sys.argv[1]).absolute())
    config = RunConfig.from_yaml(folder.config_yaml.read_text(encoding="utf-8"), str(folder.config_yaml))
    show_library_warnings(int(os.environ["RANK"]))
    if not uses_cuda(config):
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed looks for one and says that it found none
    if "OMP_NUM_THREADS" in os.environ:
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    attempt = next(one for one in read_attempts(folder.attempts) if one.number == int(os.environ[ATTEMPT]))
    logger = start_tracking(config, folder, attempt)
    try:
        with reporting.silenced():  # the recorder and the preflight say it
            _run(config, folder, attempt, logger)
    finally:
        logger.close()


def _run(config: RunConfig, folder: RunFolder, attempt: Attempt, logger: RunLogger) -> None:
    progress.tell("building the model and reading the data")
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
        begun = {"attempt": attempt.number, "resumed_from": attempt.resumed_from, "step": attempt.resumed_step}
        row = {"event": "launch", "time": time.time(), "world_size": assembly.world_size}
        append_jsonl(folder.events_jsonl, {**row, **begun})
    train(assembly, folder, attempt, logger)


def train(assembly: Assembly, folder: RunFolder, attempt: Attempt, logger: RunLogger | None = None) -> None:
    """Train, and leave the summary and the weights in the run folder."""
    config = assembly.config
    finetuning = assembly.finetuning
    recorder = Recorder(folder, finetuning, batch_size=config.batch_size)
    options = SaverOptions(
        Cadence(*config.checkpoint_every),
        Keeping(config.keep_last, MetricGoal.parse(config.keep_best) if config.keep_best else None),
        config.background_checkpoints,
        assembly.setup.name,
        config.batch_size,
        config.accumulate,
        config.timeout,
    )
    guard = LossGuard(finetuning)
    saver = Saver(folder, attempt, finetuning, options, before=guard.catch_up)
    resumer: list[pl.Callback] = []
    epochs = config.max_epochs
    if attempt.resumed_from is not None:
        manifest = read_manifest(folder.checkpoints / attempt.resumed_from)
        position = position_in(
            manifest.position,
            batch_size=config.batch_size,
            accumulate=config.accumulate,
            world_size=assembly.world_size,
        )
        resumer = [Resumer(folder, manifest, position, finetuning, saver, max_epochs=config.max_epochs)]
        epochs = max(epochs, position.epoch + 1)  # Lightning would not begin with nothing to do, and restore nothing
    recorder.phase_layers({phase.phase.name: len(phase.selection.layers) for phase in assembly.phases})
    parts = assembly.trainer_parts
    loggers = build_loggers(config, folder, resumed_step=attempt.resumed_step)
    arguments: dict[str, object] = {
        "log_every_n_steps": 10,  # what the task itself logs at steps
        "enable_model_summary": False,
        **parts.arguments,
    }
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cuda" if uses_cuda(config) else "cpu",
        devices=int(os.environ["LOCAL_WORLD_SIZE"]),
        num_nodes=int(os.environ["GROUP_WORLD_SIZE"]),
        strategy=_strategy(assembly),
        precision=_PRECISION[config.precision],  # type: ignore[arg-type]
        callbacks=[
            ProgressCallback(),
            guard,
            EpochStart(saver),
            finetuning,
            _ReseedPerRank(config.seed),
            _TakeSigterm(),
            LoggedValues(finetuning),
            *resumer,
            recorder,
            *([] if parts.other_bar else [EpochBar()]),
            *([LoggersSaved(loggers)] if loggers else []),
            saver,
            *parts.callbacks,
        ],
        accumulate_grad_batches=config.accumulate,
        gradient_clip_val=config.gradient_clip,
        limit_train_batches=config.limit_train_batches,
        limit_val_batches=config.limit_val_batches,
        logger=[*loggers, *([logger] if logger is not None else [])],  # the first is the task's self.logger
        enable_checkpointing=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,  # RunData deals the samples out
        default_root_dir=str(folder.path),
        **arguments,  # type: ignore[arg-type]
    )
    if logger is not None:
        logger.follow(trainer)
    try:
        trainer.fit(assembly.task, datamodule=assembly.data)
    except RunStopped as stop:
        _stop(trainer, finetuning, recorder, folder, stop)
        return
    if trainer.interrupted:
        raise KeyboardInterrupt
    Fence(folder.attempts, attempt.number).check()
    _finish(assembly, trainer, recorder, saver)


def _stop(
    trainer: pl.Trainer, finetuning: FinetuningCallback, recorder: Recorder, folder: RunFolder, stop: RunStopped
) -> None:
    if trainer.is_global_zero:
        summary = {
            "status": "stopped",
            "checkpoint": stop.checkpoint,
            "metrics": recorder.metrics,
            "phases": [phase.summary() for phase in recorder.phases],
            "world_size": trainer.world_size,
            "steps": stop.position.step,
            "epochs": stop.position.epoch,
        }
        write_json(folder.summary_json, summary)
        row = {"event": "stop", "time": time.time(), "step": stop.position.step, "epoch": stop.position.epoch}
        append_jsonl(folder.events_jsonl, {**row, "checkpoint": stop.checkpoint})
    finetuning.transitions.control.meet("the stop of the run")
    dist.destroy_process_group()


def _finish(assembly: Assembly, trainer: pl.Trainer, recorder: Recorder, saver: Saver) -> None:
    transitions, folder = assembly.finetuning.transitions, saver.folder
    control = transitions.control
    whole = {**transitions.engine.whole_digests(), **buffer_digests(assembly.task)}
    digests = control.gather(combined_digest(whole), "the end of the run")
    equal = len(set(digests)) == 1
    summary = {
        "status": "finished" if equal else "failed",
        "metrics": recorder.metrics,
        "parameter_digest": {str(rank): digest for rank, digest in enumerate(digests)},
        "phases": [phase.summary() for phase in recorder.phases],
        "world_size": trainer.world_size,
        "steps": trainer.global_step,
        "epochs": trainer.current_epoch,
    }
    if saver.stopped_early is not None:
        summary["stopped_early"] = saver.stopped_early.to_json()
    if not equal and trainer.is_global_zero:
        write_json(folder.summary_json, summary)
    # names what differs; that nothing frozen moved was proved at the epoch's end, before the task put averages in place
    transitions.prove_equal()
    prove_buffers_equal(assembly.task, control)
    if not equal:
        raise ProofError(f"at the end of the run, the ranks' digests differ: {', '.join(map(str, digests))}")
    save_weights(transitions.engine, assembly.task, folder.weights, write=trainer.is_global_zero)
    if trainer.is_global_zero:
        write_json(folder.summary_json, summary)
    control.meet("the end of the run")
    dist.destroy_process_group()


def _strategy(assembly: Assembly) -> Strategy:
    timeout = timedelta(seconds=assembly.config.timeout)
    if assembly.setup.engine == "ddp":
        return FinetuningDDPStrategy(timeout=timeout, **assembly.engine_config)  # type: ignore[arg-type]
    return FinetuningDeepSpeedStrategy(assembly.engine_config, timeout=timeout)


class _TakeSigterm(pl.Callback):
    """In a Slurm job, every process gets the SIGTERM that asks the run to save; Lightning would end this one."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if "SLURM_JOB_ID" in os.environ:
            signal.signal(signal.SIGTERM, note_stop)


class _ReseedPerRank(pl.Callback):
    """Dropout and augmentation differ between ranks; the initial weights, which were seeded alike, do not."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        pl.seed_everything(self._seed + 1 + trainer.global_rank, workers=True, verbose=False)


if __name__ == "__main__":
    main()
