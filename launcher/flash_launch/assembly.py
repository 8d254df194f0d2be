"""From a RunConfig to what a rank runs: the task, its data, its phases and the resolved setup."""

from __future__ import annotations

from dataclasses import dataclass

import pytorch_lightning as pl
import torch
from torch import nn

from flash_launch.config import RunConfig
from flash_launch.data import RunData, build_data, check_data
from flash_launch.errors import DataError, SetupError, TaskError
from flash_launch.lr_schedules import build_schedule, build_scheduler
from flash_launch.optimizers import build_optimizer
from flash_launch.setup_keys import Json
from flash_launch.setups import ModelNumbers, RunNumbers, Setup, check_machine, check_setup, load_setup, resolve_setup
from flash_launch.tasks.backbones import suitable_image_size
from flash_launch.tasks.image import ImageClassifier, check_images
from flash_launch.tasks.own import build_own, load_class
from flash_strategies.phases import ResolvedPhase, resolve_phases
from flash_strategies.registry import StrategySpec

_BYTES = {"32": 4, "bf16": 2, "fp16": 2}


@dataclass(frozen=True)
class Assembly:
    """Everything that one rank needs, built but not yet running."""

    config: RunConfig
    """What was asked."""
    task: pl.LightningModule
    """What is trained."""
    data: RunData
    """What it is trained on."""
    strategy: StrategySpec
    """What trains when."""
    phases: tuple[ResolvedPhase, ...]
    """The strategy's phases on this task."""
    setup: Setup
    """How the ranks hold the model."""
    engine_config: Json
    """The resolved setup: what DistributedDataParallel or DeepSpeed is given."""
    world_size: int
    """Number of ranks."""


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
    spec = config.strategy_spec()
    phases = resolve_phases(task, spec.strategy, max_epochs=config.max_epochs, train_bn=config.train_bn)
    _check_phases(setup, phases)
    if read_data:
        check_data(data, world_size)
    _give_optimizer(task, config, offload=setup.offload, cuda=cuda)
    engine_config = resolve_setup(setup, numbers, model_numbers(task, phases))
    return Assembly(config, task, data, spec, phases, setup, engine_config, world_size)


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


def _check_phases(setup: Setup, phases: tuple[ResolvedPhase, ...]) -> None:
    zero = setup.template.get("zero_optimization")
    offload = zero.get("offload_optimizer") if isinstance(zero, dict) else None
    on_disk = isinstance(offload, dict) and offload.get("device") == "nvme"
    if on_disk and len(phases) > 1:
        raise SetupError(
            f"setup {setup.name} keeps optimizer state on disk, where a transition cannot take it out yet, and the "
            f"strategy has {len(phases)} phases: give --setup zero3_offload, or a strategy of one phase "
            "(no_freeze_deepspeed, freeze_deepspeed)"
        )


def _give_optimizer(task: pl.LightningModule, config: RunConfig, *, offload: bool, cuda: bool) -> None:
    """Let a task without `configure_optimizers` take the run's optimizer and schedule."""
    if type(task).configure_optimizers is not pl.LightningModule.configure_optimizers:
        return

    def configure_optimizers() -> dict[str, object]:
        optimizer = build_optimizer(
            config.optimizer,
            list(task.parameters()),
            lr=config.lr,
            weight_decay=config.weight_decay,
            momentum=config.momentum,
            offload=offload,
            cuda=cuda,
        )
        steps = task.trainer.estimated_stepping_batches
        total = int(steps) if steps != float("inf") else None
        schedule = build_schedule(config.lr_schedule, total_steps=total, warmup_steps=config.warmup_steps)
        scheduler = build_scheduler(optimizer, schedule)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    task.configure_optimizers = configure_optimizers  # type: ignore[method-assign,assignment]


def model_numbers(task: nn.Module, phases: tuple[ResolvedPhase, ...]) -> ModelNumbers:
    """Sizes of a task that a setup is filled in from; counts are of elements."""
    sizes = {name: parameter.numel() for name, parameter in task.named_parameters()}
    most = max(sum(sizes[name] for name in phase.selection.trainable) for phase in phases)
    widths = [min(parameter.shape[:2]) for parameter in task.parameters() if parameter.dim() >= 2]
    layers = [sum(p.numel() for p in module.parameters(recurse=False)) for module in task.modules()]
    return ModelNumbers(
        trainable=most, total=sum(sizes.values()), hidden_size=max(widths, default=1), largest_layer=max(layers)
    )


def plan_json(assembly: Assembly) -> dict[str, object]:
    """The phases as plan.json has them: names, counts, and an estimate of bytes per rank."""
    sizes = {name: parameter.numel() for name, parameter in assembly.task.named_parameters()}
    phases: list[dict[str, object]] = []
    for resolved in assembly.phases:
        trainable = sum(sizes[name] for name in resolved.selection.trainable)
        total = sum(sizes.values())
        phases.append(
            {
                "name": resolved.phase.name,
                "first_epoch": resolved.phase.first_epoch,
                "trainable": trainable,
                "frozen": total - trainable,
                "layers": list(resolved.selection.layers),
                "estimated_bytes_per_rank": estimated_bytes(assembly, trainable, total),
                "trainable_names": list(resolved.selection.trainable),
            }
        )
    return {
        "strategy": assembly.strategy.name,
        "setup": assembly.setup.name,
        "world_size": assembly.world_size,
        "task": type(assembly.task).__name__,
        "data": assembly.data.description,
        "phases": phases,
    }


def estimated_bytes(assembly: Assembly, trainable: int, total: int) -> dict[str, int]:
    """Bytes per rank of weights, gradients, masters and moments, before activations and buffers.

    ZeRO (Rajbhandari et al., https://arxiv.org/abs/1910.02054, section 5), with only what trains counted as trained.
    """
    ranks, stage = assembly.world_size, assembly.setup.stage
    mixed = assembly.config.precision != "32" and assembly.setup.engine == "deepspeed"
    element = _BYTES[assembly.config.precision] if mixed else 4
    moments = 2 if assembly.config.optimizer == "adamw" else 1
    shared = trainable / ranks if stage else trainable
    # at stages 1 and 2 masters are kept apart from the weights in fp32 too
    masters = 4 * shared if mixed or stage in (1, 2) else 0
    return {
        "weights": int(element * (total / ranks if stage == 3 else total)),
        "gradients": int(element * (trainable / ranks if stage >= 2 else trainable)),
        "masters": int(masters),
        "moments": int(4 * moments * shared),
    }


def uses_cuda(config: RunConfig) -> bool:
    """Whether the ranks of this process's machine compute on GPUs."""
    return config.accelerator == "cuda" or (config.accelerator == "auto" and torch.cuda.is_available())
