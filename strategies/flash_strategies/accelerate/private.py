"""All that reaches into Accelerate's private parts. Read against accelerate 1.15.0.

Accelerate's objects are seen through protocols that list just what is used; it has no types of its own.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from importlib import metadata
from types import MethodType
from typing import Protocol

from torch import device, nn

from flash_strategies.deepspeed_private import DeepSpeedEngine
from flash_strategies.errors import TransitionError, UnsupportedVersionError
from flash_strategies.reporting import NOTES, say

READ_VERSIONS = ("1.15.0",)

_ONE_PROCESS = ("NO",)
_DDP = ("MULTI_CPU", "MULTI_GPU", "MULTI_XPU", "MULTI_NPU", "MULTI_MLU", "MULTI_HPU")
_USED = ("state", "prepare", "prepare_model", "sync_gradients", "step", "ddp_handler", "skip_first_batches")


class DeepSpeedPlugin(Protocol):
    """Accelerate's `DeepSpeedPlugin`."""

    deepspeed_config: dict[str, object]


class AcceleratorState(Protocol):
    """`accelerator.state`."""

    deepspeed_plugin: DeepSpeedPlugin | None


class SteppedEngine(DeepSpeedEngine, Protocol):
    """DeepSpeed's engine, with its public methods that are replaced on the instance."""

    step: Callable[..., object]
    save_checkpoint: Callable[..., object]
    load_checkpoint: Callable[..., object]

    def is_gradient_accumulation_boundary(self) -> bool:
        """Whether the next step ends an accumulation."""
        ...


class EngineWrapper(Protocol):
    """What `accelerator.backward` calls under DeepSpeed."""

    engine: SteppedEngine


class DDPOptions(Protocol):
    """`accelerate.DistributedDataParallelKwargs`."""

    def to_kwargs(self) -> dict[str, object]:
        """Those that are not the defaults."""
        ...

    def register_comm_hook(self, model: nn.Module) -> None:
        """Give the DDP wrapper the hook that compresses gradients, if any."""


class PreparedOptimizer(Protocol):
    """Accelerate's wrapper of an optimizer; under DeepSpeed around the ZeRO wrapper."""

    optimizer: object
    step: Callable[..., object]


class Accelerator(Protocol):
    """The members of `accelerate.Accelerator` that are used here."""

    state: AcceleratorState
    device: device
    distributed_type: object
    mixed_precision: str
    num_processes: int
    process_index: int
    sync_gradients: bool
    step: int
    gradient_accumulation_steps: int
    ddp_handler: DDPOptions | None
    deepspeed_engine_wrapped: EngineWrapper | None  # there under DeepSpeed only

    def prepare(self, *objects: object) -> object:
        """Wrap for this setup."""

    def prepare_model(self, model: nn.Module, *, evaluation_mode: bool) -> nn.Module:
        """Move to the device, compute in the mixed precision; with `evaluation_mode` without DDP."""
        ...

    def skip_first_batches(self, dataloader: object, num_batches: int) -> Iterable[object]:
        """The loader without its first batches."""
        ...

    def register_for_checkpointing(self, *objects: object) -> None:
        """Save and load with the rest."""

    def register_save_state_pre_hook(self, hook: Callable[..., None]) -> object:
        """Called in save_state before files are written."""

    def register_load_state_pre_hook(self, hook: Callable[..., None]) -> object:
        """Called in load_state before files are read."""


def check_accelerator(accelerator: Accelerator) -> None:
    """Refuse an Accelerate that lacks what is used here, and say so of one that was not read.

    Raises:
        UnsupportedVersionError: names what is missing.
    """
    version = metadata.version("accelerate")
    read = ", ".join(READ_VERSIONS)
    if missing := [name for name in _USED if not hasattr(accelerator, name)]:
        raise UnsupportedVersionError(
            f"accelerate {version} is installed, whose Accelerator has no {missing[0]}, which transitions need; read "
            f"were {read}. Install one of these: pip install accelerate=={READ_VERSIONS[-1]}"
        )
    if version not in READ_VERSIONS:
        say(f"accelerate {version} is installed, whose private parts were not read (read were {read})", NOTES)


def zero_stage(accelerator: Accelerator) -> int:
    """ZeRO's stage; 0 for DDP and for one process.

    Raises:
        TransitionError: the accelerator holds models in another way, or left a DeepSpeedPlugin out.
    """
    kind = str(getattr(accelerator.distributed_type, "value", accelerator.distributed_type))
    if kind == "DEEPSPEED":
        return _stage(accelerator)
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true":
        raise TransitionError(
            "DeepSpeed was asked for and Accelerate did not take it: it needs ranks (RANK, LOCAL_RANK, WORLD_SIZE, as "
            "accelerate launch, torchrun and flash-launch script set them), also where there is one, and takes none "
            "with cpu=True or ACCELERATE_USE_CPU. On a CPU leave both out, and give "
            'kwargs_handlers=[InitProcessGroupKwargs(backend="gloo")]'
        )
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if kind in _ONE_PROCESS and started > 1:
        raise TransitionError(
            f"{started} processes were started, and Accelerate, which found no GPU, lets each train for itself: give "
            "Accelerator(cpu=True), or set ACCELERATE_USE_CPU=1"
        )
    parallelism = getattr(accelerator, "parallelism_config", None)
    sharded = [name for name in ("tp_enabled", "cp_enabled", "sp_enabled") if getattr(parallelism, name, False)]
    if kind not in (*_ONE_PROCESS, *_DDP) or sharded:
        raise TransitionError(
            f"the accelerator holds the model by {' and '.join([kind, *sharded])}, which transitions cannot "
            "rebuild: use DDP (several processes, no plugin) or a DeepSpeedPlugin with ZeRO stage 1, 2 or 3"
        )
    if accelerator.mixed_precision == "fp8":
        raise TransitionError("mixed_precision 'fp8' replaces layers of the model: use 'bf16', 'fp16' or 'no'")
    return 0


