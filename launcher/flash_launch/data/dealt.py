"""Loaders of this rank's share that Lightning takes as they are, with its own `use_distributed_sampler` or without."""

from collections.abc import Iterator

from torch.utils.data import BatchSampler, DataLoader, Dataset, DistributedSampler

from flash_launch.data.sampling import EvalBatchSampler, TrainSampler
from flash_launch.data.sharded_order import ShardedOrder

__all__ = ["DealtBatches", "DealtLoader", "DealtSampler", "eval_loader"]


class DealtSampler(DistributedSampler[int]):
    """A sampler that deals samples out to ranks, in the clothes of torch's, which Lightning does not replace.

    Args:
        inner: the samples of this rank, or its batches.
        rank: this rank.
        world_size: number of ranks.
    """

    def __init__(
        self, inner: TrainSampler | ShardedOrder[object] | EvalBatchSampler, rank: int, world_size: int
    ) -> None:
        # nothing of torch's constructor is wanted: it would compute a share of its own
        self.inner, self.rank, self.num_replicas = inner, rank, world_size
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, counted from 0; Lightning calls this at the start of each."""
        self.epoch = epoch
        if not isinstance(self.inner, EvalBatchSampler):
            self.inner.set_epoch(epoch)

    def __iter__(self) -> Iterator[int]:
        if isinstance(self.inner, EvalBatchSampler):
            return (index for batch in self.inner for index in batch)
        return iter(self.inner)  # type: ignore[arg-type]  # the items are samples

    def __len__(self) -> int:
        if isinstance(self.inner, EvalBatchSampler):
            return sum(len(batch) for batch in self.inner)
        return len(self.inner)


class DealtBatches(BatchSampler):
    """The batches of an EvalBatchSampler; for predictions, Lightning makes it anew with these arguments."""

    def __init__(self, sampler: DealtSampler, batch_size: int, drop_last: bool = False) -> None:
        super().__init__(sampler, batch_size, drop_last=False)
        assert isinstance(sampler.inner, EvalBatchSampler)
        self.batches = sampler.inner

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class DealtLoader(DataLoader[object]):
    """A DataLoader whose `sampler` is that of its batches, for Lightning to see that they are dealt out."""

    def __init__(self, dataset: Dataset[object], **options: object) -> None:
        super().__init__(dataset, **options)  # type: ignore[arg-type]
        if isinstance(batches := options.get("batch_sampler"), DealtBatches):
            object.__setattr__(self, "sampler", batches.sampler)


def eval_loader(
    dataset: Dataset[object], size: int, batch_size: int, rank: int, world_size: int, **options: object
) -> DealtLoader:
    """Each sample once over all ranks, as many batches on every rank; batch k of rank r is number k * world_size + r.

    Raises:
        DataError: fewer samples than ranks.
    """
    sampler = DealtSampler(EvalBatchSampler(size, batch_size, rank, world_size), rank, world_size)
    return DealtLoader(dataset, batch_sampler=DealtBatches(sampler, batch_size), **options)
