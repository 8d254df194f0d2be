"""All that reaches into DeepSpeed's private parts. Read against DeepSpeed 0.18.9 and 0.19.8.

What a live engine keeps in its ZeRO wrapper (`engine.optimizer`), and how that wrapper is taken down and built again
around the same engine and the same torch optimizer. The order of steps and its traps are told in ARCHITECTURE.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from importlib import metadata
from itertools import accumulate
from types import SimpleNamespace
from typing import TYPE_CHECKING, Protocol, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.optim import Optimizer

from flash_strategies.errors import UnsupportedVersionError

if TYPE_CHECKING:
    import deepspeed

READ_VERSIONS = ("0.18.9", "0.19.8")


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
    swap_optimizer: bool
    micro_step_id: int
    _DeepSpeedZeroOptimizer_Stage3__param_id_to_grad_partition: dict[int, torch.Tensor]

    def partition_grads(self, parameters: list[nn.Parameter], partitions: list[torch.Tensor]) -> list[torch.Tensor]:
        """Write this rank's partitions of gradients that have come to where they are kept."""
        ...

    def destroy(self) -> None:
        """Remove hooks and links."""

    def step(self, closure: object = None) -> None:
        """One optimizer step."""

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
    """Refuse a DeepSpeed whose private parts were not read; asked at ZeRO only.

    Raises:
        UnsupportedVersionError: another version is installed, or none.
    """
    try:
        version = metadata.version("deepspeed")
        found = f"deepspeed {version} is installed"
    except metadata.PackageNotFoundError:
        version, found = "", "deepspeed is not installed"
    if version.split("+")[0] not in READ_VERSIONS:  # 0.19.8+cu130 is a build of 0.19.8
        raise UnsupportedVersionError(
            f"{found}; at ZeRO, transitions rebuild parts of DeepSpeed that were read at {', '.join(READ_VERSIONS)} "
            f"only. Install one of these: pip install deepspeed=={READ_VERSIONS[-1]}. DDP needs none of DeepSpeed"
        )


def without_shm_op() -> None:
    """Keep DeepSpeed from compiling its shared-memory collectives for CPUs at first use.

    It takes minutes, and a build that is killed leaves a lock behind on which every later run hangs without a word.
    DeepSpeed skips the op, which is optional, when it is told to be incompatible.
    """
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def initialize(
    task: nn.Module, optimizer: Optimizer | None, config: Mapping[str, object], **options: object
) -> tuple[deepspeed.DeepSpeedEngine, Optimizer]:
    """`deepspeed.initialize`, also of a task with 0-dimensional parameters; the process group is there already.

    Raises:
        UnsupportedVersionError: the installed DeepSpeed does not do what the configuration asks for.
    """
    import deepspeed

    refuse_unreduced(config)
    with taking_scalars(task):
        engine, wrapper, _, _ = deepspeed.initialize(
            model=task,
            optimizer=optimizer,
            model_parameters=[parameter for parameter in task.parameters() if parameter.requires_grad],
            config=dict(config),
            dist_init_required=False,
            **options,
        )
    return engine, wrapper


@contextmanager
def taking_scalars(task: nn.Module) -> Iterator[None]:
    """While it lasts, `deepspeed.initialize` takes a task with 0-dimensional parameters.

    DeepSpeed broadcasts `parameter.data.view(torch.uint8)`, which a tensor without dimensions does not have. At 0.18
    the flat weights of stages 1 and 2 belong to a graph of gradients, and gathering into them fails.
    """
    import deepspeed
    from deepspeed.runtime.zero.partition_parameters import Init
    from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

    broadcast, partition = deepspeed.DeepSpeedEngine._broadcast_model, Init._zero_init_param
    flatten = DeepSpeedZeroOptimizer.flatten_dense_tensors_aligned
    scalars = [parameter for parameter in task.parameters() if not parameter.dim()]

    def broadcast_all(engine: DeepSpeedEngine) -> None:
        for parameter in scalars:
            parameter.data = parameter.data.reshape(parameter.numel())  # stage 3 may hold none of it here
        broadcast(engine)
        for parameter in scalars:
            parameter.data = parameter.data.reshape(()) if parameter.numel() else parameter.data

    def partitioned(init: object, parameter: nn.Parameter) -> None:
        scalar = not parameter.dim()
        parameter.data = parameter.data.reshape(1) if scalar else parameter.data
        partition(init, parameter)
        if scalar:
            vars(parameter)["ds_shape"] = torch.Size(())

    def flattened(*args: object, **kwargs: object) -> torch.Tensor:
        return cast(torch.Tensor, flatten(*args, **kwargs)).detach()

    with ExitStack() as undo:
        for owner, name, value in (
            (deepspeed.DeepSpeedEngine, "_broadcast_model", broadcast_all),
            (Init, "_zero_init_param", partitioned),
            (DeepSpeedZeroOptimizer, "flatten_dense_tensors_aligned", flattened),
        ):
            undo.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, value)
        yield


