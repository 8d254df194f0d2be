"""A CSV file that lists images: the columns path, label and, if wanted, split (train or val)."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from flash_launch.data.csv_table import read_table
from flash_launch.data.images import ImageData, LabelledImages, split_by_class
from flash_launch.errors import DataError

__all__ = ["image_manifest"]

_COLUMNS = ("path", "label", "split")


@dataclass(frozen=True)
class _Row:
    """One line of the file."""

    line: int
    """Its number, from 1."""

    path: Path
    """The image."""

    label: str
    """The name of its class."""

    split: str
    """train, val, or nothing where the file has no such column."""


def image_manifest(
    file: Path,
    *,
    batch_size: int,
    seed: int,
    val_fraction: float = 0.2,
    num_workers: int = 0,
    image_size: int | None = None,
) -> ImageData:
    """The images that a CSV file lists; paths are relative to the file's folder.

    Without a column `split`, `val_fraction` of each class is held back, chosen by the seed.

    Raises:
        DataError: the file does not exist or is not CSV in UTF-8; columns are missing; a line with more or fewer cells
            than the first, an empty path or label, or another split; an image listed twice with different labels or
            splits; no images; a class in val that is not in train. Whether the images are there is seen by `check`.
    """
    rows, notes = _read(file)
    if not rows:
        raise DataError(f"{file} lists no images: after the line path,label it needs a line for each")
    seen: dict[Path, _Row] = {}
    for row in rows:
        first = seen.setdefault(row.path, row)
        if (first.label, first.split) != (row.label, row.split):
            raise DataError(
                f"{file} lists {row.path} twice, on line {first.line} as {first.label} {first.split}".rstrip()
                + f" and on line {row.line} as {row.label} {row.split}".rstrip()
            )
    unique = list(seen.values())
    if unique[0].split:
        names = _sorted({row.label for row in unique if row.split == "train"})
        unknown = next((row for row in unique if row.label not in names), None)
        if unknown is not None:
            raise DataError(f"{file}, line {unknown.line}: the class {unknown.label!r} is in val, but not in train")
        train = _labelled((row for row in unique if row.split == "train"), names)
        val = _labelled((row for row in unique if row.split == "val"), names)
    else:
        names = _sorted({row.label for row in unique})
        train, val = split_by_class(_labelled(unique, names), val_fraction, seed)
    data = ImageData(
        train,
        val,
        names,
        f"file {file}",
        batch_size=batch_size,
        seed=seed,
        num_workers=num_workers,
        image_size=image_size,
    )
    data.notes += notes
    return data


def _read(file: Path) -> tuple[list[_Row], tuple[str, ...]]:
    """The lines, and what a user should know about how they were read."""
    table = read_table(file, ("path", "label"), "give --data a CSV file with columns path,label")
    # columns of ours in any case; others as they are written
    columns = [column.lower() if column.lower() in _COLUMNS else column for column in table.columns]
    _check_columns(file, columns)
    notes = table.notes
    if unused := [column for column in columns if column and column not in _COLUMNS]:
        notes += (f"columns of {file} that are not used: {', '.join(unused)}",)
    return [
        _row(file, line, dict(zip(columns, cells, strict=True)), with_split="split" in columns)
        for line, cells in table.rows
    ], notes


def _check_columns(file: Path, columns: list[str]) -> None:
    missing = [column for column in ("path", "label") if column not in columns]
    if missing:
        raise DataError(
            f"{file} has no column {' and no column '.join(missing)}: its first line must be path,label or "
            f"path,label,split, and is {','.join(columns) or 'empty'}"
        )
    for column in _COLUMNS:
        if columns.count(column) > 1:
            raise DataError(f"{file} has {columns.count(column)} columns {column}: leave one of them")


def _row(file: Path, line: int, cells: Mapping[str, str], *, with_split: bool) -> _Row:
    path, label, split = (cells.get(column, "").strip() for column in _COLUMNS)
    for column, value in (("path", path), ("label", label)):
        if not value:
            raise DataError(f"{file}, line {line}: the {column} is empty")
    if with_split and split not in ("train", "val"):
        raise DataError(f"{file}, line {line}: the split is {split!r}, it must be train or val")
    return _Row(line, file.parent / path, label, split)


def _labelled(rows: Iterable[_Row], names: list[str]) -> LabelledImages:
    label_of = {name: label for label, name in enumerate(names)}
    pairs = [(row.path, label_of[row.label]) for row in rows]
    return LabelledImages(tuple(path for path, _ in pairs), tuple(label for _, label in pairs))


def _sorted(labels: set[str]) -> list[str]:
    """Labels that are all whole numbers by their value, others by their text."""
    if all(label.isdecimal() for label in labels):
        return sorted(labels, key=lambda label: (int(label), label))
    return sorted(labels)
