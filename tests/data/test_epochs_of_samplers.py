"""What a sampler of the user's own draws, through real fits: another order in each epoch, the same after a resume."""

import random
from collections.abc import Callable, Iterator

import numpy
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, Sampler, WeightedRandomSampler

from flash_launch.data.own import TaskData
from flash_strategies.lightning import private

SIZE = 12


class Drawn(Sampler[list[int]]):
    """Batches of a permutation, drawn by what `make` gives in each epoch."""

    def __init__(self, draw: Callable[[], list[int]], **kept: object) -> None:
        self.draw = draw
        vars(self).update(kept)

    def __iter__(self) -> Iterator[list[int]]:
        order = self.draw()
        return iter([order[start : start + 3] for start in range(0, SIZE, 3)])

    def __len__(self) -> int:
        return SIZE // 3


class ByEpoch(Sampler[int]):
    """Draws from its seed and the epoch that it was given, as DistributedSampler does."""

    epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        return iter(torch.randperm(SIZE, generator=torch.Generator().manual_seed(7 + self.epoch)).tolist())

    def __len__(self) -> int:
        return SIZE


def global_numbers() -> Sampler[list[int]]:
    return Drawn(lambda: torch.randperm(SIZE).tolist())


def generator_kept() -> Sampler[list[int]]:
    generator = torch.Generator().manual_seed(3)
    return Drawn(lambda: torch.randperm(SIZE, generator=generator).tolist(), generator=generator)


def python_kept() -> Sampler[list[int]]:
    numbers = random.Random(3)
    return Drawn(lambda: numbers.sample(range(SIZE), SIZE), numbers=numbers)


def numpy_kept() -> Sampler[list[int]]:
    numbers = numpy.random.default_rng(3)
    return Drawn(lambda: numbers.permutation(SIZE).tolist(), numbers=numbers)


def batches_of_random() -> Sampler[list[int]]:
    return BatchSampler(RandomSampler(range(SIZE), generator=torch.Generator()), 3, drop_last=False)


def batches_by_epoch() -> Sampler[list[int]]:
    return BatchSampler(ByEpoch(), 3, drop_last=False)


def weighted() -> Sampler[int]:
    return WeightedRandomSampler([1.0] * SIZE, SIZE, generator=torch.Generator())


BATCHES = [global_numbers, generator_kept, python_kept, numpy_kept, batches_of_random, batches_by_epoch]


class Seen(pl.LightningModule):
    """Notes the samples of each epoch."""

    def __init__(self, loader: DataLoader[Tensor]) -> None:
        super().__init__()
        self.loader, self.net = loader, nn.Linear(1, 1)
        self.epochs: dict[int, list[int]] = {}

    def train_dataloader(self) -> DataLoader[Tensor]:
        return self.loader

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.epochs.setdefault(self.current_epoch, []).extend(int(number) for number in batch)
        return self.net(batch.float()[:, None]).mean()  # type: ignore[no-any-return]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fitted(sampler: Sampler[object], *, resumed_at: tuple[int, int] | None = None) -> dict[int, list[int]]:
    batches = (
        {"batch_sampler": sampler} if isinstance(next(iter(sampler)), list) else {"sampler": sampler, "batch_size": 3}
    )
    task = Seen(DataLoader(range(SIZE), **batches))  # type: ignore[arg-type]
    data = TaskData(task, seed=1)
    trainer = pl.Trainer(
        max_epochs=3,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    if resumed_at is not None:
        epoch, batch = resumed_at
        data.start_at(epoch, batch)
        private.go_on_at(trainer, epoch=epoch, batch=batch, step=4 * epoch + batch)
    trainer.fit(task, datamodule=data)
    return task.epochs


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", [*BATCHES, weighted, ByEpoch])
def test_each_epoch_draws_anew_and_a_resume_draws_the_same(make: Callable[[], Sampler[object]]) -> None:
    epochs = fitted(make())
    assert [len(samples) for samples in epochs.values()] == [SIZE] * 3
    if make is not weighted:
        assert all(sorted(samples) == list(range(SIZE)) for samples in epochs.values())
    assert len({tuple(samples) for samples in epochs.values()}) == 3
    resumed = fitted(make(), resumed_at=(1, 2))
    assert resumed == {1: epochs[1][6:], 2: epochs[2]}
