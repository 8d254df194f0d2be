"""Images in any of their usual forms as a data set: read, brought to a tensor, augmented by seed, epoch and index."""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass, replace
from pathlib import Path

import numpy
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from flash_launch.data.folder import IMAGE_ENDINGS
from flash_launch.data.images import IMAGENET_MEAN, IMAGENET_STD
from flash_launch.data.pixels import read_image, to_rgb
from flash_launch.data.sampling import derived_seed, drawn_from
from flash_launch.data.targets import Target
from flash_launch.errors import DataError
from flash_launch.setup_keys import nearest

__all__ = ["STAGES", "ImageSamples", "Split", "Transform", "check_paths", "image_transform", "to_image"]

STAGES = ("train", "val", "test", "predict")

Transform = Callable[[object], object]
"""From an image (PIL, RGB) to a tensor of the same shape for all."""


@dataclass(frozen=True)
class Split:
    """The images of a stage, and what is known of them."""

    images: Sequence[object]
    """Paths of files, PIL images, or tensors and arrays of shape (c, h, w)."""

    targets: Sequence[object] | None = None
    """As many; None: images to predict on."""

    literal: bool = False
    """Whether a comma in a target is a part of its label."""

    ready: bool = False
    """Whether images that are tensors are taken as they are, if no transform is given."""

    @classmethod
    def checked(cls, images: object, targets: object, name: str, targets_name: str) -> "Split":
        """What a user gave; files are looked for.

        Raises:
            DataError: no sequences, not as many of both, or files that are missing or no images by their ending.
        """
        if isinstance(images, str | Path) or not isinstance(images, Sequence | Tensor | numpy.ndarray):
            raise DataError(
                f"{name} is a {type(images).__name__}: give a list of images, or an array or tensor of them"
            )
        check_paths(images, name)
        if targets is None:
            return cls(images)  # type: ignore[arg-type]
        if isinstance(targets, str) or not isinstance(targets, Sequence | Tensor | numpy.ndarray):
            raise DataError(f"{targets_name} is a {type(targets).__name__}: give a list with a target for each image")
        if len(images) != len(targets):
            raise DataError(f"{name} has {len(images)} images and {targets_name} {len(targets)} targets: give as many")
        return cls(images, targets)  # type: ignore[arg-type]

    @classmethod
    def of_dataset(cls, dataset: Dataset[object], stage: str, *, ready: bool) -> "Split":
        """The samples of a data set.

        Raises:
            DataError: it has no length, or samples without targets where they are needed.
        """
        if not isinstance(dataset, Sized):
            raise DataError(
                f"{stage}_dataset is a {type(dataset).__name__} without a length: give one that has __len__"
            )
        images = DatasetImages(dataset)
        if stage == "predict":
            return cls(images, ready=ready)
        targets = getattr(dataset, "targets", None)
        if not isinstance(targets, Sequence | Tensor | numpy.ndarray) or len(targets) != len(images):
            targets = [parts(dataset[index])[1] for index in range(len(images))]
            if None in targets:
                raise DataError(
                    f"{stage}_dataset gives no target for sample {targets.index(None)}: give (image, target)"
                )
        return cls(images, targets, ready=ready)  # type: ignore[arg-type]

    def part(self, indices: Sequence[int]) -> "Split":
        """The samples at these places."""
        targets = None if self.targets is None else [self.targets[index] for index in indices]
        return replace(self, images=Chosen(self.images, tuple(indices)), targets=targets)


@dataclass(frozen=True)
class Chosen(Sequence[object]):
    """Some of a sequence's items, taken from it when they are asked for."""

    inner: Sequence[object]
    """The sequence."""
    indices: tuple[int, ...]
    """Places in it."""

    def __getitem__(self, index: int) -> object:  # type: ignore[override]  # no slices
        return self.inner[self.indices[index]]

    def __len__(self) -> int:
        return len(self.indices)


@dataclass(frozen=True)
class DatasetImages(Sequence[object]):
    """The images of a data set of (image, target), of dicts with `input`, or of images alone."""

    dataset: Dataset[object]
    """The data set."""

    def __getitem__(self, index: int) -> object:  # type: ignore[override]  # no slices
        return parts(self.dataset[index])[0]

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]


def parts(sample: object) -> tuple[object, object]:
    """Image and target of a data set's sample; the target is None where there is none."""
    if isinstance(sample, Mapping):
        return sample["input"], sample.get("target")
    if isinstance(sample, tuple | list):
        return sample[0], sample[1] if len(sample) > 1 else None
    return sample, None


@dataclass
class ImageSamples(Dataset[object]):
    """Images and targets; (image, target) by index, or the image alone where there are no targets."""

    images: Sequence[object]
    """See Split."""

    transform: Transform
    """From an image to a tensor."""

    targets: Sequence[Target] | None = None
    """As many; None: images to predict on."""

    seed: int = 0
    """Of the random numbers that the transform draws on the CPU."""

    epoch: Tensor | None = None
    """A shared tensor with the number of the epoch to augment by; None: the same in every epoch."""

    stage: str = "train"
    """train, val, test or predict, for messages."""

    ready: bool = False
    """Whether images that are tensors are taken as they are."""

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> object:
        where, epoch = f"{self.stage} image {index}", 0 if self.epoch is None else int(self.epoch)
        with drawn_from(derived_seed("augmentation", self.seed, epoch, index)):
            image = self.images[index]
            if not (self.ready and isinstance(image, Tensor)):
                image = self.transform(to_image(image, where))
        if not isinstance(image, Tensor):
            raise DataError(
                f"the transform made a {type(image).__name__} of {where}, not a tensor: end it with one that does, "
                "such as torchvision.transforms.ToTensor()"
            )
        return image if self.targets is None else (image, self.targets[index])


