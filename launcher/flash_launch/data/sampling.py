"""Samplers that deal a data set out to ranks: each a pure function of seed, epoch, rank and world size."""

import hashlib
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch.utils.data import Sampler

from flash_launch.errors import DataError

__all__ = ["EvalBatchSampler", "TrainSampler", "derived_seed", "drawn_from", "leaves_single"]


def derived_seed(*parts: int | str) -> int:
    """A 32-bit seed from these parts; unlike a sum, seed 1 in epoch 2 has nothing to do with seed 2 in epoch 1."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big")


@contextmanager
def drawn_from(seed: int) -> Iterator[None]:
    """Random numbers that torch draws on the CPU come from this seed inside, and go on as before afterwards."""
    # Not torch.manual_seed: that would seed the accelerators again as well.
    generator = torch.default_generator
    before = generator.get_state()
    generator.manual_seed(seed)
    try:
        yield
    finally:
        generator.set_state(before)


class TrainSampler(Sampler[int]):
    """Shuffles anew in every epoch and deals the samples out to ranks in turn, as many to each.

    All samples are seen in every epoch. Where the ranks do not divide them evenly, the first of the order come again at
    its end: at most `world_size - 1` samples. Rank r takes positions r, r + world_size, ... of the order, so that the
    k-th batches of all ranks together are the same samples on any number of ranks with the same global batch.

    Args:
        size: number of samples in the data set.
        rank: this rank.
        world_size: number of ranks.
        seed: of the shuffling.
        shuffle: False keeps the order of the data set.
        batch_size: samples per batch of this rank, which `start_at` counts in.
        single: False adds a repeated sample on every rank where the last batch would have one alone.

    Raises:
        DataError: no samples.
    """

    def __init__(
        self,
        size: int,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        *,
        shuffle: bool = True,
        batch_size: int = 1,
        single: bool = True,
    ) -> None:
        if size < 1:
            raise DataError("there is no sample to train on")
        assert 0 <= rank < world_size
        assert batch_size >= 1
        self.size, self.rank, self.world_size, self.seed = size, rank, world_size, seed
        self.shuffle, self.batch_size = shuffle, batch_size
        self._share = math.ceil(size / world_size)
        if not single and leaves_single(size, world_size, batch_size):
            self._share += 1
        # Shared memory: a data set that augments by epoch reads it in its loader's worker processes as well.
        self.epoch_cell = torch.zeros((), dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]
        self._start = (0, 0)

    @property
    def epoch(self) -> int:
        """The epoch that the next iteration is for."""
        return int(self.epoch_cell)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, counted from 0. Lightning calls this at the start of each."""
        self.epoch_cell.fill_(epoch)

    def start_at(self, epoch: int, batch: int) -> None:
        """Go on in the middle of an epoch: in this epoch, and no other, the first `batch` batches are left out."""
        self.set_epoch(epoch)
        self._start = (epoch, batch)

    def order(self) -> list[int]:
        """This rank's samples of the whole epoch, whatever the start: `len(self)` indices."""
        if self.shuffle:
            generator = torch.Generator().manual_seed(derived_seed("order", self.seed, self.epoch))
            order = torch.randperm(self.size, generator=generator)
        else:
            order = torch.arange(self.size)
        positions = torch.arange(self.rank, len(self) * self.world_size, self.world_size)
        indices: list[int] = order[positions % self.size].tolist()
        return indices

    def __iter__(self) -> Iterator[int]:
        epoch, batch = self._start
        return iter(self.order()[batch * self.batch_size if epoch == self.epoch else 0 :])

    def __len__(self) -> int:
        """Samples of this rank in a whole epoch, the same on every rank."""
        return self._share


def leaves_single(size: int, world_size: int, batch_size: int) -> bool:
    """Whether the last batch of an epoch has one sample on each rank where others have more."""
    return batch_size > 1 and math.ceil(size / world_size) % batch_size == 1


class EvalBatchSampler(Sampler[list[int]]):
    """Batches that hold each sample exactly once over all ranks, as many batches on every rank, none of them empty.

    The same number, since a ZeRO-3 forward is a collective: a rank with a batch less would leave the others waiting.
    The sizes of all batches differ by 1 at most. They are at most `batch_size`, but for one case: a batch size of 1 and
    more samples than a multiple of the ranks, where some batches hold 2.

    Args:
        size: number of samples.
        batch_size: the most samples in one batch.
        rank: this rank.
        world_size: number of ranks.
        order: the samples to take, `size` indices; None: 0, 1, 2, ...

    Raises:
        DataError: fewer samples than ranks.
    """

    def __init__(
        self, size: int, batch_size: int, rank: int = 0, world_size: int = 1, *, order: Sequence[int] | None = None
    ) -> None:
        assert 0 <= rank < world_size
        assert batch_size >= 1
        assert order is None or len(order) == size
        check_enough(size, world_size)
        self.size, self.batch_size, self.rank, self.world_size = size, batch_size, rank, world_size
        self._order = order

    def __iter__(self) -> Iterator[list[int]]:
        batches = len(self) * self.world_size
        for batch in range(self.rank, batches, self.world_size):
            positions = range(self.size * batch // batches, self.size * (batch + 1) // batches)
            yield list(positions) if self._order is None else [self._order[position] for position in positions]

    def __len__(self) -> int:
        """Batches of this rank, the same on every rank, at least 1."""
        return min(math.ceil(self.size / (self.batch_size * self.world_size)), self.size // self.world_size)


def check_enough(size: int, world_size: int) -> None:
    """Raise DataError where there are fewer validation samples than ranks."""
    if size < world_size:
        raise DataError(
            f"{size} validation samples cannot be spread over {world_size} ranks, of which each needs one at least: "
            "validate on more samples or use fewer ranks"
        )
