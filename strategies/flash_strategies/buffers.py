"""Buffers over the ranks: a forward pass may change them by what a rank sees; they are made equal, and said once.

Floating-point buffers are averaged. For running statistics and exponential moving averages that is the average over all
batches: what timm calls `distribute_bn("reduce")` (timm, utils/distributed.py). Counters (integers of one element) take
the largest, and all other buffers rank 0's values. A task says otherwise by an attribute `buffer_reduction`, from
patterns of buffer names to "mean", "max", "min" or "rank0": `{"backbone.queue*": "rank0"}`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from hashlib import sha256
from typing import Literal, get_args

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from flash_strategies.agreement import ControlGroup
from flash_strategies.digest import slice_digest
from flash_strategies.errors import ProofError, StrategyValueError

Reduction = Literal["mean", "max", "min", "rank0"]


@dataclass(frozen=True)
class Buffer:
    """A buffer of the task."""

    name: str
    """As in `named_buffers()`."""
    tensor: torch.Tensor
    """Its values."""
    persistent: bool
    """Whether it is part of the state_dict."""
    known: bool
    """A statistic of one of torch's norms."""

    @property
    def layout(self) -> str:
        """Name, shape and type."""
        return f"{self.name} {tuple(self.tensor.shape)} {self.tensor.dtype}"


def buffers_of(task: nn.Module) -> list[Buffer]:
    """The task's buffers that hold something, shared ones once, in module order."""
    found: dict[int, Buffer] = {}
    for prefix, module in task.named_modules():
        for name, tensor in module.named_buffers(recurse=False):
            if tensor.numel() and not tensor.is_meta and tensor.layout == torch.strided:
                persistent = name not in module._non_persistent_buffers_set
                full = f"{prefix}.{name}" if prefix else name
                found.setdefault(id(tensor), Buffer(full, tensor, persistent, isinstance(module, _NormBase)))
    return list(found.values())


