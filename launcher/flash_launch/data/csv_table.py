"""Reads a CSV file strictly: a fault is told with its line, and nothing is left out or guessed in silence."""

import csv
import io
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from flash_launch.errors import DataError

__all__ = ["Table", "read_table"]

_SEPARATORS = {",": "a comma", ";": "a semicolon", "\t": "a tab"}


@dataclass(frozen=True)
class Table:
    """What a CSV file holds."""

    columns: tuple[str, ...]
    """The cells of its first line, without blanks around them."""

    rows: tuple[tuple[int, tuple[str, ...]], ...]
    """The other lines: the number of each, from 1, and as many cells as there are columns."""

    notes: tuple[str, ...] = ()
    """How it was read, where that is not as usual, a sentence each."""

    def column(self, name: str) -> list[str]:
        """The cells of a column, which must be there, without blanks around them."""
        place = self.columns.index(name)
        return [cells[place].strip() for _, cells in self.rows]


def read_table(file: Path, wanted: Collection[str], cure: str) -> Table:
    """Read a CSV file in UTF-8 with a line of columns.

    Args:
        file: the file.
        wanted: columns by which the separator is found, where it is not a comma; case does not matter.
        cure: what to do where there is no such file.

    Raises:
        DataError: the file does not exist, or is not CSV in UTF-8; a line with more or fewer cells than the first.
    """
    text = _text(file, cure)
    delimiter = _delimiter(text, {column.lower() for column in wanted})
    notes: tuple[str, ...] = (
        () if delimiter == "," else (f"{file} is read with {_SEPARATORS[delimiter]} between its cells",)
    )
    # strict, and no cell over several lines: else a quote that is not closed swallows the lines after it
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
    rows: list[tuple[int, tuple[str, ...]]] = []
    try:
        columns = tuple(column.strip() for column in next(reader, []))
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
            rows.append((reader.line_num, tuple(cells)))
    except csv.Error as error:
        raise DataError(f"{file}, line {reader.line_num} cannot be read as CSV: {error}") from error
    return Table(columns, tuple(rows), notes)


def _text(file: Path, cure: str) -> str:
    try:
        content = file.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"the file {file} does not exist: {cure}") from error
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


def _delimiter(text: str, wanted: Collection[str]) -> str:
    """What separates the cells: a comma, unless the first line has the columns with another separator alone."""
    header = text.partition("\n")[0]
    for delimiter in _SEPARATORS:
        if set(wanted) <= {column.strip().strip('"').lower() for column in header.split(delimiter)}:
            return delimiter
    return ","
