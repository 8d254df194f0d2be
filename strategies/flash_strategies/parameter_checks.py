"""What an engine cannot hold of a task: refused by the parameter's name before an engine is built, or said.

One function per kind. Each looks at one tensor, or at the whole task, and at how the ranks hold the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from flash_strategies.errors import ParameterError
from flash_strategies.sparse_gradients import sparse_parameters

_DDP = "DistributedDataParallel (setup ddp) takes it"
_SPARSE_OPTIMIZERS = (torch.optim.SGD, torch.optim.SparseAdam, torch.optim.Adagrad)


@dataclass(frozen=True)
class Holding:
    """How the ranks hold a model."""

    stage: int = 0
    """ZeRO's; 0: DistributedDataParallel, or one process."""
    dtype: torch.dtype = torch.float32
    """What DeepSpeed computes in."""
    cuda: bool = False
    """Whether on GPUs."""

    @classmethod
    def of_deepspeed(cls, config: Mapping[str, object], *, cuda: bool) -> Holding:
        """As a complete DeepSpeed configuration has it."""
        zero = config.get("zero_optimization")
        stage = zero.get("stage", 0) if isinstance(zero, Mapping) else 0
        dtype = torch.float32
        for key, kind in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
            block = config.get(key)
            if isinstance(block, Mapping) and block.get("enabled") is True:
                dtype = kind
        return cls(int(stage), dtype, cuda)

    @property
    def name(self) -> str:
        """In words."""
        return f"ZeRO stage {self.stage}" if self.stage else "DistributedDataParallel"


def check_parameters(task: nn.Module, holding: Holding) -> tuple[str, ...]:
    """Refuse what the ranks cannot hold so.

    Args:
        task: as the user made it.
        holding: how the ranks are to hold it.

    Returns:
        What is held otherwise than the user made it, a sentence each.

    Raises:
        ParameterError: names the first parameter, buffer or module, and what would take it.
    """
    tensors = {**dict(task.named_parameters()), **dict(task.named_buffers())}
    parameters = dict(task.named_parameters())
    for refused in (_uninitialised, _without_values, _unusual_layout, _not_storable):
        _refuse(refused(name, tensor, holding) for name, tensor in tensors.items())
    for refused in (_expanded, _complex, _other_type, _empty):
        _refuse(refused(name, tensor, holding) for name, tensor in parameters.items())
    _refuse(_sparse(name, holding) for name in sparse_parameters(task))
    if holding.stage:
        _refuse(_overlapping(parameters, holding))
    if holding.stage == 3:
        _refuse(_compiled(task))
        _refuse(_scripted(task))
        _refuse(_averaged(task))
    return tuple(_dense_layout(parameters, holding))


def check_initialised(task: nn.Module) -> None:
    """Refuse parameters without a shape; before anything is frozen, which torch cannot do to them.

    Raises:
        ParameterError: names the parameter.
    """
    tensors = {**dict(task.named_parameters()), **dict(task.named_buffers())}
    _refuse(_uninitialised(name, tensor, Holding()) for name, tensor in tensors.items())


def averaged_copy(task: nn.Module) -> str | None:
    """What is a copy to be averaged into: a module that is not trained and equals one that is; None if there is none.

    Args:
        task: as the user made it, before a strategy froze anything.

    Returns:
        The two names in words.
    """
    alike: dict[tuple[object, ...], list[tuple[str, nn.Module]]] = {}
    for name, module in task.named_modules():
        shapes = tuple((key, tuple(p.shape)) for key, p in module.named_parameters())
        if shapes:
            alike.setdefault((type(module), shapes), []).append((name, module))
    for same in alike.values():
        trained = [one for one in same if any(p.requires_grad for p in one[1].parameters())]
        for name, copy in same:
            parent = task.get_submodule(name.rpartition(".")[0])
            if any(p.requires_grad for p in copy.parameters()) or _keeps_originals(parent):
                continue
            for original, module in trained:
                pairs = zip(copy.parameters(), module.parameters(), strict=True)
                if all(left is not right and torch.equal(left, right) for left, right in pairs):
                    return f"{name}, a copy of {original} that is not trained,"
    return None


