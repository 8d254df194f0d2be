"""Bytes that a rank hands to collectives, counted from the operations themselves while they run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch.utils._python_dispatch import TorchDispatchMode

# Which argument of torch.ops.c10d.* holds what this rank contributes (torch/csrc/distributed/c10d/Ops.cpp, 2.14)
_CONTRIBUTION = {
    "allreduce_": 0,
    "allreduce_coalesced_": 0,
    "allgather_": 1,
    "_allgather_base_": 1,
    "allgather_coalesced_": 1,
    "allgather_into_tensor_coalesced_": 1,
    "reduce_": 0,
    "reduce_scatter_": 1,
    "_reduce_scatter_base_": 1,
    "reduce_scatter_tensor_coalesced_": 1,
    "broadcast_": 0,
    "gather_": 1,
    "scatter_": 1,
    "alltoall_": 1,
    "alltoall_base_": 1,
    "send": 0,
}


class TrafficCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts while it is active, as CommDebugMode of torch.distributed.tensor.debug does.

    What counts is the size of the tensors a rank contributes; how often an algorithm passes them on is not seen.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = 0
        self.calls: dict[str, int] = {}

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: Iterable[type],
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        """Count a collective; pass everything on."""
        if getattr(func, "namespace", "") == "c10d":
            name = str(getattr(func, "overloadpacket", func)).rsplit(".", 1)[-1]
            self.calls[name] = self.calls.get(name, 0) + 1
            if name in _CONTRIBUTION:
                self.bytes += _bytes_in(args[_CONTRIBUTION[name]])
        return func(*args, **(kwargs or {}))


def _bytes_in(value: object) -> int:
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, (list, tuple)):
        return sum(_bytes_in(item) for item in value)
    return 0
