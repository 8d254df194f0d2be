"""All that reaches into DeepSpeed's private parts. Read against DeepSpeed 0.19.8.

What a live engine keeps in its ZeRO wrapper (`engine.optimizer`), and how that wrapper is taken down and built again
around the same engine and the same torch optimizer. The order of steps and its traps are told in ARCHITECTURE.md.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from importlib import metadata
from typing import Protocol, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.optim import Optimizer

from flash_strategies.errors import UnsupportedVersionError

READ_VERSIONS = ("0.19.8",)


class LossScaler(Protocol):
    """DeepSpeed's loss scaler."""

    cur_scale: float


class ZeroWrapper(Protocol):
    """The members of DeepSpeed's ZeRO optimizers that are used here."""

    optimizer: Optimizer
    dp_process_group: dist.ProcessGroup
    loss_scaler: LossScaler
    # stages 1 and 2
    bit16_groups: list[list[nn.Parameter]]
    bit16_groups_flat: list[torch.Tensor]
    round_robin_bit16_groups: list[list[nn.Parameter]]
    round_robin_bit16_offsets: list[list[int]]
    single_partition_of_fp32_groups: list[torch.Tensor]
    averaged_gradients: dict[int, list[torch.Tensor] | None]
    _hp_optimizer_states_linked: bool
    # stage 3
    fp16_groups: list[list[nn.Parameter]]
    fp16_partitioned_groups_flat: list[torch.Tensor | None]
    fp32_partitioned_groups_flat: list[torch.Tensor]
    sub_group_to_group_id: dict[int, int]
    grad_partitions_flat_buffer: torch.Tensor
    parameter_offload: ParameterOffload

    def destroy(self) -> None:
        """Remove hooks and links."""

    def register_grad_acc_post_hook(self, hook: object) -> None:
        """What the engine does when all gradients are there."""

    def _link_all_hp_params(self) -> None: ...


class ParameterOffload(Protocol):
    """Stage 3's coordinator of partitioned parameters."""

    def partition_all_parameters(self) -> None:
        """Give back every gathered parameter."""


class DeepSpeedEngine(Protocol):
    """The members of DeepSpeed's engine that are used here."""

    module: nn.Module
    optimizer: ZeroWrapper
    _support_torch_style_backward: bool

    def zero_optimization_stage(self) -> int:
        """0 to 3."""
        ...

    def set_gradient_accumulation_boundary(self, is_boundary: bool) -> None:
        """Whether the next backward ends an accumulation."""

    def _configure_zero_optimizer(self, optimizer: Optimizer) -> ZeroWrapper: ...

    def _backward_post_hook(self) -> None: ...


class PartitionedTensor(Protocol):
    """A stage 3 parameter's partition (`param.ds_tensor`)."""

    data: torch.Tensor
    ds_numel: int


# What a new wrapper must know of the old one's past: DeepSpeed keeps it in the wrapper, not in the engine.
_CARRIED = (
    "loss_scaler",
    "dynamic_loss_scale",
    "overflow",
    "custom_loss_scaler",
    "external_loss_scale",
    "torch_autocast_gradscaler",
    "_global_grad_norm",
    "_coalesce_grad_reduction",
    "_is_gradient_accumulation_boundary",
)


def check_version() -> None:
    """Refuse a DeepSpeed whose private parts were not read.

    Raises:
        UnsupportedVersionError: another version is installed.
    """
    version = metadata.version("deepspeed")
    if version not in READ_VERSIONS:
        raise UnsupportedVersionError(
            f"deepspeed {version} is installed; transitions rebuild parts of DeepSpeed that were read at "
            f"{', '.join(READ_VERSIONS)} only. Install one of these: pip install deepspeed=={READ_VERSIONS[-1]}"
        )


def without_shm_op() -> None:
    """Keep DeepSpeed from compiling its shared-memory collectives for CPUs at first use.

    It takes minutes, and a build that is killed leaves a lock behind on which every later run hangs without a word.
    DeepSpeed skips the op, which is optional, when it is told to be incompatible.
    """
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def carried(wrapper: ZeroWrapper) -> dict[str, object]:
    """The old wrapper's memory of the past."""
    return {name: vars(wrapper)[name] for name in _CARRIED if name in vars(wrapper)}