def refuse_unreduced(config: Mapping[str, object]) -> None:
    """Refuse what makes stages 1 and 2 before 0.19 drop gradients on a CPU without a word.

    Raises:
        UnsupportedVersionError: gradients are not made contiguous, so that ranks would not reduce them.
    """
    version, zero = metadata.version("deepspeed"), config.get("zero_optimization")
    if torch.cuda.is_available() or tuple(int(part) for part in version.split(".")[:2]) >= (0, 19):
        return
    if isinstance(zero, Mapping) and zero.get("contiguous_gradients") is False and zero.get("stage") in (1, 2):
        raise UnsupportedVersionError(
            f"zero_optimization.contiguous_gradients is false, with which deepspeed {version} on a CPU does not "
            f"reduce gradients over the ranks: remove the key, or pip install deepspeed=={READ_VERSIONS[-1]}"
        )


def whole_weights(folder: str) -> dict[str, torch.Tensor]:
    """The weights in fp32 and the buffers of a checkpoint of DeepSpeed's, put together from all ranks' files."""
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    return dict(get_fp32_state_dict_from_zero_checkpoint(folder))


def carried(wrapper: ZeroWrapper) -> dict[str, object]:
    """The old wrapper's memory of the past."""
    return {name: vars(wrapper)[name] for name in _CARRIED if name in vars(wrapper)}


def build(engine: DeepSpeedEngine, optimizer: Optimizer, memory: dict[str, object]) -> ZeroWrapper:
    """Let the engine build a new ZeRO wrapper around the torch optimizer's present groups."""
    wrapper = engine._configure_zero_optimizer(optimizer)
    for name, value in memory.items():
        setattr(wrapper, name, value)
    engine.optimizer = wrapper
    if vars(engine).get("_support_torch_style_backward"):
        wrapper.register_grad_acc_post_hook(engine._backward_post_hook)
    forget_gradients(wrapper)
    return wrapper


def loss_scale(wrapper: ZeroWrapper) -> dict[str, float]:
    """The numbers a loss scaler consists of (fp16; otherwise its scale is 1)."""
    return {
        name: float(value) for name, value in vars(wrapper.loss_scaler).items() if isinstance(value, (bool, int, float))
    }


def set_loss_scale(wrapper: ZeroWrapper, state: dict[str, float]) -> None:
    """Give a loss scaler its numbers back, in their types."""
    present = vars(wrapper.loss_scaler)
    for name in set(state) & set(present):
        setattr(wrapper.loss_scaler, name, type(present[name])(state[name]))


def offsets(wrapper: ZeroWrapper, index: int) -> list[int]:
    """Stages 1 and 2: where each parameter of a group begins in its flat buffer, in elements."""
    padded: list[list[int]] | None = vars(wrapper).get("round_robin_bit16_offsets")
    if padded is not None:
        return padded[index]
    # before 0.19 they lie one after the other
    numels = [parameter.numel() for parameter in wrapper.round_robin_bit16_groups[index]]
    return list(accumulate(numels[:-1], initial=0))


def detach(engine: DeepSpeedEngine) -> None:
    """Cut the engine's link to its wrapper, and the wrapper's to all it holds.

    The wrapper is in reference cycles with its hooks; emptied, it frees its buffers at once.
    """
    wrapper = engine.optimizer
    engine.__dict__["optimizer"] = None
    for holder in (vars(wrapper).get("parameter_offload"), wrapper):
        if holder is not None:
            vars(holder).clear()


def release_replicas(parameters: Sequence[nn.Parameter]) -> None:
    """Stages 1 and 2: give parameters that are about to freeze memory of their own, not a view of a flat buffer."""
    for parameter in parameters:
        parameter.data = parameter.data.clone()
        for name in ("_hp_mapping", "_dp_group", "_zero_optimizer", "grad_accum", "_index_in_param_group"):
            if name in parameter.__dict__:
                delattr(parameter, name)
        for name in ("get_full_hp_param", "get_full_hp_grad", "set_full_hp_param", "set_full_hp_grad"):
            parameter.__dict__.pop(name, None)


