"""The order of a sampler of the user's own, agreed between ranks and dealt out to them."""

import hashlib
import math
import random
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import Generic, TypeVar

import numpy
import torch
from torch import distributed
from torch.utils.data import Sampler

from flash_launch.data.sampling import derived_seed, drawn_from
from flash_launch.errors import DataError

__all__ = ["ShardedOrder", "agreed_order"]

Item = TypeVar("Item")


class ShardedOrder(Sampler[Item], Generic[Item]):
    """Deals the order of a sampler of the user's own out to ranks in turn, as many items to each.

    Every rank runs the whole sampler, with Python's, numpy's and torch's random numbers drawn from the seed and the
    epoch, and takes positions rank, rank + world_size, ... Where ranks do not divide the items evenly, the first come
    again at the end. Items are samples, or batches where the sampler makes batches.

    Raises:
        DataError: on iteration: the order is empty, or not the same on every rank.
    """

    def __init__(
        self, order: Iterable[Item], rank: int, world_size: int, seed: int, *, batch_size: int | None = None
    ) -> None:
        self.inner, self.rank, self.world_size, self.seed = order, rank, world_size, seed
        self.batch_size = batch_size or 1
        self.epoch = 0
        self._start = (0, 0)

    @property
    def sampler(self) -> "ShardedOrder[Item]":
        """Itself: of a loader's batch sampler, Lightning sets the epoch of its `sampler` alone."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, counted from 0, for the sampler and those it draws from."""
        self.epoch = epoch
        for part in _parts(self.inner):
            if callable(choose := getattr(part, "set_epoch", None)):
                choose(epoch)

    def start_at(self, epoch: int, batch: int) -> None:
        """Go on in the middle of an epoch: in this epoch the first `batch` batches are left out."""
        self.set_epoch(epoch)
        self._start = (epoch, batch)

    def __iter__(self) -> Iterator[Item]:
        order = agreed_order(self.inner, derived_seed("order", self.seed, self.epoch))
        count = math.ceil(len(order) / self.world_size)
        epoch, batch = self._start
        first = batch * self.batch_size if epoch == self.epoch else 0
        for position in range(first, count):
            yield order[(position * self.world_size + self.rank) % len(order)]

    def __len__(self) -> int:
        assert isinstance(self.inner, Sized)
        return math.ceil(len(self.inner) / self.world_size)


def agreed_order(order: Iterable[Item], seed: int) -> list[Item]:
    """The whole order, drawn from a seed; DataError where it is empty or the ranks' orders differ."""
    with _all_drawn_from(seed):
        _seed_generators(order, seed)
        items = list(order)
    if not items:
        raise DataError(f"the order of the loader's {type(order).__name__} is empty")
    if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
        digest = hashlib.blake2b(repr(items).encode(), digest_size=8).hexdigest()
        digests: list[str] = [""] * distributed.get_world_size()
        distributed.all_gather_object(digests, digest)
        other = next((rank for rank, found in enumerate(digests) if found != digests[0]), None)
        if other is not None:
            raise DataError(
                f"the loader's {type(order).__name__} gives rank {other} another order than rank 0: let it depend on "
                "nothing but a seed and the epoch (set_epoch)"
            )
    return items


def _parts(sampler: object) -> list[object]:
    """A sampler and those that it draws from, as a BatchSampler does from its `sampler`; each once."""
    parts: list[object] = []
    waiting = [sampler]
    while waiting:
        part = waiting.pop()
        if all(part is not known for known in parts):
            parts.append(part)
            waiting += [value for value in getattr(part, "__dict__", {}).values() if isinstance(value, Sampler)]
    return parts


def _seed_generators(sampler: object, seed: int) -> None:
    """Let the generators that a sampler keeps draw from the seed: else they draw as often as they were asked before."""
    for part in _parts(sampler):
        for value in getattr(part, "__dict__", {}).values():
            if isinstance(value, torch.Generator):
                value.manual_seed(seed)
            elif isinstance(value, random.Random | numpy.random.RandomState):
                value.seed(seed)
            elif isinstance(value, numpy.random.Generator):
                kind = type(value.bit_generator)
                value.bit_generator.state = kind(seed).state


@contextmanager
def _all_drawn_from(seed: int) -> Iterator[None]:
    python_state, numpy_state = random.getstate(), numpy.random.get_state()
    random.seed(seed)
    numpy.random.seed(seed)
    try:
        with drawn_from(seed):
            yield
    finally:
        random.setstate(python_state)
        numpy.random.set_state(numpy_state)
