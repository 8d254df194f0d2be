"""RunData: what a run trains and validates on, dealt out to ranks when the loaders are made."""

from collections.abc import Sequence, Sized
from typing import Generic, TypeVar

import torch
from pytorch_lightning import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from flash_launch.data.sampling import EvalBatchSampler, TrainSampler, check_enough, leaves_single
from flash_launch.data.sharded_order import ShardedOrder

__all__ = ["MapData", "RunData", "described"]

Sample = TypeVar("Sample")


class RunData(LightningDataModule):
    """A LightningDataModule whose loaders hold this rank's share, for a Trainer with `use_distributed_sampler=False`.

    Rank and world size are those of the trainer, else of torch.distributed, when a loader is made.
    """

    description: str = ""
    """What the data are, in a few words."""

    num_classes: int | None = None
    """Number of classes; None: not known (one's own data that do not say)."""

    class_names: tuple[str, ...] = ()
    """Names of the classes by label; empty: not known."""

    train_size: int | None = None
    """Samples to train on, over all ranks; None: not known."""

    val_size: int | None = None
    """Samples to validate on, over all ranks; 0: no validation; None: not known."""

    image_size: int | None = None
    """Pixels on each side of the images; None: not images, or not known."""

    single_samples: bool = True
    """Whether a batch to train on may have one sample alone, of which a batch norm cannot take the variance."""

    def __init__(self) -> None:
        super().__init__()
        self.notes: list[str] = []
        self._start: tuple[int, int] | None = None
        self.starts_anywhere = True
        self._samplers: tuple[TrainSampler | ShardedOrder[object], ...] = ()

    @property
    def rank_and_world(self) -> tuple[int, int]:
        """This rank and the number of ranks."""
        if self.trainer is not None:
            return self.trainer.global_rank, self.trainer.world_size
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return torch.distributed.get_rank(), torch.distributed.get_world_size()
        return 0, 1

    def check(self, world_size: int) -> None:
        """Look for what would stop the run later; read files where that is needed.

        Raises:
            DataError: see the classes below.
        """
        if self.val_size:
            check_enough(self.val_size, world_size)

    def start_at(self, epoch: int, batch: int) -> None:
        """Train on in the middle of an epoch: in `epoch`, and no other, the first `batch` batches are left out.

        Where `starts_anywhere` is false once the loaders are made, they are not: who trains must fetch and drop them.
        """
        self._start = (epoch, batch)
        self._use(*self._samplers, anywhere=self.starts_anywhere)

    def _use(self, *samplers: TrainSampler | ShardedOrder[object], anywhere: bool = True) -> None:
        """Take these as the samplers of the train loaders."""
        self._samplers, self.starts_anywhere = samplers, anywhere
        for sampler in samplers if anywhere else ():
            if self._start is not None:
                sampler.start_at(*self._start)


def described(class_names: Sequence[str], train_size: int, val_size: int) -> str:
    """Classes and images per split, in words."""
    names = ", ".join(class_names[:5]) + (", ..." if len(class_names) > 5 else "")
    classes = f"{len(class_names):,} class{'es' * (len(class_names) != 1)}"
    return (
        f"{classes} ({names}), {train_size:,} image{'s' * (train_size != 1)} to train on, {val_size:,} to validate on"
    )


class MapData(RunData, Generic[Sample]):
    """Data that can be indexed: a data set to train on and one to validate on."""

    def __init__(self, *, batch_size: int, seed: int, num_workers: int = 0) -> None:
        super().__init__()
        self.batch_size, self.seed, self.num_workers = batch_size, seed, num_workers

    def check(self, world_size: int) -> None:
        """Also say where the last batch of an epoch is made larger; see RunData."""
        super().check(world_size)
        assert self.train_size is not None
        if not self.single_samples and leaves_single(self.train_size, world_size, self.batch_size):
            self.notes.append(
                "the last batch of an epoch would have one sample on each rank, which a batch norm may not take: "
                "each rank repeats one of the epoch's samples in it"
            )

    def train_dataset(self, epoch: torch.Tensor) -> Dataset[Sample]:
        """The data to train on; `epoch` is a shared tensor that holds the number of the epoch."""
        raise NotImplementedError

    def val_dataset(self) -> Dataset[Sample]:
        """The data to validate on."""
        raise NotImplementedError

    def train_dataloader(self) -> DataLoader[Sample]:
        """This rank's share of the training data, shuffled anew in each epoch."""
        rank, world_size = self.rank_and_world
        assert self.train_size is not None
        sampler = TrainSampler(
            self.train_size, rank, world_size, self.seed, batch_size=self.batch_size, single=self.single_samples
        )
        self._use(sampler)
        dataset = self.train_dataset(sampler.epoch_cell)
        assert isinstance(dataset, Sized)
        assert len(dataset) == self.train_size
        return DataLoader(
            dataset,
            self.batch_size,
            sampler=sampler,
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=self.num_workers > 0,
        )

    def val_dataloader(self) -> DataLoader[Sample] | list[DataLoader[Sample]]:
        """This rank's share of the validation data: each sample once over all ranks; an empty list without any."""
        rank, world_size = self.rank_and_world
        assert self.val_size is not None
        if self.val_size == 0:
            return []
        return DataLoader(
            self.val_dataset(),
            batch_sampler=EvalBatchSampler(self.val_size, self.batch_size, rank, world_size),
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=self.num_workers > 0,
        )
