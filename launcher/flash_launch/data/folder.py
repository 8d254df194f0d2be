"""A folder of images with a folder per class, as train/CLASS and val/CLASS or as CLASS alone."""

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from flash_launch.data.folder_splits import LEFT_BY_TOOLS, Splits, called_as_splits, kind_of_split, splits_in
from flash_launch.data.images import ImageData, LabelledImages, split_by_class
from flash_launch.errors import DataError

__all__ = ["IMAGE_ENDINGS", "ClassImages", "class_images", "flat_images", "image_folder"]

IMAGE_ENDINGS = (
    *(".avif", ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"),
)
"""Files that end so, in lower or upper case, are images; others are passed over, and counted."""

# Folders that do not set classes apart: each class may have one of the same name.
_INNER = {"images", "image", "imgs", "img", "jpegimages", "jpeg", "jpg", "photos", "pictures", "data"}


@dataclass
class _Found:
    """What was seen while a folder was listed."""

    notes: list[str] = field(default_factory=list)
    """Sentences that the user should know."""

    others: Counter[str] = field(default_factory=Counter)
    """Files that are not images, by their ending."""

    inner: dict[str, list[str]] = field(default_factory=dict)
    """Folders inside a class that may be classes themselves, by the name of the class."""

    @property
    def all_notes(self) -> list[str]:
        """The sentences of `notes`, and those about other files and folders."""
        notes = list(self.notes)
        if self.others:
            endings = ", ".join(
                f"{count:,} {ending or 'without ending'}" for ending, count in self.others.most_common(5)
            )
            notes.append(f"files that are not images by their ending are passed over: {endings}")
        if self.inner:
            inner = [f"{name} ({_listed(names)})" for name, names in self.inner.items()]
            notes.append(f"folders inside a class belong to it: {_listed(inner)}")
        return notes


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

    Where it has folders for a training and a validation split, in any of their usual names, these are the split; else
    each folder in it is a class, and `val_fraction` of each class is held back, chosen by the seed. A single folder
    that holds all others is descended into. Folders inside a class belong to it; hidden files and folders, and those
    that tools leave behind, are passed over.

    Raises:
        DataError: no such folder, no classes, a class without images, a class to validate on that is not trained on,
            a split for training alone, two folders for one split, or folders that may be splits or classes.
    """
    if not folder.is_dir():
        why = f"{folder} is not a folder" if folder.exists() else f"the folder {folder} does not exist"
        raise DataError(f"{why}: give --data a folder of images with a folder per class, or a file that ends with .csv")
    found = _Found()
    folder = _descended(folder, found)
    top = _folders(folder)
    splits = splits_in(folder, {name: bool(_folders(folder / name)) for name in top})
    if splits is not None:
        names, train, val = _split_images(splits, found)
    else:
        _check_no_splits(folder, top)
        names = _class_names(folder, found)
        train, val = split_by_class(_images(folder, names, names, found), val_fraction, seed)
    data = ImageData(
        train,
        val,
        names,
        f"folder {folder}",
        batch_size=batch_size,
        seed=seed,
        num_workers=num_workers,
        image_size=image_size,
    )
    data.notes += found.all_notes
    return data


@dataclass(frozen=True)
class ClassImages:
    """The images of one folder that has a folder per class."""

    names: tuple[str, ...]
    """Of the classes."""

    paths: tuple[Path, ...]
    """The images."""

    labels: tuple[int, ...]
    """As many: the position of each one's class in the names."""

    notes: tuple[str, ...]
    """What was passed over, a sentence each."""


def class_images(folder: Path, argument: str) -> ClassImages:
    """The images of a folder with a folder per class; nothing in it is taken for a split.

    Raises:
        DataError: no such folder, no classes, or a class without images. `argument` gave the folder.
    """
    _check_folder(folder, argument)
    found = _Found()
    names = _class_names(folder, found)
    images = _images(folder, names, names, found)
    return ClassImages(tuple(names), images.paths, images.labels, tuple(found.all_notes))


def flat_images(folder: Path, argument: str) -> tuple[tuple[Path, ...], tuple[str, ...]]:
    """All images in a folder and below it, and what was passed over, a sentence each.

    Raises:
        DataError: no such folder, or no images in it. `argument` gave the folder.
    """
    _check_folder(folder, argument)
    found = _Found()
    paths = _image_files(folder, found)
    found.inner.clear()  # no classes here
    if not paths:
        raise DataError(f"{argument}={folder} has no images ({', '.join(IMAGE_ENDINGS)})")
    return tuple(paths), tuple(found.all_notes)


def _check_folder(folder: Path, argument: str) -> None:
    if not folder.is_dir():
        raise DataError(f"{argument}={folder} {'is not a folder' if folder.exists() else 'does not exist'}")


def _split_images(splits: Splits, found: _Found) -> tuple[list[str], LabelledImages, LabelledImages]:
    train, val = (_descended(split, found, inside_split=True) for split in (splits.train, splits.val))
    found.notes += splits.notes
    names, val_names = _class_names(train, found), _class_names(val, found)
    unknown = sorted(set(val_names) - set(names))
    if unknown:
        raise DataError(f"{val / unknown[0]} is a class that {train} does not have; it has {_listed(names)}")
    return names, _images(train, names, names, found), _images(val, val_names, names, found)


def _descended(folder: Path, found: _Found, *, inside_split: bool = False) -> Path:
    """The folder, or what holds its folders where it has a single one with folders inside, as unpacked archives do."""
    outer = folder
    while len(top := _folders(folder)) == 1 and _folders(folder / top[0]) and not _has_images(folder):
        if kind_of_split(top[0]) is not None and not inside_split:
            break
        folder = folder / top[0]
    if folder != outer:
        found.notes.append(f"{outer} holds a single folder: its classes are taken from {folder}")
    return folder


def _check_no_splits(folder: Path, top: list[str]) -> None:
    """Ask about folders that may be splits, or classes: most folders inside have the same names, or are splits."""
    inside = {name: [inner for inner in _folders(folder / name) if inner.lower() not in _INNER] for name in top}
    if len(top) > 1 and all(inside.values()) and not any(_has_images(folder / name) for name in top):
        most = max(inside.values(), key=len)
        names = Counter(inner for of_one in inside.values() for inner in {inner.lower() for inner in of_one})
        common = sum(1 for count in names.values() if count > 1)
        if 2 * common >= len(names) or len(names) == len({inner.lower() for inner in most}):
            raise _splits_or_classes(
                folder,
                top,
                f"have {'the same' if common == len(names) else 'much the same'} folders inside "
                f"({_listed(sorted(most, key=str.lower))})",
            )
    for name, inner in inside.items():
        kinds = {kind_of_split(each) for each in inner} - {None}
        if len(kinds) > 1:
            raise DataError(
                f"{folder / name} has splits inside ({_listed(inner)}), and {folder} has other folders beside it "
                f"({_listed([other for other in top if other != name])}): give {folder / name} to train on that"
            )
    if alike := called_as_splits(top):
        raise _splits_or_classes(folder, alike, "are called as splits are")


def _splits_or_classes(folder: Path, names: list[str], why: str) -> DataError:
    return DataError(
        f"{_listed(names)} in {folder} {why}: are they splits, or classes? If splits, call the one to train on train "
        "and the one to validate on val; if classes, move the images up into them, or list them in a CSV file with "
        "the columns path,label"
    )


def _has_images(folder: Path) -> bool:
    with os.scandir(folder) as entries:
        return any(_is_image(entry.name) for entry in entries)


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_ENDINGS) and not name.startswith(".")