def to_image(given: object, where: str) -> Image.Image:
    """An image as PIL's, RGB of 8 bits: a file is read; a tensor or array is (c, h, w), bytes or floats from 0 to 1.

    Raises:
        DataError: a file that cannot be read, another type or shape, or floats outside 0 to 1.
    """
    if isinstance(given, str | Path):
        return _read_array(Path(given)) if str(given).lower().endswith(".npy") else read_image(Path(given).expanduser())
    if isinstance(given, Image.Image):
        return to_rgb(given, where)
    if not isinstance(given, Tensor | numpy.ndarray):
        raise DataError(
            f"{where} is a {type(given).__name__}: give the path of a file, a PIL image, a tensor or an array"
        )
    pixels = torch.as_tensor(given)
    shape = tuple(pixels.shape)
    if pixels.dim() == 2:
        pixels = pixels[None]
    if pixels.dim() != 3 or pixels.shape[0] not in (1, 3):
        hint = (
            ": its channels come last, bring them to the front with .transpose(2, 0, 1)"
            if shape[2:] in ((1,), (3,))
            else ""
        )
        raise DataError(f"{where} has the shape {shape}, not (1 or 3 channels, height, width){hint}")
    if pixels.dtype != torch.uint8:
        if not pixels.is_floating_point():
            raise DataError(f"{where} is of {pixels.dtype}: give bytes (uint8), or floats from 0 to 1")
        if not bool(((pixels >= 0) & (pixels <= 1)).all()):
            raise DataError(
                f"{where} holds floats from {pixels.min():.3g} to {pixels.max():.3g}: give floats from 0 to 1, or "
                "bytes (uint8) from 0 to 255"
            )
        pixels = (pixels * 255).round().to(torch.uint8)
    return Image.fromarray(pixels.expand(3, -1, -1).permute(1, 2, 0).numpy())


def check_paths(images: Iterable[object], name: str) -> None:
    """Look whether the files among these images are there and are images by their ending.

    Raises:
        DataError: the first that is not; Flash leaves it out with a warning.
    """
    endings = (*IMAGE_ENDINGS, ".npy")
    for path in (Path(image).expanduser() for image in images if isinstance(image, str | Path)):
        if not path.is_file():
            raise DataError(f"{name} has {path}, which {'is not a file' if path.exists() else 'does not exist'}")
        if not path.name.lower().endswith(endings):
            raise DataError(f"{name} has {path}, which is no image by its ending: images end with {', '.join(endings)}")


def _read_array(path: Path) -> Image.Image:
    try:
        array = numpy.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"image {path} cannot be read: {error}") from error
    return to_image(array, f"image {path}")


def image_transform(transform: object, options: Mapping[str, object] | None, stage: str) -> Transform:
    """The transform of a stage.

    Args:
        transform: a function from an RGB image of PIL's to a tensor, for all stages; a class of such, built with
            `options`; or a dict of functions by stage. None, or a stage that is not in the dict: `default_transform`.
        options: of `default_transform` (image_size, mean, std), or for the class.
        stage: train, val, test or predict.

    Raises:
        DataError: something else, or options that are unknown, or for a function that takes none.
    """
    given = dict(options or {})
    if isinstance(transform, Mapping):
        if unknown := [key for key in transform if key not in STAGES]:
            raise DataError(f"transform has a key {unknown[0]!r}: its keys are stages, {', '.join(STAGES)}")
        transform = transform.get(stage)
    if transform is None:
        return default_transform(stage, given)
    if inspect.isclass(transform):
        try:
            transform, given = transform(**given), {}
        except TypeError as error:
            raise DataError(
                f"transform {transform!r} cannot be built with transform_kwargs={given}: {error}"
            ) from error
    if given:
        raise DataError(
            f"transform_kwargs={given} is for the default transform, or a class: {transform!r} is a function already"
        )
    if not callable(transform):
        raise DataError(f"transform is {transform!r}: give a function from an image to a tensor, or a dict by stage")
    return transform


def default_transform(stage: str, options: Mapping[str, object]) -> Transform:
    """Flash's: resized to 196 x 196 pixels, mirrored at random in training, normalised by ImageNet's statistics.

    Raises:
        DataError: an unknown option, or an image size that is none.
    """
    known = {"image_size": (196, 196), "mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    for name in options:
        if name not in known:
            raise DataError(f"transform_kwargs has {name!r}{nearest(name, known)}: it takes {', '.join(known)}")
    chosen: dict[str, object] = known | dict(options)
    size = chosen["image_size"]
    pair = [size, size] if isinstance(size, int) else list(size) if isinstance(size, list | tuple) else []
    if len(pair) != 2 or not all(type(side) is int and side > 0 for side in pair):
        raise DataError(f"image_size is {size!r}: give pixels, as in 128 or (128, 128)")
    mirrored = [v2.RandomHorizontalFlip()] if stage == "train" else []
    steps = [v2.Resize(pair, antialias=True), *mirrored, v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    composed: Transform = v2.Compose([*steps, v2.Normalize(chosen["mean"], chosen["std"])])
    return composed
