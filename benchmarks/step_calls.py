"""Counts, step by step, the calls that make a GPU's host wait for it, and what the ranks say to each other."""

from __future__ import annotations

import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import torch
from torch.utils._python_dispatch import TorchDispatchMode

# On a GPU each of these waits until the device has come so far; on a CPU they cost nothing, and are the same calls.
_READS = ("_local_scalar_dense", "equal", "is_nonzero", "nonzero", "masked_select", "unique", "unique_dim", "_unique2")
# Whose tensors are on the host on a GPU's machine too: step counts of torch's optimizers, DDP's map of the parameters
# that were used, and what loaders make.
_ON_THE_HOST = ("torch/optim/", "torch/autograd/graph.py")
_LOADERS = "torch/utils/data/"
_WRAPPERS = ("torch/_compile.py", "torch/_dynamo/")
_COLLECTIVES = ("reduce", "gather", "scatter", "broadcast", "alltoall", "barrier", "send", "recv")


@dataclass
class StepCalls:
    """What was called in one step, and from where."""

    reads: Counter[str] = field(default_factory=Counter)
    """Reads of a tensor's value, by the line that reads."""
    waits: Counter[str] = field(default_factory=Counter)
    """Collectives that the host waits for, other than of gradients and parameters, by the line that calls."""
    talks: Counter[str] = field(default_factory=Counter)
    """Collectives of such numbers for which it does not wait."""
    traffic: Counter[str] = field(default_factory=Counter)
    """Collectives of floating-point tensors: gradients, parameters, and norms of them."""

    def to_json(self) -> dict[str, dict[str, int]]:
        """As plain values."""
        return {name: dict(counts) for name, counts in vars(self).items()}


class SyncCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts while it is active; `begin_step` divides what it counts into steps."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.steps: list[StepCalls] = [StepCalls()]

    def begin_step(self) -> None:
        """What comes belongs to the next step."""
        self.steps.append(StepCalls())

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: Iterable[type],
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        """Count a call; pass everything on."""
        name = str(getattr(func, "overloadpacket", func)).rsplit(".", 1)[-1]
        calls, named = self.steps[-1], dict(kwargs or {})
        if getattr(func, "namespace", "") == "c10d" and any(word in name for word in _COLLECTIVES):
            if any(tensor.is_floating_point() for tensor in _tensors(args)):
                calls.traffic[f"{name} at {_caller()}"] += 1
            else:
                waits = not _argument(func, args, named, "async_op")
                (calls.waits if waits else calls.talks)[f"{name} at {_caller()}"] += 1
        elif name in _READS and not _from_host():
            calls.reads[f"{name} at {_caller()}"] += 1
        return func(*args, **named)


def _tensors(values: object) -> Iterable[torch.Tensor]:
    if isinstance(values, torch.Tensor):
        yield values
    elif isinstance(values, (list, tuple)):
        for value in values:
            yield from _tensors(value)


def _argument(func: Callable[..., object], args: Sequence[object], kwargs: Mapping[str, object], name: str) -> bool:
    for index, one in enumerate(func._schema.arguments):  # type: ignore[attr-defined]
        if one.name == name:
            return bool(args[index] if index < len(args) else kwargs.get(name, one.default_value))
    return False


def _from_host() -> bool:
    """Whether the tensor is on the host in any case."""
    frames = [frame for frame in _frames(sys._getframe(2)) if not any(part in frame for part in _WRAPPERS)]
    # innermost in the optimizer, not in a callback of the closure that it calls; or in DDP's reducer, from C++
    return any(part in frames[0] for part in _ON_THE_HOST) or any(_LOADERS in frame for frame in frames)


def _frames(frame: FrameType | None) -> Iterator[str]:
    while frame is not None:
        yield frame.f_code.co_filename
        frame = frame.f_back


def _caller() -> str:
    """The innermost line outside of torch, and our innermost line, if that is another."""
    found = [
        frame
        for frame in traceback.extract_stack()[:-2]
        if not any(part in frame.filename for part in ("/torch/", "step_calls", "deepspeed/comm"))
    ]
    lines = [found[-1], *[frame for frame in reversed(found) if "/flash_" in frame.filename][:1]]
    return " by ".join(dict.fromkeys(f"{_short(one.filename)}:{one.name}" for one in lines))


def _short(filename: str) -> str:
    package, _, inside = filename.rpartition("site-packages/")
    return inside if package else "/".join(Path(filename).parts[-2:])
