"""A folder of images with a folder per class, as train/CLASS and val/CLASS or as CLASS alone."""

import os
from pathlib import Path

from flash_launch.data.images import ImageData, LabelledImages, split_by_class
from flash_launch.errors import DataError

__all__ = ["IMAGE_ENDINGS", "image_folder"]

IMAGE_ENDINGS = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""Files that end so, in lower or upper case, are images; others are passed over."""


def image_folder(
    folder: Path,
    *,
    batch_size: int,
    seed: int,
    val_fraction: float = 0.2,
    num_workers: int = 0,
    image_size: int | None = None,
) -> ImageData:
    """The images of a folder.

    Where it has both train/ and val/, these are the split; else each folder in it is a class, and `val_fraction` of
    each class is held back, chosen by the seed. Folders inside a class belong to it; hidden files and folders are
    passed over.

    Raises:
        DataError: no such folder, no classes, a class without images, a class in val/ that is not in train/, or
            a train/ without a val/.
    """
    if not folder.is_dir():
        why = f"{folder} is not a folder" if folder.exists() else f"the folder {folder} does not exist"
        raise DataError(f"{why}: give --data a folder of images with a folder per class, or a file that ends with .csv")
    top = _folders(folder)
    if "train" in top and "val" in top:
        names = _class_names(folder / "train")
        val_names = _class_names(folder / "val")
        unknown = sorted(set(val_names) - set(names))
        if unknown:
            raise DataError(
                f"{folder / 'val' / unknown[0]} is a class that {folder / 'train'} does not have; "
                f"it has {_listed(names)}"
            )
        train, val = _images(folder / "train", names, names), _images(folder / "val", val_names, names)
    else:
        if "train" in top and _folders(folder / "train"):
            raise DataError(
                f"{folder} has a folder train with folders in it, but no folder val: add {folder / 'val'}, "
                f"or give {folder / 'train'} to have a part of it held back"
            )
        names = _class_names(folder)
        train, val = split_by_class(_images(folder, names, names), val_fraction, seed)
    return ImageData(
        train,
        val,
        names,
        f"folder {folder}",
        batch_size=batch_size,
        seed=seed,
        num_workers=num_workers,
        image_size=image_size,
    )


def _folders(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def _class_names(folder: Path) -> list[str]:
    names = _folders(folder)
    if not names:
        raise DataError(f"{folder} has no classes: it needs a folder of images for each class")
    return names


def _images(folder: Path, present: list[str], names: list[str]) -> LabelledImages:
    """The images of the classes that are present, labelled by position in all names."""
    label_of = {name: label for label, name in enumerate(names)}
    paths: list[Path] = []
    labels: list[int] = []
    for name in present:
        of_class = _image_files(folder / name)
        if not of_class:
            raise DataError(
                f"the class {name!r} is empty: {folder / name} has no images "
                f"({', '.join(IMAGE_ENDINGS)}); add some, or remove it"
            )
        paths += of_class
        labels += [label_of[name]] * len(of_class)
    return LabelledImages(tuple(paths), tuple(labels))


def _image_files(folder: Path) -> list[Path]:
    found: list[Path] = []
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        endings = (name for name in sorted(files) if name.lower().endswith(IMAGE_ENDINGS) and name[0] != ".")
        found += [Path(parent, name) for name in endings]
    return found


def _listed(names: list[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