def is_ddp(accelerator: Accelerator) -> bool:
    """Whether several processes hold the model whole."""
    return str(getattr(accelerator.distributed_type, "value", accelerator.distributed_type)) in _DDP


def deepspeed_config(accelerator: Accelerator) -> dict[str, object]:
    """The plugin's configuration, which `prepare` completes in place."""
    plugin = accelerator.state.deepspeed_plugin
    return plugin.deepspeed_config if plugin is not None else {}


def _stage(accelerator: Accelerator) -> int:
    zero = deepspeed_config(accelerator).get("zero_optimization")
    stage = zero.get("stage") if isinstance(zero, dict) else None
    if stage not in (1, 2, 3):
        raise TransitionError(
            f"the DeepSpeedPlugin's ZeRO stage is {stage!r}: give zero_stage 1, 2 or 3, or leave the plugin out for DDP"
        )
    return int(stage)


def is_prepared(thing: object) -> bool:
    """Whether Accelerate's `prepare` made it."""
    return bool(vars(thing).get("_is_accelerate_prepared")) if hasattr(thing, "__dict__") else False


def is_placeholder(thing: object) -> bool:
    """Whether it is Accelerate's DummyOptim or DummyScheduler, in whose place DeepSpeed makes what its JSON says."""
    return type(thing).__name__ in ("DummyOptim", "DummyScheduler")


def ddp_options(accelerator: Accelerator) -> dict[str, object]:
    """The user's options for DistributedDataParallel, and the device."""
    given = accelerator.ddp_handler.to_kwargs() if accelerator.ddp_handler is not None else {}
    index = accelerator.device.index
    if accelerator.device.type == "cpu" or index is None:
        return given
    return {**given, "device_ids": [index], "output_device": index}


def add_comm_hook(accelerator: Accelerator, model: nn.Module) -> None:
    """Give the DDP wrapper the user's hook that compresses gradients."""
    if accelerator.ddp_handler is not None:
        accelerator.ddp_handler.register_comm_hook(model)


def around_optimizer_step(
    accelerator: Accelerator, optimizer: PreparedOptimizer, before: Callable[[], None], after: Callable[[], None]
) -> None:
    """Call something before and after each step that a prepared optimizer makes, which is not in an accumulation."""
    made = type(optimizer).step

    def step(self: PreparedOptimizer, closure: object = None) -> None:
        if not accelerator.sync_gradients:
            made(self, closure)
            return
        before()
        made(self, closure)
        after()

    optimizer.step = MethodType(step, optimizer)  # bound: torch's schedulers wrap `step.__func__`


def around_engine_step(engine: SteppedEngine, before: Callable[[], None], after: Callable[[], None]) -> None:
    """Call something before and after each optimizer step of an engine; `accelerator.backward` makes them."""
    made = engine.step

    def step(*args: object, **options: object) -> object:
        if not engine.is_gradient_accumulation_boundary():
            return made(*args, **options)
        before()
        result = made(*args, **options)
        after()
        return result

    engine.step = step


def replace_checkpoints(
    engine: SteppedEngine, save: Callable[[str, str], None], load: Callable[[str, str], None]
) -> None:
    """Let `save_state` and `load_state`, which call the engine's methods, save and load otherwise."""

    def save_checkpoint(save_dir: str, tag: str = "deepspeed", *args: object, **options: object) -> bool:
        save(save_dir, tag)
        return True

    def load_checkpoint(load_dir: str, tag: str = "deepspeed", *args: object, **options: object) -> tuple[str, object]:
        load(load_dir, tag)
        return f"{load_dir}/{tag}", {}

    engine.save_checkpoint = save_checkpoint
    engine.load_checkpoint = load_checkpoint


def is_open(accelerator: Accelerator) -> bool:
    """Whether micro batches were accumulated that no step has taken yet."""
    return not accelerator.sync_gradients


def engine_of(accelerator: Accelerator) -> SteppedEngine:
    """The DeepSpeed engine that `prepare` made."""
    wrapper = accelerator.deepspeed_engine_wrapped
    assert wrapper is not None
    return wrapper.engine


def keep_optimizer(config: dict[str, object]) -> None:
    """Let the user's optimizer be the one that trains: with offload, Accelerate would put DeepSpeed's in its place."""
    zero = config.get("zero_optimization")
    offload = zero.get("offload_optimizer") if isinstance(zero, dict) else None
    if isinstance(offload, dict) and offload.get("device", "none") != "none":
        config["zero_force_ds_cpu_optimizer"] = False
        say("offload_optimizer: the optimizer that the script builds steps on the CPU, not DeepSpeed's CPU Adam", NOTES)


def clipping(config: dict[str, object]) -> float:
    """At what norm DeepSpeed clips gradients; 0 where it does not. Missing means 1.0 to DeepSpeed."""
    value = config.get("gradient_clipping", 1.0)
    return float(value) if isinstance(value, (int, float)) else 0.0


def follow_engine(optimizer: PreparedOptimizer, engine: DeepSpeedEngine) -> None:
    """Let Accelerate's optimizer see the ZeRO wrapper that a transition built."""
    optimizer.optimizer = engine.optimizer
