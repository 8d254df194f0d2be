"""scikit-learn's handwritten digits 5 to 9: small real images that need no download."""

import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from flash_launch.data.run_data import MapData, described

__all__ = ["Digits", "digit_images", "digit_split"]

TRAIN_PER_CLASS = 25
"""So few that a pretrained backbone matters; the other 771 images validate."""

_CLASSES = (5, 6, 7, 8, 9)
_MEAN, _STD = 0.3055, 0.3761
_SPLIT_SEED = 0


def digit_images(digits: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Images of these digits, normalised, float32 of shape (n, 1, 8, 8), and their labels by position in `digits`."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    target = torch.from_numpy(bunch.target)
    chosen = torch.isin(target, torch.tensor(digits))
    images = (torch.from_numpy(bunch.images).float()[chosen, None] / 16 - _MEAN) / _STD
    labels = (target[chosen, None] == torch.tensor(digits)).long().argmax(dim=1)
    return images, labels


def digit_split(per_class: int = TRAIN_PER_CLASS) -> tuple[TensorDataset, TensorDataset]:
    """Digits 5 to 9 to train and to validate on, always the same: `per_class` images of each, and all others."""
    images, labels = digit_images(_CLASSES)
    generator = torch.Generator().manual_seed(_SPLIT_SEED)
    train, val = [], []
    for label in range(len(_CLASSES)):
        of_class = (labels == label).nonzero()[:, 0]
        of_class = of_class[torch.randperm(len(of_class), generator=generator)]
        train.append(of_class[:per_class])
        val.append(of_class[per_class:])
    train_indices, val_indices = torch.cat(train), torch.cat(val)
    return (
        TensorDataset(images[train_indices], labels[train_indices]),
        TensorDataset(images[val_indices], labels[val_indices]),
    )


class Digits(MapData[tuple[Tensor, ...]]):
    """Digits 5 to 9: 125 images to train on, 771 to validate on, of shape (1, 8, 8) or (1, image_size, image_size)."""

    def __init__(self, *, batch_size: int, seed: int, num_workers: int = 0, image_size: int | None = None) -> None:
        super().__init__(batch_size=batch_size, seed=seed, num_workers=num_workers)
        self._train, self._val = digit_split()
        self.train_size, self.val_size = len(self._train), len(self._val)
        self.class_names = tuple(str(digit) for digit in _CLASSES)
        self.num_classes = len(_CLASSES)
        self.image_size = image_size or 8
        counts = described(self.class_names, self.train_size, self.val_size)
        self.description = f"scikit-learn's handwritten digits 5 to 9: {counts}"
        if self.image_size != 8:
            self._train, self._val = self._resized(self._train), self._resized(self._val)

    def _resized(self, data: TensorDataset) -> TensorDataset:
        images, labels = data.tensors
        resized = torch.nn.functional.interpolate(images, size=self.image_size, mode="bilinear", align_corners=False)
        return TensorDataset(resized, labels)

    def train_dataset(self, epoch: Tensor) -> Dataset[tuple[Tensor, ...]]:
        """The images and labels to train on; they are not augmented."""
        return self._train

    def val_dataset(self) -> Dataset[tuple[Tensor, ...]]:
        """The images and labels to validate on."""
        return self._val