def _keeps_originals(module: nn.Module) -> bool:
    """Whether a module keeps what it replaced beside its copy, and writes to neither: PEFT's modules_to_save."""
    return type(module).__module__.partition(".")[0] == "peft"


def check_copies(copy: str | None, holding: Holding) -> None:
    """Refuse what `averaged_copy` found where the ranks do not hold weights whole.

    Raises:
        ParameterError: names the copy.
    """
    if holding.stage == 3 and copy is not None:
        raise ParameterError(f"{copy} {_AVERAGES}")


def check_callbacks(callbacks: Iterable[object], holding: Holding) -> None:
    """Refuse Lightning's weight averaging where the ranks do not hold weights whole.

    Raises:
        ParameterError: names the callback.
    """
    if holding.stage == 3:
        averaging = (c for c in callbacks if any(base.__name__ == "WeightAveraging" for base in type(c).__mro__))
        _refuse(f"the callback {type(callback).__name__} {_AVERAGES}" for callback in averaging)


def check_optimizer(task: nn.Module, optimizer: Optimizer) -> None:
    """Refuse an optimizer of torch's that would fail at the first sparse gradient, perhaps not before the unfreeze.

    Raises:
        ParameterError: names the parameter and the optimizers that take it.
    """
    sparse = sparse_parameters(task)
    names = {id(parameter): name for name, parameter in task.named_parameters() if name in sparse}
    kind = type(optimizer)
    for group in optimizer.param_groups if kind.__module__.partition(".")[0] == "torch" else ():
        name = next((names[id(p)] for p in group["params"] if id(p) in names), None)
        if name is None:
            continue
        what = f"{name} has sparse gradients (sparse=True of its embedding), which {kind.__name__}"
        cure = "give it sparse=False, or an optimizer (configure_optimizers) of SparseAdam, Adagrad or plain SGD"
        if not isinstance(optimizer, _SPARSE_OPTIMIZERS):
            raise ParameterError(f"{what} does not take: {cure}")
        for option in ("momentum", "weight_decay"):
            if group.get(option):
                raise ParameterError(f"{what} does not take with {option} {group[option]:g}: leave it out, or {cure}")


def _refuse(found: Iterator[str | None]) -> None:
    for message in found:
        if message is not None:
            raise ParameterError(message)


# ---- one tensor: what is wrong with it, or None


def _uninitialised(name: str, tensor: torch.Tensor, holding: Holding) -> str | None:
    if not is_lazy(tensor):
        return None
    return (
        f"{name} has no shape yet, it is a lazy module's (LazyLinear, ...): run one batch through the task at the end "
        "of its __init__, as self(torch.zeros(1, ...)), or give the layer its input size"
    )


def _without_values(name: str, tensor: torch.Tensor, holding: Holding) -> str | None:
    if not tensor.is_meta:
        return None
    return (
        f"{name} is on the device 'meta', it has a shape and no values: build the task on the CPU, or give it values "
        "with task.to_empty(device='cpu') and its weights"
    )


def _unusual_layout(name: str, tensor: torch.Tensor, holding: Holding) -> str | None:
    if tensor.layout == torch.strided:
        return None
    return f"{name} has the layout {tensor.layout}, which no setup takes: make it dense, {name}.to_dense()"


def _not_storable(name: str, tensor: torch.Tensor, holding: Holding) -> str | None:
    if tensor.dtype != torch.complex128:
        return None
    return f"{name} is complex128, which safetensors files cannot hold: make it complex64"


def _expanded(name: str, tensor: torch.Tensor, holding: Holding) -> str | None:
    if all(stride or size <= 1 for size, stride in zip(tensor.shape, tensor.stride(), strict=True)):
        return None
    return f"{name} is an expanded view, whose elements no optimizer can step one by one: make it whole, with .clone()"


