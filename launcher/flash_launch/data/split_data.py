"""SplitData: images to train, validate, test and predict on, with loaders that hold this rank's share."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Required, Self, TypedDict, Unpack

import torch
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import Dataset, Sampler

from flash_launch.data.dealt import DealtLoader, DealtSampler, eval_loader
from flash_launch.data.image_samples import ImageSamples, Split, image_transform
from flash_launch.data.run_data import RunData, described
from flash_launch.data.sampling import TrainSampler, derived_seed, leaves_single
from flash_launch.data.sharded_order import ShardedOrder
from flash_launch.data.targets import TargetFormat, find_format
from flash_launch.errors import DataError
from flash_launch.setup_keys import nearest
from flash_strategies.reporting import NOTES, say

__all__ = ["LoaderOptions", "SplitData"]

MakeSampler = Callable[[Dataset[object]], Iterable[int]]


class LoaderOptions(TypedDict, total=False):
    """What every `ImageClassificationData.from_...` takes beside its images."""

    batch_size: Required[int]
    """Samples per rank and batch."""
    val_split: float | None
    """Share of the training samples that validates, above 0 and below 1; chosen by the seed, the same on all ranks."""
    num_workers: int
    """Loader processes per rank; 0: read in the process that trains."""
    sampler: MakeSampler | Sampler[int] | None
    """Order of the training samples, or what makes one from the data set; the ranks share it out."""
    transform: object
    """A function from an RGB image of PIL's to a tensor, a class of such, or a dict by stage; None: Flash's."""
    transform_kwargs: Mapping[str, object] | None
    """image_size, mean and std of the default transform; or arguments for the class."""
    pin_memory: bool
    """Copy batches to pinned memory; where there is no GPU it has no effect."""
    persistent_workers: bool
    """Keep the loader processes from epoch to epoch."""
    labels: Sequence[str] | None
    """Names of all classes by number; None: those of the training targets, sorted."""
    seed: int | None
    """Of shuffling, splitting and augmentation; None: that of `seed_everything`, else 0."""


class SplitData(RunData):
    """The images of each stage, dealt out to ranks; `ImageClassificationData` says where they come from."""

    def __init__(
        self,
        train: Split | None = None,
        val: Split | None = None,
        test: Split | None = None,
        predict: Split | None = None,
        *,
        columns: Sequence[str] | None = None,
        **options: Unpack[LoaderOptions],
    ) -> None:
        """Prepare.

        Args:
            train, val, test, predict: images and, but for `predict`, targets.
            columns: of a table, one for each class, that the targets were read from.
            options: see LoaderOptions.
        """
        super().__init__()
        self.options = _checked(options)
        self.batch_size, self.num_workers = self.options["batch_size"], self.options.get("num_workers", 0)
        seed = self.options.get("seed")
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", 0)) if seed is None else seed
        share = self.options.get("val_split")
        if share is not None:
            if train is None or val is not None:
                raise DataError(
                    f"val_split={share} takes validation samples from those to train on: give training data, and no "
                    "validation data beside it"
                )
            train, val = _parted(train, share, self.seed)
        splits = {"train": train, "val": val, "test": test, "predict": predict}
        self.format = _format(splits, self.options.get("labels"), columns)
        self.labels = list(self.format.labels) if self.format and self.format.labels else None
        self.num_classes = self.format.num_classes if self.format else None
        self.multi_label = self.format is not None and self.format.multi_label
        self.class_names = tuple(self.labels or ())
        self.train_dataset, self.val_dataset, self.test_dataset, self.predict_dataset = (
            self._dataset(stage, split) for stage, split in splits.items()
        )
        self.train_size = len(self.train_dataset) if self.train_dataset else None
        self.val_size = len(self.val_dataset) if self.val_dataset else 0
        self.description = described(self.class_names, self.train_size or 0, self.val_size)
        # a method of this name, where there are data of the stage, is what Lightning looks for
        for stage in (stage for stage, split in splits.items() if split is not None):
            setattr(self, f"{stage}_dataloader", getattr(self, f"_{stage}_loader"))

    def _train_loader(self) -> DealtLoader:
        assert self.train_dataset is not None
        rank, world_size = self.rank_and_world
        size, sampler = len(self.train_dataset), self.options.get("sampler")
        order: TrainSampler | ShardedOrder[object]
        epoch = None
        if sampler is None:
            single = self.single_samples and not self._has_batch_norm()
            if not single and leaves_single(size, world_size, self.batch_size):
                say(
                    "the last batch of an epoch would have one sample on each rank, which a batch norm may not take: "
                    "each rank repeats one of the epoch's samples in it",
                    NOTES,
                )
            order = TrainSampler(size, rank, world_size, self.seed, batch_size=self.batch_size, single=single)
            epoch = order.epoch_cell
        else:
            made = sampler if isinstance(sampler, Iterable) else sampler(self.train_dataset)
            order = ShardedOrder(made, rank, world_size, self.seed, batch_size=self.batch_size)
        self._use(order)
        dataset = dataclasses.replace(self.train_dataset, epoch=epoch)
        dealt = DealtSampler(order, rank, world_size)
        return DealtLoader(dataset, batch_size=self.batch_size, sampler=dealt, **self._loading())

    def _val_loader(self) -> DealtLoader:
        return self._eval_loader(self.val_dataset)

    def _test_loader(self) -> DealtLoader:
        return self._eval_loader(self.test_dataset)

    def _predict_loader(self) -> DealtLoader:
        return self._eval_loader(self.predict_dataset)

    def _eval_loader(self, dataset: ImageSamples | None) -> DealtLoader:
        assert dataset is not None
        rank, world_size = self.rank_and_world
        if len(dataset) < world_size:
            raise DataError(
                f"{len(dataset)} image{'s' * (len(dataset) != 1)} to {dataset.stage} on cannot be spread over "
                f"{world_size} ranks, of which each needs one at least: give more images, or use fewer ranks"
            )
        return eval_loader(dataset, len(dataset), self.batch_size, rank, world_size, **self._loading())

    def _loading(self) -> dict[str, object]:
        return {
            "num_workers": self.num_workers,
            "pin_memory": self.options.get("pin_memory", True) and torch.cuda.is_available(),
            "persistent_workers": self.options.get("persistent_workers", False) and self.num_workers > 0,
        }

    def _has_batch_norm(self) -> bool:
        task = self.trainer.lightning_module if self.trainer is not None else None
        return task is not None and any(isinstance(module, _BatchNorm) for module in task.modules())

    # ---- parts

    def _dataset(self, stage: str, split: Split | None) -> ImageSamples | None:
        if split is None:
            return None
        if not len(split.images):
            raise DataError(f"there are no images to {stage} on")
        transform = image_transform(self.options.get("transform"), self.options.get("transform_kwargs"), stage)
        targets = None
        if split.targets is not None:
            assert self.format is not None
            format_ = self.format
            targets = [format_(target, f"{stage} target {index}") for index, target in enumerate(split.targets)]
        return ImageSamples(split.images, transform, targets, seed=self.seed, stage=stage, ready=split.ready)

    def _noted(self, notes: Iterable[str]) -> Self:
        self.notes += notes
        for note in notes:
            say(note, NOTES)
        return self


def _checked(options: LoaderOptions) -> LoaderOptions:
    for name in options:
        if name not in LoaderOptions.__annotations__:
            raise DataError(
                f"ImageClassificationData takes no argument {name!r}{nearest(name, LoaderOptions.__annotations__)}. "
                f"Beside images and targets it takes {', '.join(LoaderOptions.__annotations__)}"
            )
    if "batch_size" not in options:
        raise DataError("batch_size is missing: give the number of samples per rank and batch")
    for name, low in (("batch_size", 1), ("num_workers", 0)):
        value: object = options.get(name, low)
        if type(value) is not int or value < low:
            raise DataError(f"{name} was given {value!r}: it is a whole number of {low} or more")
    sampler: object = options.get("sampler")
    if sampler is not None and not callable(sampler) and not isinstance(sampler, Iterable):
        raise DataError(
            f"sampler is {sampler!r}: give a sampler of torch's, or a function that makes one of a data set"
        )
    return options


def _parted(train: Split, share: object, seed: int) -> tuple[Split, Split]:
    """Training samples and validation samples; not by class, the same on all ranks."""
    if not isinstance(share, float) or not 0 < share < 1:
        raise DataError(f"val_split was given {share!r}: it is a share of the training samples, above 0 and below 1")
    size = len(train.images)
    count = round(size * share)
    if count in (0, size):
        raise DataError(
            f"val_split={share} of {size} training samples leaves none to {'train' if count else 'validate'} on"
        )
    generator = torch.Generator().manual_seed(derived_seed("split", seed))
    order = torch.randperm(size, generator=generator).tolist()
    return train.part(sorted(order[count:])), train.part(sorted(order[:count]))


def _format(
    splits: Mapping[str, Split | None], labels: Sequence[str] | None, columns: Sequence[str] | None
) -> TargetFormat | None:
    """That of the training targets, else of the first stage that has any."""
    for stage, split in splits.items():
        if split is not None and split.targets is not None:
            found = find_format(split.targets, stage, literal=split.literal)
            if columns is not None:
                if found.form not in ("one_hot", "shares") or found.num_classes != len(columns):
                    raise DataError(
                        f"the columns {', '.join(columns)} hold {split.targets[0]!r} for {stage} sample 0: columns of "
                        "classes hold 0 and 1; for one column of targets give its name alone"
                    )
                found = dataclasses.replace(found, labels=tuple(columns))
            return found if labels is None else found.named(labels)
    return None