def build(engine: DeepSpeedEngine, optimizer: Optimizer, memory: dict[str, object]) -> ZeroWrapper:
    """Let the engine build a new ZeRO wrapper around the torch optimizer's present groups."""
    wrapper = engine._configure_zero_optimizer(optimizer)
    for name, value in memory.items():
        setattr(wrapper, name, value)
    engine.optimizer = wrapper
    if engine._support_torch_style_backward:
        wrapper.register_grad_acc_post_hook(engine._backward_post_hook)
    return wrapper


def detach(engine: DeepSpeedEngine) -> None:
    """Cut the engine's link to its wrapper, so that nothing keeps the old one alive."""
    engine.__dict__["optimizer"] = None


def release_replicas(parameters: Sequence[nn.Parameter]) -> None:
    """Stages 1 and 2: give parameters that are about to freeze memory of their own, not a view of a flat buffer."""
    for parameter in parameters:
        parameter.data = parameter.data.clone()
        for name in ("_hp_mapping", "_dp_group", "_zero_optimizer", "grad_accum", "_index_in_param_group"):
            if name in parameter.__dict__:
                delattr(parameter, name)
        for name in ("get_full_hp_param", "get_full_hp_grad", "set_full_hp_param", "set_full_hp_grad"):
            parameter.__dict__.pop(name, None)


@contextmanager
def adopting(kept: Sequence[tuple[list[nn.Parameter], torch.Tensor]]) -> Iterator[None]:
    """While a stage 1 or 2 wrapper is built, let groups that go on keep their flat weights instead of copying them.

    Args:
        kept: for each group that goes on as it is, its parameters in flat order and the flat buffer they are views of.
    """
    from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

    original = DeepSpeedZeroOptimizer.flatten_dense_tensors_aligned
    flats = {tuple(id(parameter) for parameter in members): flat for members, flat in kept}

    def flatten(wrapper: object, tensor_list: list[nn.Parameter], *args: object, **kwargs: object) -> torch.Tensor:
        flat = flats.get(tuple(id(tensor) for tensor in tensor_list))
        return flat if flat is not None else cast(torch.Tensor, original(wrapper, tensor_list, *args, **kwargs))

    DeepSpeedZeroOptimizer.flatten_dense_tensors_aligned = flatten
    try:
        yield
    finally:
        DeepSpeedZeroOptimizer.flatten_dense_tensors_aligned = original


def take_down_partitioned(engine: DeepSpeedEngine) -> None:
    """Stage 3: partition all parameters again, and remove the hooks and closures that would use the old wrapper."""
    from deepspeed.runtime.zero import parameter_offload

    wrapper = engine.optimizer
    wrapper.parameter_offload.partition_all_parameters()
    wrapper.destroy()
    for module in engine.module.modules():
        for name in ("pre_bwd_fn", "post_bwd_fn", "applied_pre_backward_ref_cnt", "ds_grads_remaining"):
            module.__dict__.pop(name, None)
        # the next wrapper puts a container of its own around the plain one; without this they would nest
        original = module.__dict__.pop("_original_parameters", None)
        if original is not None:
            plain = type(original)() if not hasattr(original, "_parent_module") else dict[str, nn.Parameter | None]()
            plain.update(module._parameters)
            module.__dict__["_parameters"] = plain
    stack = parameter_offload.FWD_MODULE_STACK
    stack[:] = [module for module in stack if module is not engine.module]
    for parameter in engine.module.parameters():
        parameter.__dict__.pop("_z3_optimizer", None)


def partition_of(parameter: nn.Parameter) -> PartitionedTensor:
    """This rank's partition of a stage 3 parameter."""
    return cast(PartitionedTensor, vars(parameter)["ds_tensor"])


def gathered(parameter: nn.Parameter) -> AbstractContextManager[object]:
    """While it lasts, a stage 3 parameter is whole on every rank."""
    import deepspeed

    return cast(AbstractContextManager[object], deepspeed.zero.GatheredParameters([parameter]))


def whole_numel(parameter: nn.Parameter) -> int:
    """Elements of the whole parameter, also when it is partitioned."""
    return int(parameter.ds_numel) if hasattr(parameter, "ds_numel") else parameter.numel()


def whole_shape(parameter: nn.Parameter) -> tuple[int, ...]:
    """Shape of the whole parameter, also when it is partitioned."""
    return tuple(parameter.ds_shape) if hasattr(parameter, "ds_shape") else tuple(parameter.shape)


def collect() -> None:
    """Free the old wrapper, which is in reference cycles with its hooks."""
    gc.collect()