def _complex(name: str, tensor: torch.Tensor, holding: Holding) -> str | None:
    if not holding.stage or not tensor.is_complex():
        return None
    return (
        f"{name} is {_type(tensor)}, of which {holding.name} would drop the imaginary part: {_DDP}, or hold the real "
        "and the imaginary part as one real parameter (torch.view_as_complex in the forward pass)"
    )


def _other_type(name: str, tensor: torch.Tensor, holding: Holding) -> str | None:
    """DeepSpeed holds all masters in fp32 and casts weights to what it computes in."""
    if not holding.stage or not tensor.is_floating_point() or tensor.dtype in (torch.float32, holding.dtype):
        return None
    what = f"{name} is {_type(tensor)}, and {holding.name} in {_name(holding.dtype)} would"
    if tensor.dtype.itemsize > 4:
        return f"{what} cast it down: {_DDP}, or make it float32 ({name}.float())"
    precision = {torch.bfloat16: ", or --precision bf16", torch.float16: ", or --precision fp16"}.get(tensor.dtype, "")
    return f"{what} mix it with other types: {_DDP}, or make it float32 ({name}.float()){precision}"


def _empty(name: str, tensor: torch.Tensor, holding: Holding) -> str | None:
    if holding.stage != 3 or tensor.numel():
        return None
    return f"{name} has no elements, and ZeRO stage 3 cannot gather it: give setup zero2, zero1 or ddp, or leave it out"


def _sparse(name: str, holding: Holding) -> str | None:
    if holding.stage:
        return (
            f"{name} has sparse gradients, of which {holding.name} makes nothing: {_DDP}, or give its embedding "
            "sparse=False"
        )
    if holding.cuda:
        return f"{name} has sparse gradients, which NCCL does not average over GPUs: give its embedding sparse=False"
    return None


# ---- the whole task


def _compiled(task: nn.Module) -> Iterator[str | None]:
    for name, module in task.named_modules():
        # torch.compile(module), or module.compile(); importing torch._dynamo to ask for the type takes seconds
        if "_orig_mod" in module._modules or module._compiled_call_impl is not None:
            yield (
                f"{name or 'the task'} is compiled (torch.compile), and ZeRO stage 3 gathers weights with hooks that "
                "compiled modules leave out: give setup zero2, zero1 or ddp, or leave torch.compile out"
            )


def _scripted(task: nn.Module) -> Iterator[str | None]:
    for name, module in task.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            yield (
                f"{name or 'the task'} is a ScriptModule (torch.jit), and ZeRO stage 3 gathers weights with hooks that "
                "it does not take: give setup zero2, zero1 or ddp, or the module it was made of"
            )


def _overlapping(parameters: Mapping[str, torch.Tensor], holding: Holding) -> Iterator[str | None]:
    places = sorted((p.data_ptr(), p.numel() * p.element_size(), name) for name, p in parameters.items() if p.numel())
    for (begin, size, name), (following, _, other) in pairwise(places):
        if following < begin + size and parameters[name].is_contiguous():
            yield (
                f"{name} and {other} are two parameters in the same memory, which {holding.name} would part: {_DDP}, "
                "or make them one parameter under both names (b.weight = a.weight)"
            )


def _averaged(task: nn.Module) -> Iterator[str | None]:
    for name, module in task.named_modules():
        if isinstance(module, AveragedModel):
            yield f"{name} is an AveragedModel that {_AVERAGES}"


_AVERAGES = (
    "averages weights outside of the forward pass, where ZeRO stage 3 holds but a part of each: give setup zero2, "
    "zero1 or ddp, where every rank has them whole"
)


# ---- what is said


def _dense_layout(parameters: Mapping[str, torch.Tensor], holding: Holding) -> Iterator[str]:
    others = [name for name, parameter in parameters.items() if not parameter.is_contiguous()]
    if holding.stage and others:
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        yield (
            f"{others[0]}{more}: held in the order of the dimensions, as {holding.name} needs it, not in the "
            "channels-last or transposed one of the task; a convolution computes in the order of its input"
        )


def _type(tensor: torch.Tensor) -> str:
    return _name(tensor.dtype)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