@contextmanager
def kept_types(task: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Give complex buffers and, where the task computes in fp32, those of all types back as they were before.

    Args:
        task: whose tensors are cast to another type meanwhile, which would drop imaginary parts and digits.
        dtype: what the task computes in.
    """
    kept = {
        (module, name): buffer
        for module in task.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None and (buffer.is_complex() or (buffer.is_floating_point() and dtype == torch.float32))
    }
    yield
    for (module, name), buffer in kept.items():
        cast = module._buffers[name]
        module._buffers[name] = buffer if cast is None else buffer.to(cast.device)


def buffer_digest(tensor: torch.Tensor) -> torch.Tensor:
    """As `slice_digest`, of numbers of any type."""
    return slice_digest(torch.view_as_real(tensor) if tensor.is_complex() else tensor)


def buffer_digests(task: nn.Module) -> dict[str, int]:
    """Digest of each buffer that is part of the state_dict."""
    persistent = [buffer for buffer in buffers_of(task) if buffer.persistent]
    values = _digests(persistent).tolist()
    return {buffer.name: value for buffer, value in zip(persistent, values, strict=True)}


def prove_buffers_equal(task: nn.Module, control: ControlGroup) -> dict[str, int]:
    """`buffer_digests`, proved equal on all ranks.

    Raises:
        ProofError: names the buffers that differ.
    """
    common = [buffer for buffer in _common(task, control) if buffer.persistent]
    values = _digests(common)
    if differing := [buffer.name for buffer in _differing(common, values, control)]:
        raise ProofError(
            f"the ranks are not equal: their buffers differ in {', '.join(differing[:3])}; stopped. Something writes "
            "to them between the end of the epoch and its proof"
        )
    return dict(zip((buffer.name for buffer in common), values.tolist(), strict=True))


@torch.no_grad()
def equalise(task: nn.Module, control: ControlGroup, *, as_rank_0: bool = False) -> dict[str, Reduction]:
    """Make buffers that differ between ranks equal; all ranks call it together.

    Args:
        task: whose buffers are meant.
        control: the ranks.
        as_rank_0: take rank 0's values of all of them, as at the start of a run.

    Returns:
        How each was treated that differed, but for the statistics of torch's norms, which are always averaged.

    Raises:
        StrategyValueError: the task's `buffer_reduction` says something unknown.
        ProofError: a buffer of the state_dict is of another shape or type on another rank.
    """
    declared = declared_reductions(task)
    if control.world_size == 1:
        return {}
    common = _common(task, control)
    differing = _differing(common, _digests(common), control)
    ways = {b.name: "rank0" if as_rank_0 else reduction_of(b.name, b.tensor, declared) for b in differing}
    for way in sorted(set(ways.values())):
        _reduce([b.tensor for b in differing if ways[b.name] == way], way, control)
    return {b.name: ways[b.name] for b in differing if not (b.known and ways[b.name] == "mean")}


def declared_reductions(task: nn.Module) -> dict[str, Reduction]:
    """What the task's `buffer_reduction` says; empty where it has none.

    Raises:
        StrategyValueError: it is no mapping from patterns to reductions.
    """
    given: object = getattr(task, "buffer_reduction", {})
    known = get_args(Reduction)
    if not isinstance(given, Mapping) or any(way not in known for way in given.values()):
        raise StrategyValueError(
            f"{type(task).__name__}.buffer_reduction is {given!r}: it must map patterns of buffer names to one of "
            f"{', '.join(map(repr, known))}"
        )
    return dict(given)


def reduction_of(name: str, tensor: torch.Tensor, declared: Mapping[str, Reduction]) -> Reduction:
    """How a buffer that differs between ranks is made equal."""
    for pattern, way in declared.items():
        if fnmatchcase(name, pattern):
            return way
    if tensor.is_floating_point() or tensor.is_complex():
        return "mean"
    return "max" if tensor.numel() == 1 and tensor.dtype != torch.bool else "rank0"


def combined(values: Sequence[torch.Tensor], way: Reduction) -> torch.Tensor:
    """One buffer of all ranks, from each rank's, as `equalise` makes it."""
    if way == "rank0":
        return values[0]
    stacked = torch.stack([_exact(value) for value in values])
    made = stacked.amax(0) if way == "max" else stacked.amin(0) if way == "min" else stacked.sum(0) / len(values)
    return _like(made, values[0])


def _reduce(tensors: Sequence[torch.Tensor], way: Reduction, control: ControlGroup) -> None:
    """Reduce tensors in place, in one exchange for each kind of numbers."""
    exact = [_exact(tensor) for tensor in tensors]
    for dtype in sorted({value.dtype for value in exact}, key=str):
        flat = torch.cat([value.reshape(-1) for value in exact if value.dtype == dtype])
        if way == "rank0":  # bits, since a sum with zeros makes another zero of a negative one
            bits = flat.view(torch.int64)
            flat = control.sum(bits if control.rank == 0 else torch.zeros_like(bits)).view(dtype)
        elif way == "mean":
            flat = control.sum(flat) / control.world_size
        else:
            flat = control.min_max(flat)[way == "max"]
        position = 0
        for tensor, value in zip(tensors, exact, strict=True):
            if value.dtype == dtype:
                tensor.copy_(_like(flat[position : position + value.numel()].view_as(value), tensor))
                position += value.numel()


def _exact(tensor: torch.Tensor) -> torch.Tensor:
    """On the CPU, in 64 bits."""
    numbers = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    return numbers.detach().cpu().to(torch.float64 if numbers.is_floating_point() else torch.int64)


def _like(numbers: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    return (torch.view_as_complex(numbers.contiguous()) if tensor.is_complex() else numbers).to(tensor.dtype)


def _common(task: nn.Module, control: ControlGroup) -> list[Buffer]:
    """The buffers that all ranks have in the same shape and type, in the same order.

    Raises:
        ProofError: one that is not is part of the state_dict. A cache that grows with the data is not.
    """
    buffers = buffers_of(task)
    layouts = [buffer.layout for buffer in buffers]
    number = int.from_bytes(sha256("\n".join(layouts).encode()).digest()[:8], "big", signed=True)
    low, high = control.min_max(torch.tensor([number], dtype=torch.int64))
    if torch.equal(low, high):
        return buffers
    persistent = {buffer.layout for buffer in buffers if buffer.persistent}
    everyone = control.gather([layouts, sorted(persistent)], "the comparison of buffers")
    lists = [(set(one[0]), set(one[1])) for one in everyone if isinstance(one, list)]
    shared = set.intersection(*(layouts for layouts, _ in lists))
    if odd := sorted(set.union(*(kept for _, kept in lists)) - shared):
        raise ProofError(
            f"the ranks are not equal: they hold other buffers, of other names, shapes or types, the first of which is "
            f"{odd[0]}; stopped. A buffer that is only a cache is registered with persistent=False"
        )
    return sorted((buffer for buffer in buffers if buffer.layout in shared), key=lambda buffer: buffer.name)


def _digests(buffers: Sequence[Buffer]) -> torch.Tensor:
    """One digest each, as a CPU tensor; one wait for each device."""
    found = torch.zeros(len(buffers), dtype=torch.int64)
    for indices in _by_device(buffers):
        found[indices] = torch.stack([buffer_digest(buffers[index].tensor) for index in indices]).cpu()
    return found


def _by_device(buffers: Sequence[Buffer]) -> Iterator[list[int]]:
    for device in dict.fromkeys(buffer.tensor.device for buffer in buffers):
        yield [index for index, buffer in enumerate(buffers) if buffer.tensor.device == device]


def _differing(buffers: Sequence[Buffer], digests: torch.Tensor, control: ControlGroup) -> list[Buffer]:
    if not buffers:
        return []
    low, high = control.min_max(digests)
    return [buffers[index] for index in (low != high).nonzero().flatten().tolist()]
