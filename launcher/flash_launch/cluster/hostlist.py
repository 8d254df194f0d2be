"""Slurm's short form of a list of hosts, `gpu[01-03,7],login`, written out."""

import itertools
import re

__all__ = ["expand", "expand_numbers"]


def expand(text: str) -> list[str]:
    """The hosts that a list in Slurm's short form names, in its order.

    Raises:
        ValueError: brackets that do not fit.
    """
    return [name for part in _split(text) for name in _expand_one(part)]


def _split(text: str) -> list[str]:
    """The parts between commas that stand outside of brackets."""
    parts: list[str] = [""]
    depth = 0
    for letter in text:
        depth += (letter == "[") - (letter == "]")
        if depth not in (0, 1):
            raise ValueError(f"brackets do not fit in the list of hosts {text!r}")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    if depth != 0:
        raise ValueError(f"brackets do not fit in the list of hosts {text!r}")
    return [part for part in parts if part]


def _expand_one(part: str) -> list[str]:
    pieces = re.split(r"\[([^\]]*)\]", part)  # text, ranges, text, ranges, ..., text
    choices = [expand_numbers(piece) if index % 2 else [piece] for index, piece in enumerate(pieces)]
    return ["".join(chosen) for chosen in itertools.product(*choices)]


def expand_numbers(ranges: str) -> list[str]:
    """The numbers in ranges such as 01-03,7, with their zeros in front; what is no number stays as it is."""
    found: list[str] = []
    for range_ in ranges.split(","):
        first, _, last = range_.partition("-")
        if not last:
            found.append(first)
        else:
            found += [f"{number:0{len(first)}}" for number in range(int(first), int(last) + 1)]
    return found