@dataclass(frozen=True)
class Kept:
    """A param group that goes on as it is."""

    parameters: tuple[nn.Parameter, ...]
    """In flat order."""
    master: torch.Tensor
    """This rank's fp32 masters, flat."""
    weights: torch.Tensor | None = None
    """Stages 1 and 2: the flat buffer that the parameters are views of."""


@contextmanager
def sparing(kept: Sequence[Kept]) -> Iterator[None]:
    """While a wrapper is built, spare what DeepSpeed would only make to throw away.

    Groups that go on keep their flat weights (stages 1 and 2) and masters; a new master is made once instead of being
    cloned as well; gradients of zeros that nobody reads are not made; garbage is not looked for.
    """
    from deepspeed.runtime.zero import stage3, stage_1_and_2, utils

    lent: list[tuple[list[torch.Tensor], int, torch.Tensor]] = []
    first = {id(group.parameters[0]): group for group in kept}
    shared, partitioned = stage_1_and_2.DeepSpeedZeroOptimizer, stage3.DeepSpeedZeroOptimizer_Stage3

    def kept_group(tensors: Sequence[torch.Tensor]) -> Kept | None:
        group = first.get(id(tensors[0])) if tensors else None
        same = group and [id(tensor) for tensor in tensors] == [id(parameter) for parameter in group.parameters]
        return group if same else None

    def flatten(
        wrapper: ZeroWrapper,
        tensors: list[nn.Parameter],
        alignment: int,
        use_cpu_data: bool = False,
        param_padding: list[int] | None = None,
    ) -> torch.Tensor:
        group = kept_group(tensors)
        if group is not None and group.weights is not None:
            return group.weights
        if use_cpu_data or any(param_padding or ()):
            padding = {"param_padding": param_padding} if param_padding is not None else {}  # 0.19 has it
            return cast(torch.Tensor, flatten_all(wrapper, tensors, alignment, use_cpu_data, **padding))
        return _flattened(tensors, alignment)

    def lend(tensors: list[torch.Tensor], index: int, kind: type[_Weights], members: Sequence[nn.Parameter]) -> None:
        plain, group = tensors[index], kept_group(members)
        lent.append((tensors, index, plain))
        tensors[index] = kind.of(plain, group.master if group is not None else None)

    def take_back() -> None:
        for tensors, index, plain in lent:
            tensors[index] = plain
        lent.clear()

    def partitions(wrapper: ZeroWrapper, flat: torch.Tensor, group_index: int) -> list[torch.Tensor]:
        parts = cast(list[torch.Tensor], cut(wrapper, flat, group_index))
        rank = dist.get_rank(wrapper.dp_process_group)
        lend(parts, rank, _Partition, wrapper.round_robin_bit16_groups[group_index])
        return parts

    def make_masters(wrapper: ZeroWrapper) -> None:
        flats = cast(list[torch.Tensor], wrapper.fp16_partitioned_groups_flat)
        for index, members in enumerate([] if wrapper.swap_optimizer else wrapper.fp16_groups):
            # where they are of one type, the weights are the masters
            if flats[index].dtype != vars(wrapper).get("master_weights_and_grads_dtype", torch.float32):
                lend(flats, index, _SubGroup, members)
        make_partitioned(wrapper)
        take_back()

    def hook(wrapper: ZeroWrapper) -> None:
        # DeepSpeed gathers each parameter to find its gradient accumulator, which torch >= 2.1 has no use for
        methods = [
            (p, name, vars(p)[name]) for g in wrapper.fp16_groups for p in g for name in ("all_gather", "partition")
        ]
        for parameter, name, _ in methods:
            setattr(parameter, name, lambda *args, **kwargs: None)
        try:
            hook_partitioned(wrapper)
        finally:
            for parameter, name, method in methods:
                setattr(parameter, name, method)

    def initialize(wrapper: ZeroWrapper) -> None:
        offloaded = getattr(wrapper, "offload_optimizer", False) or getattr(wrapper, "cpu_offload", False)
        if offloaded or isinstance(wrapper.optimizer, torch.optim.Adagrad):
            (initialize_partitioned if isinstance(wrapper, partitioned) else initialize_shared)(wrapper)

    flatten_all, cut = shared.flatten_dense_tensors_aligned, shared.get_data_parallel_partitions
    initialize_shared, initialize_partitioned = (kind.initialize_optimizer_states for kind in (shared, partitioned))
    make_partitioned = partitioned._create_fp32_partitions
    hook_partitioned = partitioned.create_reduce_and_remove_grad_hooks
    with ExitStack() as undo:
        undo.callback(take_back)
        for owner, name, value in (
            (shared, "flatten_dense_tensors_aligned", flatten),
            (shared, "get_data_parallel_partitions", partitions),
            (shared, "initialize_optimizer_states", initialize),
            (partitioned, "initialize_optimizer_states", initialize),
            (partitioned, "_create_fp32_partitions", make_masters),
            (partitioned, "create_reduce_and_remove_grad_hooks", hook),
            # which of them collects when stage 3 defragments
            (utils if hasattr(utils, "gc") else stage3, "gc", SimpleNamespace(collect=lambda: 0)),
        ):
            undo.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, value)
        yield