def _is_content(name: str) -> bool:
    return not name.startswith(".") and name.lower() not in LEFT_BY_TOOLS


def _folders(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and _is_content(entry.name))


def _class_names(folder: Path, found: _Found) -> list[str]:
    names = _folders(folder)
    if not names:
        raise DataError(f"{folder} has no classes: it needs a folder of images for each class")
    with os.scandir(folder) as entries:
        beside = sum(1 for entry in entries if _is_image(entry.name) and entry.is_file())
    if beside:
        found.notes.append(f"images of no class, beside the folders in {folder}, are passed over: {beside:,}")
    return names


def _images(folder: Path, present: list[str], names: list[str], found: _Found) -> LabelledImages:
    """The images of the classes that are present, labelled by position in all names."""
    label_of = {name: label for label, name in enumerate(names)}
    paths: list[Path] = []
    labels: list[int] = []
    for name in present:
        of_class = _image_files(folder / name, found)
        if not of_class:
            raise DataError(
                f"the class {name!r} is empty: {folder / name} has no images "
                f"({', '.join(IMAGE_ENDINGS)}); add some, or remove it"
            )
        paths += of_class
        labels += [label_of[name]] * len(of_class)
    return LabelledImages(tuple(paths), tuple(labels))


def _image_files(folder: Path, found: _Found) -> list[Path]:
    images: list[Path] = []
    seen: set[str] = set()
    above = [str(path) for path in folder.resolve().parents]
    for parent, folders, files in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(parent)) in seen or real in above:  # a link to what holds it: a loop
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if _is_content(name))
        inner = [name for name in folders if name.lower() not in _INNER]
        if parent == str(folder) and inner:
            found.inner[folder.name] = inner
        images += [Path(parent, name) for name in sorted(files) if _is_image(name)]
        found.others.update(Path(name).suffix for name in files if _is_content(name) and not _is_image(name))
    return images


def _listed(names: list[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
