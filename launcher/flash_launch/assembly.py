"""From a RunConfig to what a rank runs: the task, its data, its phases and the resolved setup."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import pytorch_lightning as pl
import torch
from torch import nn

from flash_launch.config import RunConfig
from flash_launch.data import RunData, build_data, check_data
from flash_launch.errors import DataError, SetupError, TaskError
from flash_launch.finetuning import build_finetuning, handover_on, phases_on
from flash_launch.lr_schedules import build_schedule, build_scheduler
from flash_launch.optimizers import build_optimizer, decay_groups, no_decay_names
from flash_launch.options import OptimizerOptions, option_name
from flash_launch.setup_keys import Json
from flash_launch.setups import (
    ModelNumbers,
    RunNumbers,
    Setup,
    check_machine,
    check_setup,
    dtype_of,
    load_setup,
    resolve_setup,
)
from flash_launch.tasks.backbones import suitable_image_size
from flash_launch.tasks.image import ImageClassifier, check_images
from flash_launch.tasks.own import build_own, load_class
from flash_launch.training.trainer_parts import TrainerParts, build_parts, check_parts
from flash_strategies.lightning import FinetuningCallback, private
from flash_strategies.parameter_checks import Holding, averaged_copy, check_callbacks, check_copies, check_parameters
from flash_strategies.phases import ResolvedPhase

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Assembly:
    """Everything that one rank needs, built but not yet running."""

    config: RunConfig
    """What was asked."""
    task: pl.LightningModule
    """What is trained."""
    data: RunData
    """What it is trained on."""
    finetuning: FinetuningCallback
    """What trains when."""
    phases: tuple[ResolvedPhase, ...]
    """The strategy's phases on this task; empty for a callback of the user's own, which decides epoch by epoch."""
    setup: Setup
    """How the ranks hold the model."""
    engine_config: Json
    """The resolved setup: what DistributedDataParallel or DeepSpeed is given."""
    world_size: int
    """Number of ranks."""
    trainer_parts: TrainerParts
    """What the user adds to the Trainer."""
    notes: tuple[str, ...] = ()
    """What the user should know before the start, a sentence each."""
    no_decay: tuple[str, ...] | None = None
    """Parameters that weight decay leaves out; None where the task configures its own optimizer."""


def assemble(config: RunConfig, *, world_size: int, procs_per_node: int, cuda: bool, read_data: bool) -> Assembly:
    """Build everything.

    Args:
        config: the run's options.
        world_size: ranks of the run.
        procs_per_node: ranks of one node.
        cuda: whether the ranks compute on GPUs.
        read_data: look into the data's files for what would stop the run later; once, before the ranks start.

    Raises:
        FlashLaunchError: anything that the user can mend.
    """
    config.check()
    setup = load_setup(config.setup_name)
    numbers = RunNumbers(
        world_size=world_size,
        procs_per_node=procs_per_node,
        micro_batch_size=config.batch_size,
        accumulate=config.accumulate,
        gradient_clip=config.gradient_clip,
        precision=config.precision,
        cuda=cuda,
        nvme_path=config.nvme_path,
    )
    check_setup(setup, numbers)
    check_machine(setup)
    pl.seed_everything(config.seed, workers=True, verbose=False)
    task = _own_task(config) if config.task is not None else None
    data = _data(config, task)
    if task is None:
        task = _image_classifier(config, data)
    holding = Holding(setup.stage, _DTYPES[dtype_of(config.precision)], cuda)
    layout = _check_parameters(task, holding) if read_data else ()
    parts = build_parts(config, holding)
    if read_data:
        check_parts(config, parts)
    finetuning = build_finetuning(config)
    phases = phases_on(task, config, finetuning)
    _check_phases(config, setup, phases)
    notes = [*(task.notes if isinstance(task, ImageClassifier) else ()), *_unused(config, task), *layout]
    notes += [parts.note] if parts.note is not None else []
    notes += handover_on(task, config, finetuning).messages
    data.single_samples = not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in task.modules())
    if read_data:
        check_data(data, world_size)
    no_decay = _give_optimizer(task, config, offload=setup.offload, cuda=cuda)
    engine_config = resolve_setup(setup, numbers, model_numbers(task, phases))
    notes += data.notes
    return Assembly(
        config, task, data, finetuning, phases, setup, engine_config, world_size, parts, tuple(notes), no_decay
    )


def _own_task(config: RunConfig) -> pl.LightningModule:
    task = build_own(load_class(str(config.task), pl.LightningModule), config.task_args)
    if not task.automatic_optimization:
        raise TaskError(
            f"{config.task} optimizes by hand (automatic_optimization = False): transitions must know where an "
            "optimizer step ends, so let Lightning optimize, or use flash_strategies in a loop of your own"
        )
    return task


def _data(config: RunConfig, task: pl.LightningModule | None) -> RunData:
    return build_data(
        config.data or (None if task is not None else "digits"),
        args=config.data_args,
        task=task,
        batch_size=config.batch_size,
        seed=config.seed,
        val_fraction=config.val_fraction,
        num_workers=config.num_workers,
        image_size=config.image_size or (suitable_image_size(config.backbone) if task is None else None),
    )


def _image_classifier(config: RunConfig, data: RunData) -> ImageClassifier:
    if data.num_classes is None:
        raise DataError(
            f"--data {config.data} does not say how many classes it has, which image classification must know: give "
            "the data module an attribute num_classes, or a task of your own with --task"
        )
    task = ImageClassifier(
        config.backbone,
        data.num_classes,
        config.weights,
        image_size=data.image_size,
        seed=config.seed,
    )
    if data.image_size is not None:
        check_images(task, data.image_size)
    return task


def _check_parameters(task: pl.LightningModule, holding: Holding) -> tuple[str, ...]:
    """Refuse what the setup cannot hold of the task; what it holds otherwise, a sentence each."""
    notes = check_parameters(task, holding)
    check_copies(averaged_copy(task), holding)
    callbacks: object = ()
    with contextlib.suppress(Exception):  # it may look at its trainer, which it has on the ranks; they look again
        callbacks = task.configure_callbacks()
    check_callbacks(callbacks if isinstance(callbacks, Sequence) else [callbacks], holding)
    return notes


def _unused(config: RunConfig, task: pl.LightningModule) -> list[str]:
    """Options that were given and that the task's own optimizer leaves unused."""
    if type(task).configure_optimizers is pl.LightningModule.configure_optimizers:
        return []
    names = [field.name for field in dataclasses.fields(OptimizerOptions)]
    given = [option_name(name) for name in names if getattr(config, name) != config.default(name)]
    if not given:
        return []
    verb = "is" if len(given) == 1 else "are"
    return [f"{type(task).__name__} configures its own optimizer: {', '.join(given)} {verb} not used"]