class _Weights(torch.Tensor):
    """Weights that masters are about to be made of: gives those that are there, makes others with one copy."""

    plain: torch.Tensor
    master: torch.Tensor | None

    @classmethod
    def of(cls, plain: torch.Tensor, master: torch.Tensor | None) -> _Weights:
        """The same memory, with the master that goes on, if any."""
        weights = plain.as_subclass(cls)
        weights.plain, weights.master = plain, master
        return weights

    def made(self, *args: object, **kwargs: object) -> torch.Tensor:
        """The master, never the memory of the weights."""
        if self.master is not None:
            return self.master.detach()
        made = cast(torch.Tensor, self.plain.to(*args, **kwargs))  # type: ignore[call-overload]
        return made.clone() if made.data_ptr() == self.plain.data_ptr() else made


class _Partition(_Weights):
    """Stages 1 and 2 write `partition.detach().clone().to(device, dtype)`."""

    def detach(self) -> torch.Tensor:
        """Itself."""
        return self

    def clone(self, *, memory_format: torch.memory_format | None = None) -> torch.Tensor:
        """Itself: a copy follows."""
        return self

    def to(self, *args: object, **kwargs: object) -> torch.Tensor:
        """The master."""
        return self.made(*args, **kwargs)


class _SubGroup(_Weights):
    """Stage 3 writes `flat.to(device, dtype)`, and `.clone().detach()` of that."""

    def to(self, *args: object, **kwargs: object) -> torch.Tensor:
        """The master, to be cloned."""
        return _Made.of(self.made(*args, **kwargs), None)


class _Made(_Weights):
    """A master that stage 3 is about to clone."""

    def clone(self, *, memory_format: torch.memory_format | None = None) -> torch.Tensor:
        """The master."""
        return self.plain


