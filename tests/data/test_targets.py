"""Targets in any of their usual forms: what they are is found from those to train on, and all others must fit."""

import numpy
import pytest
import torch

from flash_launch.data.targets import TargetFormat, find_format, sorted_labels
from flash_launch.errors import DataError


def formatted(targets: list[object]) -> tuple[TargetFormat, list[object]]:
    found = find_format(targets)
    values = [found(target, "target") for target in targets]
    return found, [value.tolist() if isinstance(value, torch.Tensor) else value for value in values]


@pytest.mark.parametrize(
    ("targets", "classes", "labels", "expected"),
    [
        ([0, 2, 1], 3, None, [0, 2, 1]),
        ([numpy.int64(4), torch.tensor(1)], 5, None, [4, 1]),
        ([[1], [0]], 2, None, [1, 0]),
        ([2.0, 1.0], 3, None, [2, 1]),
        (["bee", "ant", "bee"], 2, ("ant", "bee"), [1, 0, 1]),
        (["class 10", "class 9"], 2, ("class 9", "class 10"), [1, 0]),
        ([[0, 1, 0], [1, 0, 0]], 3, None, [1, 0]),
    ],
)
def test_one_label_per_sample(
    targets: list[object], classes: int, labels: tuple[str, ...] | None, expected: list[int]
) -> None:
    found, values = formatted(targets)
    assert (found.num_classes, found.labels, found.multi_label) == (classes, labels, False)
    assert values == expected
    assert all(type(value) is int for value in values)


@pytest.mark.parametrize(
    ("targets", "labels", "expected"),
    [
        (["ant,bee", "bee"], ("ant", "bee"), [[1, 1], [0, 1]]),
        ([["bee"], ["ant", "cat"]], ("ant", "bee", "cat"), [[0, 1, 0], [1, 0, 1]]),
        ([[0, 2], [1]], None, [[1, 0, 1], [0, 1, 0]]),
        ([[0, 1, 1], [1, 0, 0]], None, [[0, 1, 1], [1, 0, 0]]),
        ([[0.25, 1.0], [0.0, 0.5]], None, [[0.25, 1.0], [0.0, 0.5]]),
    ],
)
def test_several_labels_per_sample(
    targets: list[object], labels: tuple[str, ...] | None, expected: list[list[float]]
) -> None:
    found, values = formatted(targets)
    assert (found.num_classes, found.labels, found.multi_label) == (len(expected[0]), labels, True)
    assert values == expected


def test_a_blank_is_a_part_of_a_label_and_a_comma_where_labels_are_literal() -> None:
    assert find_format(["golden retriever", "poodle"]).labels == ("golden retriever", "poodle")
    found = find_format(["a, b", "c"], literal=True)
    assert (found.labels, found("a, b", "target")) == (("a, b", "c"), 0)


def test_labels_are_sorted_by_the_numbers_in_them() -> None:
    assert sorted_labels(["10", "9", "a10", "a9", "9", "B"]) == ("9", "10", "a9", "a10", "B")


@pytest.mark.parametrize(
    ("targets", "told"),
    [
        ([], "there are no train targets"),
        ([0, "ant"], r"in several ways: target 0 is 0, target 1 is 'ant'"),
        ([0, [1, 2]], r"in several ways: target 0 is 0, target 1 is \[1, 2\]"),
        ([0, -1], "train target 1 holds -1: a class is a whole number from 0 on"),
        ([0.5, 1], "train target 0 holds 0.5: a class is a whole number"),
        (["ant", ""], "train target 1 is empty"),
        ([0, None], "train target 1 is None: a target is a label"),
        ([0, float("nan")], "train target 1 is nan: a target is a label"),
        ([[], []], "are empty lists: none of them names a class"),
    ],
)
def test_targets_that_make_no_sense(targets: list[object], told: str) -> None:
    with pytest.raises(DataError, match=told):
        find_format(targets)


@pytest.mark.parametrize(
    ("train", "other", "told"),
    [
        (["ant", "bee"], "bea", r"val target 3 is of the class 'bea', which the training data do not have; did you"),
        (["ant", "bee"], "ant,bee", r"each a label"),
        (["ant", "bee"], 1, "each a label"),
        ([0, 1], 2, "which is no class of the training data: they have 0 to 1"),
        ([0, 1], "ant", "each the number of a class"),
        ([0, 1], [0, 1], "each the number of a class"),
        ([[0, 1], [1, 0]], [1, 1], "each a list with a single 1"),
        ([[0, 1, 1], [1, 0, 0]], [1, 0], "has 2 places, and there are 3 classes"),
    ],
)
def test_other_targets_must_be_written_as_those_to_train_on(train: list[object], other: object, told: str) -> None:
    with pytest.raises(DataError, match=told):
        find_format(train)(other, "val target 3")


def test_names_of_all_classes_may_be_given() -> None:
    found = find_format(["bee"]).named(["ant", "bee"])
    assert (found.num_classes, found("bee", "target")) == (2, 1)
    numbers = find_format([0, 1]).named(["ant", "bee", "cat"])
    assert (numbers.num_classes, numbers.labels, numbers(2, "target")) == (3, ("ant", "bee", "cat"), 2)
    with pytest.raises(DataError, match="labels has ant, and the targets have the class 'bee'"):
        find_format(["bee"]).named(["ant"])
    with pytest.raises(DataError, match="labels has ant, and the targets have 2 classes"):
        find_format([0, 1]).named(["ant"])
    with pytest.raises(DataError, match="the same name twice"):
        find_format([0, 1]).named(["ant", "ant"])