def _check_phases(config: RunConfig, setup: Setup, phases: tuple[ResolvedPhase, ...]) -> None:
    zero = setup.template.get("zero_optimization")
    offload = zero.get("offload_optimizer") if isinstance(zero, dict) else None
    on_disk = isinstance(offload, dict) and offload.get("device") == "nvme"
    if on_disk and len(phases) != 1:
        count = f"has {len(phases)} phases" if phases else "may make transitions in any epoch"
        raise SetupError(
            f"setup {setup.name} keeps optimizer state on disk, where a transition cannot take it out yet, and "
            f"--strategy {config.strategy} {count}: give --setup zero3_offload, or a strategy of one phase "
            "(no_freeze_deepspeed, freeze_deepspeed)"
        )


def _give_optimizer(
    task: pl.LightningModule, config: RunConfig, *, offload: bool, cuda: bool
) -> tuple[str, ...] | None:
    """Let a task without `configure_optimizers` take the run's optimizer and schedule; what gets no weight decay."""
    if type(task).configure_optimizers is not pl.LightningModule.configure_optimizers:
        return None
    no_decay = no_decay_names(task, config.no_decay)

    def configure_optimizers() -> dict[str, object]:
        optimizer = build_optimizer(
            config.optimizer,
            decay_groups(task, no_decay),
            lr=config.lr,
            weight_decay=config.weight_decay,
            momentum=config.momentum,
            offload=offload,
            cuda=cuda,
        )
        total = _total_steps(task.trainer, config)
        schedule = build_schedule(config.lr_schedule, total_steps=total, warmup_steps=config.warmup_steps)
        scheduler = build_scheduler(optimizer, schedule)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    task.configure_optimizers = configure_optimizers  # type: ignore[method-assign,assignment]
    return no_decay


def _total_steps(trainer: pl.Trainer, config: RunConfig) -> int | None:
    """Optimizer steps of the whole run; None where that is not known.

    A run that goes on with batches of another size has done another number of steps than these epochs would have had.
    """
    steps = trainer.estimated_stepping_batches
    if steps == float("inf"):
        return None
    per_epoch = int(steps) // (trainer.max_epochs or config.max_epochs)
    before = trainer.current_epoch * per_epoch + private.batches_done(trainer) // config.accumulate
    return int(steps) + trainer.global_step - before


def model_numbers(task: nn.Module, phases: tuple[ResolvedPhase, ...]) -> ModelNumbers:
    """Sizes of a task that a setup is filled in from; counts are of elements."""
    sizes = {name: parameter.numel() for name, parameter in task.named_parameters()}
    # a callback may unfreeze everything
    most = max(
        (sum(sizes[name] for name in phase.selection.trainable) for phase in phases), default=sum(sizes.values())
    )
    widths = [min(parameter.shape[:2]) for parameter in task.parameters() if parameter.dim() >= 2]
    layers = [sum(p.numel() for p in module.parameters(recurse=False)) for module in task.modules()]
    return ModelNumbers(
        trainable=most, total=sum(sizes.values()), hidden_size=max(widths, default=1), largest_layer=max(layers)
    )


def uses_cuda(config: RunConfig) -> bool:
    """Whether the ranks of this process's machine compute on GPUs."""
    return config.accelerator == "cuda" or (config.accelerator == "auto" and torch.cuda.is_available())