def _flattened(tensors: Sequence[nn.Parameter], alignment: int) -> torch.Tensor:
    """One flat buffer of all tensors, zeros at its end; each tensor becomes a view of it, its own memory is freed."""
    numel = sum(tensor.numel() for tensor in tensors)
    flat = tensors[0].data.new_empty(-(-numel // alignment) * alignment)
    flat[numel:].zero_()
    offset = 0
    for tensor in tensors:
        part = flat.narrow(0, offset, tensor.numel())
        part.copy_(tensor.data.reshape(-1))
        tensor.data = part.view(tensor.shape)
        offset += tensor.numel()
    return flat


def take_down_partitioned(engine: DeepSpeedEngine) -> None:
    """Stage 3: partition all parameters again, and remove the hooks and closures that would use the old wrapper."""
    wrapper = engine.optimizer
    wrapper.parameter_offload.partition_all_parameters()
    wrapper.destroy()
    _restore_modules(engine.module)


def _restore_modules(task: nn.Module) -> None:
    from deepspeed.runtime.zero import parameter_offload

    for module in task.modules():
        for name in ("pre_bwd_fn", "post_bwd_fn", "applied_pre_backward_ref_cnt", "ds_grads_remaining"):
            module.__dict__.pop(name, None)
        # the next wrapper puts a container of its own around the plain one; without this they would nest
        original = module.__dict__.pop("_original_parameters", None)
        if original is not None:
            plain = type(original)() if not hasattr(original, "_parent_module") else dict[str, nn.Parameter | None]()
            plain.update(module._parameters)
            module.__dict__["_parameters"] = plain
    stack = parameter_offload.FWD_MODULE_STACK
    stack[:] = [module for module in stack if module is not task]
    for parameter in task.parameters():
        parameter.__dict__.pop("_z3_optimizer", None)


_OF_PARTITIONED = (
    *("all_gather", "all_gather_coalesced", "partition", "reduce_gradients_at_owner", "partition_gradients"),
    *("aligned_size", "padding_size", "partition_numel", "item", "convert_to_zero_parameters"),
    *("is_external_param", "nvme_swapper", "_z3_optimizer"),
)
"""Attributes that stage 3 gives to a parameter, beside those whose names begin with ds_."""


def make_whole(task: nn.Module) -> None:
    """Stage 3, after its wrapper is taken down: let every rank hold whole parameters again; all ranks call it."""
    for parameter in task.parameters():
        held = vars(parameter)
        if "ds_id" not in held:
            continue
        with gathered(parameter):
            whole = parameter.detach().clone()
        for name in [name for name in held if name.startswith("ds_") or name in _OF_PARTITIONED]:
            del held[name]
        parameter.data = whole


def take_down_evaluation(engine: DeepSpeedEngine) -> None:
    """Stage 3: remove what an engine without an optimizer left in the modules; parameters stay partitioned."""
    offload = engine.optimizer  # it has the coordinator in the optimizer's place
    if offload is None or not hasattr(offload, "partition_all_parameters"):
        return
    offload.partition_all_parameters()
    offload.destroy()
    _restore_modules(engine.module)


def prepare_for_loading(engine: DeepSpeedEngine) -> None:
    """Stage 3: give back gathered parameters and second copies of partitions, which would go on with old values."""
    engine.optimizer.parameter_offload.partition_all_parameters()
    for parameter in engine.module.parameters():
        if vars(parameter).get("ds_secondary_tensor") is not None:
            vars(parameter)["ds_secondary_tensor"] = None  # as DeepSpeed itself does after each step


def partition_of(parameter: nn.Parameter) -> PartitionedTensor:
    """This rank's partition of a stage 3 parameter."""
    return cast(PartitionedTensor, vars(parameter)["ds_tensor"])


def gathered_copy(parameter: nn.Parameter) -> torch.Tensor | None:
    """The whole of a stage 3 parameter, where this rank holds it beside its partition."""
    return parameter.detach() if vars(parameter)["ds_status"].name == "AVAILABLE" else None


def forget_gradients(wrapper: ZeroWrapper) -> None:
    """Let the wrapper forget a parameter's gradient after the step it is of, also where no new one comes.

    Stage 3, and offload at stages 1 and 2, overwrite a parameter's gradient when a new one comes. A parameter that gets
    none, because the forward pass went another way, would be stepped with that of an earlier step, or have it added to
    what comes later in an accumulation.
    """
    if "grad_partitions_flat_buffer" in vars(wrapper):
        _forget_those_that_do_not_come(wrapper)
    step = wrapper.step

    def forgetting(closure: object = None) -> None:
        step(closure)
        for gradients in _lasting_gradients(wrapper):
            gradients.zero_()

    vars(wrapper)["step"] = forgetting


def _forget_those_that_do_not_come(wrapper: ZeroWrapper) -> None:
    """Stage 3: set to zero what an earlier step left of parameters whose gradient does not come in this one.

    Their buffer has the size of all gradients: to set it to zero in each step would cost as much as to write them.
    """
    note, step = wrapper.partition_grads, wrapper.step
    left: dict[int, nn.Parameter] = {}  # by ds_id: whose buffer is not zero
    came: dict[int, nn.Parameter] = {}  # in this step

    def forget(parameter: nn.Parameter) -> None:
        wrapper._DeepSpeedZeroOptimizer_Stage3__param_id_to_grad_partition[_ds_id(parameter)].zero_()

    def noting(parameters: list[nn.Parameter], partitions: list[torch.Tensor]) -> list[torch.Tensor]:
        for parameter in parameters:
            key = _ds_id(parameter)
            if key not in came:
                came[key] = parameter
                if key in left and wrapper.micro_step_id:  # else it is overwritten
                    forget(parameter)
        return note(parameters, partitions)

    def forgetting(closure: object = None) -> None:
        for key, parameter in left.items():
            if key not in came:
                forget(parameter)
        step(closure)
        left.clear()
        left.update(came)
        came.clear()

    vars(wrapper).update(partition_grads=noting, step=forgetting)


def _ds_id(parameter: nn.Parameter) -> int:
    return cast(int, vars(parameter)["ds_id"])


def _lasting_gradients(wrapper: ZeroWrapper) -> Iterator[torch.Tensor]:
    held = vars(wrapper)
    yield from held.get("accumulated_grads_in_cpu", {}).values()
    masters = held.get("fp32_partitioned_groups_flat") or held.get("single_partition_of_fp32_groups", [])
    yield from (flat.grad for flat in masters if flat.grad is not None)


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
