"""A CSV file that lists images: the columns path, label and, if wanted, split (train or val)."""

import csv
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from flash_launch.data.images import ImageData, LabelledImages, split_by_class
from flash_launch.errors import DataError

__all__ = ["image_manifest"]

_COLUMNS = ("path", "label", "split")
_SEPARATORS = {",": "a comma", ";": "a semicolon", "\t": "a tab"}


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
    text = _text(file)
    delimiter = _delimiter(text)
    notes: tuple[str, ...] = (
        () if delimiter == "," else (f"{file} is read with {_SEPARATORS[delimiter]} between its cells",)
    )
    # strict, and no cell over several lines: else a quote that is not closed swallows the lines after it
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
    rows: list[_Row] = []
    try:
        header = [column.strip() for column in next(reader, [])]
        columns = [column.lower() if column.lower() in _COLUMNS else column for column in header]
        _check_columns(file, columns)
        if unused := [column for column in columns if column and column not in _COLUMNS]:
            notes += (f"columns of {file} that are not used: {', '.join(unused)}",)
        for cells in reader:
            if not cells:
                continue
            where = f"{file}, line {reader.line_num}"
            if any("\n" in cell or "\r" in cell for cell in cells):
                raise DataError(f"{where}: a cell goes over several lines: is a quote opened before it and not closed?")
            if len(cells) != len(columns):
                raise DataError(
                    f"{where} has {len(cells)} cells and the header has {len(columns)} ({','.join(columns)}): "
                    f'put a cell that holds {_SEPARATORS[delimiter]} in double quotes, as in "one{delimiter} two"; '
                    f"the line is {delimiter.join(cells)!r}"
                )
            of_column = dict(zip(columns, cells, strict=True))
            rows.append(_row(file, reader.line_num, of_column, with_split="split" in columns))
    except csv.Error as error:
        raise DataError(f"{file}, line {reader.line_num} cannot be read as CSV: {error}") from error
    return rows, notes


def _text(file: Path) -> str:
    try:
        content = file.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"the file {file} does not exist: give --data a CSV file with columns path,label") from error
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error}") from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line, byte = content.count(b"\n", 0, error.start) + 1, content[error.start]
        raise DataError(
            f"{file} cannot be read as CSV in UTF-8: line {line} has the byte 0x{byte:02x}; save it as UTF-8, for "
            "example with iconv -f FROM -t UTF-8, where FROM may be LATIN1 or UTF-16"
        ) from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise DataError(f"{file}, line {line} has a NUL byte: it is damaged, or not text; save it anew as CSV in UTF-8")
    return text


def _delimiter(text: str) -> str:
    """What separates the cells: a comma, unless the first line has the columns with another separator alone."""
    header = text.partition("\n")[0]
    for delimiter in _SEPARATORS:
        columns = {column.strip().strip('"').lower() for column in header.split(delimiter)}
        if {"path", "label"} <= columns:
            return delimiter
    return ","


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
