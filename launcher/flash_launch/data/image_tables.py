"""Images and targets listed in a table: a CSV file, or a data frame of any library."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol, cast

from flash_launch.data.csv_table import read_table
from flash_launch.data.folder import IMAGE_ENDINGS
from flash_launch.data.image_samples import Split, check_paths
from flash_launch.errors import DataError
from flash_launch.setup_keys import nearest

__all__ = ["Frame", "Resolver", "split_of_csv", "split_of_frame"]

Resolver = Callable[[Path, object], str | Path]
"""From the folder of the images and what stands in the table to the file of an image."""


_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]*)?")


class Frame(Protocol):
    """A table of columns by name: a DataFrame of pandas or polars, or a dict of lists."""

    def __getitem__(self, key: str, /) -> Iterable[object]: ...


def split_of_csv(
    file: Path,
    input_field: str,
    target_fields: str | Sequence[str] | None,
    root: str | Path | None,
    resolver: Resolver | None,
    stage: str,
) -> tuple[Split, tuple[str, ...]]:
    """What a CSV file lists, and how it was read, a sentence each; see `split_of_frame`.

    Columns of targets that hold numbers alone are read as numbers.

    Raises:
        DataError: a file that cannot be read; see read_table and split_of_frame.
    """
    targets = _columns(target_fields, stage)
    table = read_table(file, (input_field, *targets), f"{stage}_file must name a CSV file")
    columns: dict[str, list[object]] = {}
    for name in dict.fromkeys(table.columns):
        cells = table.column(name)
        numbers = name in targets and all(map(_NUMBER.fullmatch, cells))
        columns[name] = [float(cell) for cell in cells] if numbers else list(cells)
    for name in (input_field, *targets):
        if table.columns.count(name) > 1:
            raise DataError(f"{file} has {table.columns.count(name)} columns {name}: leave one of them")
    folder = file.parent if root is None else root
    return split_of_frame(columns, input_field, target_fields, folder, resolver, stage, str(file)), table.notes


def split_of_frame(
    frame: Frame,
    input_field: str,
    target_fields: str | Sequence[str] | None,
    root: str | Path | None,
    resolver: Resolver | None,
    stage: str,
    name: str | None = None,
) -> Split:
    """What a table lists.

    Args:
        frame: the table.
        input_field: the column of images: paths, relative to `root`, or names of files without their ending.
        target_fields: the column of targets; several columns of 0 and 1, one for each class; not used to predict.
        root: the folder of the images; None: the current one.
        resolver: from `root` and what stands in the column to a file; None: as above.
        stage: train, val, test or predict.
        name: of the table, for messages.

    Raises:
        DataError: a column that is missing; an image that is missing, or fits several files; no targets.
    """
    name = name or f"{stage}_data_frame"
    folder = Path(root or ".").expanduser()
    ids = _column(frame, input_field, name)
    fields = _columns(target_fields, stage)
    columns = [_column(frame, field, name) for field in fields]
    if resolver is None:
        listed: dict[Path, dict[str, list[Path]]] = {}
        paths: list[Path] = [_resolved(folder, str(one).strip(), name, listed) for one in ids]
    else:
        paths = [Path(resolver(folder, one)) for one in ids]
    check_paths(paths, name)
    if stage == "predict":
        return Split(paths)
    if not fields:
        raise DataError(f"{name} needs target_fields: the column of the targets, or a list of columns, one per class")
    if isinstance(target_fields, str):
        return Split(paths, columns[0])
    return Split(paths, [list(row) for row in zip(*columns, strict=True)])


def _columns(target_fields: object, stage: str) -> tuple[str, ...]:
    if stage == "predict" or target_fields is None:
        return ()
    if isinstance(target_fields, str):
        return (target_fields,)
    if not isinstance(target_fields, Sequence) or not all(isinstance(field, str) for field in target_fields):
        raise DataError(f"target_fields is {target_fields!r}: give the name of a column, or a list of names")
    return tuple(target_fields)


def _column(frame: Frame, field: str, name: str) -> list[object]:
    columns = getattr(frame, "columns", None)
    names = list(map(str, _keys(frame) if columns is None else columns))
    if field not in names:
        raise DataError(f"{name} has no column {field!r}{nearest(field, names)}. It has {', '.join(names) or 'none'}")
    return [getattr(value, "item", lambda value=value: value)() for value in frame[field]]


def _keys(frame: object) -> Iterable[object]:
    return cast("Mapping[str, object]", frame).keys() if isinstance(frame, Mapping) else ()


def _resolved(folder: Path, given: str, name: str, listed: dict[Path, dict[str, list[Path]]]) -> Path:
    """The file that is called so, with its ending or without; `listed` keeps the folders that were looked into."""
    path = folder / Path(given).expanduser()
    if path.is_file() or not path.parent.is_dir():
        return path
    if path.parent not in listed:
        of_stem = listed[path.parent] = {}
        for other in sorted(path.parent.iterdir()):
            if other.name.lower().endswith((*IMAGE_ENDINGS, ".npy")):
                of_stem.setdefault(other.stem, []).append(other)
    found = listed[path.parent].get(path.name, [])
    if len(found) > 1:
        raise DataError(
            f"{name} has {given!r}, which may be {' or '.join(str(other) for other in found[:3])}: write the ending"
        )
    return found[0] if found else path
