"""Values of JSON objects by their type: what is missing, or is of another type, is None or empty."""

from collections.abc import Mapping
from pathlib import Path

from flash_launch.run_folder import read_json

__all__ = ["flag", "integer", "items", "mapping", "number", "numbers", "read_mapping", "text"]


def text(row: Mapping[str, object], key: str) -> str | None:
    """A text."""
    value = row.get(key)
    return value if isinstance(value, str) else None


def integer(row: Mapping[str, object], key: str) -> int | None:
    """A whole number."""
    value = row.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def number(row: Mapping[str, object], key: str) -> float | None:
    """A number, which may be NaN or infinite."""
    value = row.get(key)
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def flag(row: Mapping[str, object], key: str, default: bool) -> bool:
    """True or false."""
    value = row.get(key)
    return value if isinstance(value, bool) else default


def numbers(row: Mapping[str, object], key: str) -> tuple[float, ...]:
    """A list of numbers, or a single one."""
    value = row.get(key)
    return tuple(float(one) for one in value if isinstance(one, (int, float))) if isinstance(value, list) else ()


def mapping(row: Mapping[str, object], key: str) -> Mapping[str, object]:
    """An object."""
    value = row.get(key)
    return value if isinstance(value, dict) else {}


def items(row: Mapping[str, object], key: str) -> tuple[Mapping[str, object], ...]:
    """A list of objects."""
    value = row.get(key)
    return tuple(one for one in value if isinstance(one, dict)) if isinstance(value, list) else ()


def read_mapping(path: Path) -> Mapping[str, object]:
    """The object in a file; empty if there is none that can be read, which may be just being written."""
    try:
        value = read_json(path)
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
