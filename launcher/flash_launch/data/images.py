"""Image files with labels: listed, checked before the ranks start, and read with torchvision's transforms."""

import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from flash_launch.data.pixels import look_at, notes_on, read_image
from flash_launch.data.run_data import MapData, described
from flash_launch.data.sampling import derived_seed, drawn_from
from flash_launch.errors import DataError

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "ImageData",
    "ImageFiles",
    "LabelledImages",
    "check_files",
    "read_image",
    "split_by_class",
]

IMAGENET_MEAN, IMAGENET_STD = (
    (0.485, 0.456, 0.406),
    (0.229, 0.224, 0.225),
)  # of ImageNet, as torchvision's weights expect
_SCAN_LIMIT = 20_000


@dataclass(frozen=True)
class LabelledImages:
    """Image files and the position of each one's class in the names of classes."""

    paths: tuple[Path, ...]
    """The files."""

    labels: tuple[int, ...]
    """As many labels, from 0."""


class ImageFiles(Dataset[tuple[Tensor, int]]):
    """Images of shape (3, size, size), float32, normalised by ImageNet's statistics, and their labels.

    A training image is cropped and flipped by numbers drawn from the seed, the epoch and its index: the same on
    whatever rank and in whatever loader process it is read.

    Args:
        images: files and labels.
        size: pixels on each side.
        seed: of the augmentation.
        epoch: a shared tensor with the number of the epoch to augment by; None: no augmentation.
    """

    def __init__(self, images: LabelledImages, size: int, seed: int = 0, epoch: Tensor | None = None) -> None:
        self.images, self.seed, self.epoch = images, seed, epoch
        normalise = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(IMAGENET_MEAN, IMAGENET_STD)]
        if epoch is None:
            crop = [v2.Resize(round(size * 256 / 224), antialias=True), v2.CenterCrop(size)]
        else:
            crop = [v2.RandomResizedCrop(size, antialias=True), v2.RandomHorizontalFlip()]
        self._transform: Callable[[Image.Image], Tensor] = v2.Compose([*crop, *normalise])

    def __len__(self) -> int:
        return len(self.images.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = read_image(self.images.paths[index])
        if self.epoch is None:
            return self._transform(image), self.images.labels[index]
        with drawn_from(derived_seed("augmentation", self.seed, int(self.epoch), index)):
            return self._transform(image), self.images.labels[index]


class ImageData(MapData[tuple[Tensor, int]]):
    """Image files to train and to validate on.

    Raises:
        DataError: no classes, a class without training images, or no images.
    """

    def __init__(
        self,
        train: LabelledImages,
        val: LabelledImages,
        class_names: Sequence[str],
        description: str,
        *,
        batch_size: int,
        seed: int,
        num_workers: int = 0,
        image_size: int | None = None,
    ) -> None:
        super().__init__(batch_size=batch_size, seed=seed, num_workers=num_workers)
        self._train, self._val = train, val
        self.train_size, self.val_size = len(train.paths), len(val.paths)
        self.class_names, self.num_classes = tuple(class_names), len(class_names)
        self.image_size = image_size or 224
        self.description = f"{description}: {described(self.class_names, self.train_size, self.val_size)}"
        if not self.class_names:
            raise DataError(f"{description} has no classes")
        if alike := _alike(self.class_names):
            self.notes.append(f"classes whose names differ little are classes of their own: {', '.join(alike[:6])}")
        counts = Counter(train.labels)
        empty = [name for label, name in enumerate(self.class_names) if not counts[label]]
        if empty:
            raise DataError(f"{description} has no training images of {', '.join(map(repr, empty[:5]))}")

    def train_dataset(self, epoch: Tensor) -> Dataset[tuple[Tensor, int]]:
        """The training images, augmented anew in each epoch."""
        assert self.image_size is not None
        return ImageFiles(self._train, self.image_size, self.seed, epoch)

    def val_dataset(self) -> Dataset[tuple[Tensor, int]]:
        """The validation images, not augmented."""
        assert self.image_size is not None
        return ImageFiles(self._val, self.image_size)

    def check(self, world_size: int) -> None:
        """Count the validation images and decode the files: all of them, or a sample of 20,000.

        Raises:
            DataError: fewer validation images than ranks; files that are missing or cannot be read.
        """
        super().check(world_size)
        self.notes += check_files((*self._train.paths, *self._val.paths), seed=self.seed)


def check_files(paths: Sequence[Path], *, seed: int = 0, limit: int = _SCAN_LIMIT) -> tuple[str, ...]:
    """Look whether all files are there, and decode them: all, or `limit` of them chosen by the seed.

    Returns:
        What was decided about images that can be read in more than one way, a sentence each.

    Raises:
        DataError: files that are missing or cannot be read; names the first of them.
    """
    with ThreadPoolExecutor(
        min(32, 4 * (os.cpu_count() or 1))
    ) as threads:  # they wait for the disk, or run outside the GIL
        missing = [path for path, there in zip(paths, threads.map(Path.is_file, paths), strict=True) if not there]
        if missing:
            raise DataError(
                f"{len(missing)} of {len(paths)} images are missing, the first is {missing[0]}: bring them, or take "
                "them out of the data"
            )
        chosen = paths
        if len(paths) > limit:
            generator = torch.Generator().manual_seed(derived_seed("scan", seed))
            chosen = [paths[index] for index in torch.randperm(len(paths), generator=generator)[:limit].tolist()]
        looks = list(threads.map(look_at, chosen))
    faults = [look for look in looks if look.fault]
    if faults:
        raise DataError(
            f"{len(faults)} of {len(chosen)} images cannot be read, the first is {faults[0].path} ({faults[0].fault}): "
            "mend them, or take them out of the data"
        )
    return notes_on(looks)


def split_by_class(images: LabelledImages, val_fraction: float, seed: int) -> tuple[LabelledImages, LabelledImages]:
    """Split into training and validation images, the same share of each class, chosen by the seed.

    Of each class with two images or more, one at least is held back and one at least stays.

    Raises:
        DataError: a fraction that is not from 0 up to, but not including, 1.
    """
    if not 0 <= val_fraction < 1:
        raise DataError(f"val_fraction was given {val_fraction}: it must be from 0 up to, but not including, 1")
    by_class: dict[int, list[int]] = {}
    for index, label in enumerate(images.labels):
        by_class.setdefault(label, []).append(index)
    generator = torch.Generator().manual_seed(derived_seed("split", seed))
    held_back: set[int] = set()
    for label in sorted(by_class):
        indices = by_class[label]
        count = min(max(round(len(indices) * val_fraction), 1), len(indices) - 1) if val_fraction else 0
        held_back.update(indices[place] for place in torch.randperm(len(indices), generator=generator)[:count].tolist())
    return _subset(images, held_back, inside=False), _subset(images, held_back, inside=True)


def _subset(images: LabelledImages, indices: set[int], *, inside: bool) -> LabelledImages:
    kept = [index for index in range(len(images.paths)) if (index in indices) is inside]
    return LabelledImages(tuple(images.paths[i] for i in kept), tuple(images.labels[i] for i in kept))


def _alike(names: Sequence[str]) -> list[str]:
    """Names that are the same but for case, Unicode's forms, zeros before a number, or blanks."""
    by_form: dict[str, list[str]] = {}
    for name in names:
        form = "".join(unicodedata.normalize("NFKC", name).casefold().split())
        by_form.setdefault(form.lstrip("0") if form.isdecimal() else form, []).append(name)
    return [repr(name) for form in by_form.values() if len(form) > 1 for name in form]
