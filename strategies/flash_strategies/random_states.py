"""Random states of a rank, and of the generators that shuffle a loader, taken and given back."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from typing import TypedDict

import numpy as np
import torch

# where torch's loaders and Accelerate's keep the generator of their order
_GENERATORS = (
    "generator",
    "sampler.generator",
    "batch_sampler.sampler.generator",
    "batch_sampler.batch_sampler.sampler.generator",
    "synchronized_generator",
)


class HostStates(TypedDict):
    """Of plain values and tensors, which `torch.load(weights_only=True)` reads."""

    python: tuple[object, ...]
    numpy: list[object]
    torch: torch.Tensor


class RandomStates(HostStates):
    """With those of GPUs, and of the generators of a loader."""

    cuda: list[torch.Tensor]
    loader: dict[str, torch.Tensor]


def take_host() -> HostStates:
    """The present states of Python, numpy and torch."""
    kind, keys, *rest = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": [str(kind), torch.tensor(np.asarray(keys, dtype=np.int64)), *rest],
        "torch": torch.get_rng_state(),
    }


def give_back_host(states: HostStates) -> None:
    """Set the states that `take_host` gave."""
    random.setstate(states["python"])
    kind, keys, *rest = states["numpy"]
    assert isinstance(keys, torch.Tensor)
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))  # type: ignore[arg-type]
    torch.set_rng_state(states["torch"])


def take(loader: object = None) -> RandomStates:
    """The present states: Python's, numpy's, torch's, the GPUs', and those of the loader's generators."""
    return {
        **take_host(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "loader": {path: generator.get_state() for path, generator in _generators(loader)},
    }


def give_back(states: RandomStates, loader: object = None) -> None:
    """Set the states that `take` gave."""
    give_back_host(states)
    if len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])
    saved: Mapping[str, torch.Tensor] = states["loader"]
    for path, generator in _generators(loader):
        if path in saved:
            generator.set_state(saved[path])


def _generators(loader: object) -> Iterator[tuple[str, torch.Generator]]:
    for path in _GENERATORS:
        found = loader
        for name in path.split("."):
            found = getattr(found, name, None)
        if isinstance(found, torch.Generator):
            yield path, found
