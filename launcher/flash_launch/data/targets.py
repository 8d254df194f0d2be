"""Targets of image classification in any of their usual forms: found out from those to train on, then checked."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy
import torch
from torch import Tensor

from flash_launch.errors import DataError
from flash_launch.setup_keys import nearest

__all__ = ["Target", "TargetFormat", "find_format", "sorted_labels"]

Target = int | Tensor
"""The number of a class, or, with several labels per sample, float32 of shape (classes,), each from 0 to 1."""

_Form = Literal["number", "label", "labels", "numbers", "one_hot", "shares"]
_WORDS: dict[_Form, str] = {
    "number": "the number of a class",
    "label": "a label",
    "labels": "several labels",
    "numbers": "a list of numbers",
    "one_hot": "a list with a single 1 at the place of the class",
    "shares": "a list with a number from 0 to 1 for each class",
}


@dataclass(frozen=True)
class TargetFormat:
    """How the targets of a data set are written, and what classes there are."""

    form: _Form
    """How each of them is written."""

    num_classes: int
    """Number of classes."""

    labels: tuple[str, ...] | None
    """Names of the classes by number; None: targets are numbers."""

    literal: bool = False
    """Whether a comma in a string is a part of its label."""

    @property
    def multi_label(self) -> bool:
        """Whether a sample may have any number of labels."""
        return self.form in ("labels", "numbers", "shares")

    def named(self, labels: Sequence[str]) -> "TargetFormat":
        """With these names of the classes, by number.

        Raises:
            DataError: names that are none, or the same twice; not one for each class of these targets.
        """
        given: object = labels
        if isinstance(given, str) or not all(isinstance(label, str) for label in labels):
            raise DataError(f"labels is {labels!r}: give a list with the name of each class")
        if len(set(labels)) != len(labels):
            raise DataError(f"labels has the same name twice: {', '.join(labels)}")
        by_name = self.form in ("label", "labels")
        lacking = sorted(set(self.labels or ()) - set(labels)) if by_name else []
        fits = len(labels) == self.num_classes or (
            self.form in ("number", "numbers") and len(labels) > self.num_classes
        )
        if lacking or not (by_name or fits):
            has = f"the class {lacking[0]!r}" if lacking else f"{self.num_classes} classes"
            raise DataError(f"labels has {', '.join(labels)}, and the targets have {has}: name all of them")
        return replace(self, labels=tuple(labels), num_classes=len(labels))

    def __call__(self, target: object, where: str) -> Target:
        """A target in the form that the loss takes.

        Args:
            target: as it was given.
            where: says which target this is, for messages.

        Raises:
            DataError: it is of another form than those to train on, or of a class that they do not have.
        """
        values = _values(target, where, self.literal)
        listed = not isinstance(target, str) and _is_list(target)
        strings = all(isinstance(value, str) for value in values) and bool(values)
        if self.labels is not None and strings and (self.multi_label or (len(values) == 1 and not listed)):
            classes = [self._position(str(value), where) for value in values]
            return self._shares(classes) if self.multi_label else classes[0]
        if self.form in ("one_hot", "shares") and listed and not strings:
            return self._of_places(target, values, where)
        if self.form in ("number", "numbers") and not strings and (self.multi_label or len(values) == 1):
            classes = [self._class(value, where) for value in values]
            return self._shares(classes) if self.multi_label else classes[0]
        raise DataError(f"{where} is {target!r}, but the targets to train on are each {_WORDS[self.form]}")

    def _of_places(self, target: object, values: Sequence[object], where: str) -> Target:
        numbers = [float(value) for value in values if isinstance(value, int | float)]
        if len(numbers) != self.num_classes:
            raise DataError(f"{where} has {len(numbers)} places, and there are {self.num_classes} classes: {target!r}")
        if self.form == "shares" and all(0 <= number <= 1 for number in numbers):
            return torch.tensor(numbers)
        if self.form == "one_hot" and _is_one_hot(numbers):
            return numbers.index(1)
        raise DataError(f"{where} is {target!r}, but the targets to train on are each {_WORDS[self.form]}")

    def _shares(self, classes: Sequence[int]) -> Tensor:
        shares = torch.zeros(self.num_classes)
        shares[list(classes)] = 1.0
        return shares

    def _position(self, label: str, where: str) -> int:
        assert self.labels is not None
        if label not in self.labels:
            raise DataError(
                f"{where} is of the class {label!r}, which the training data do not have"
                f"{nearest(label, self.labels)}. They have {', '.join(self.labels[:10])}"
                f"{', ...' * (len(self.labels) > 10)}"
            )
        return self.labels.index(label)

    def _class(self, value: object, where: str) -> int:
        if not isinstance(value, int) or not 0 <= value < self.num_classes:
            raise DataError(
                f"{where} is {value!r}, which is no class of the training data: they have 0 to {self.num_classes - 1}"
            )
        return value


def find_format(targets: Sequence[object], stage: str = "train", *, literal: bool = False) -> TargetFormat:
    """How these targets are written.

    A whole number is a class, from 0. A string is a label, or several with commas between them; a blank is a part of
    its name. A list has any number of labels or classes; where all lists are as long and hold 0 and 1 (or shares
    between), they have a place for each class, and where each holds a single 1, one label per sample.

    Raises:
        DataError: no targets, one that is of none of these forms, or several forms among them.
    """
    if not len(targets):
        raise DataError(f"there are no {stage} targets")
    values = [_values(target, f"{stage} target {index}", literal) for index, target in enumerate(targets)]
    listed = [not isinstance(target, str) and _is_list(target) for target in targets]
    strings = [bool(of_one) and all(isinstance(value, str) for value in of_one) for of_one in values]
    if all(strings):
        several = any(listed) or any(len(of_one) != 1 for of_one in values)
        labels = sorted_labels(str(label) for of_one in values for label in of_one)
        return TargetFormat("labels" if several else "label", len(labels), labels, literal)
    if any(strings) or len(set(listed)) > 1:
        first = next(i for i in range(len(targets)) if (strings[i], listed[i]) != (strings[0], listed[0]))
        raise DataError(
            f"the {stage} targets are written in several ways: target 0 is {targets[0]!r}, target {first} is "
            f"{targets[first]!r}. Write all of them in one"
        )
    numbers = [[value for value in of_one if isinstance(value, int | float)] for of_one in values]
    length = len(numbers[0])
    if listed[0] and length > 1 and all(len(n) == length and all(0 <= v <= 1 for v in n) for n in numbers):
        return TargetFormat("one_hot" if all(map(_is_one_hot, numbers)) else "shares", length, None)
    for index, of_one in enumerate(numbers):
        if wrong := [value for value in of_one if not isinstance(value, int) or value < 0]:
            raise DataError(f"{stage} target {index} holds {wrong[0]!r}: a class is a whole number from 0 on")
    classes = max((int(value) for of_one in numbers for value in of_one), default=-1) + 1
    if classes == 0:
        raise DataError(f"the {stage} targets are empty lists: none of them names a class")
    return TargetFormat("number" if all(len(of_one) == 1 for of_one in numbers) else "numbers", classes, None)


def sorted_labels(labels: Iterable[str]) -> tuple[str, ...]:
    """Each label once, sorted by its text and, where there are numbers in it, by their values: "9" before "10"."""

    def key(label: str) -> tuple[list[tuple[int, int | str]], str]:
        parts = re.split(r"([0-9]+)", label)
        return [(0, int(part)) if part.isdecimal() else (1, part.lower()) for part in parts if part], label

    return tuple(sorted(set(labels), key=key))


def _is_list(target: object) -> bool:
    return isinstance(target, list | tuple) or (isinstance(target, Tensor | numpy.ndarray) and target.ndim == 1)


def _is_one_hot(numbers: Sequence[float]) -> bool:
    return sorted(numbers) == [0] * (len(numbers) - 1) + [1]


def _values(target: object, where: str, literal: bool = False) -> tuple[str | int | float, ...]:
    """What a target holds, in Python's types.

    Raises:
        DataError: a target that is neither a string, a number, nor a list of them; an empty label.
    """
    if isinstance(target, str):
        parts = [target] if literal else target.split(",")
        labels = tuple(part.strip() for part in parts if part.strip())
        if not labels:
            raise DataError(f"{where} is empty: give it a label")
        return labels
    if _is_list(target):
        assert isinstance(target, list | tuple | Tensor | numpy.ndarray)
        return tuple(_value(value, target, where) for value in target)
    return (_value(target, target, where),)


def _value(value: object, target: object, where: str) -> str | int | float:
    if isinstance(value, Tensor | numpy.ndarray | numpy.generic) and value.ndim == 0:
        value = value.item()
    if isinstance(value, str) and value.strip():
        return value.strip()
    if isinstance(value, bool | int):
        return int(value)
    if isinstance(value, float) and value == value:
        return int(value) if value.is_integer() else value
    raise DataError(f"{where} is {target!r}: a target is a label, the number of a class, or a list of these")
