"""What classes a task has, and whether data have the same."""

from collections.abc import Sequence
from typing import Protocol

from flash_launch.errors import TaskError

__all__ = ["Classes", "check_classes_of", "class_count"]


class Classes(Protocol):
    """What a task says of its classes."""

    num_classes: int
    """How many there are."""
    labels: list[str] | None
    """Their names by number; None: not known."""
    multi_label: bool
    """Whether a sample may have any number of them."""


def class_count(num_classes: object, labels: object, multi_label: bool) -> int:
    """How many classes a constructor was asked for.

    Raises:
        TaskError: none, too few, labels that are no names, or two numbers.
    """
    if labels is not None:
        if isinstance(labels, str) or not isinstance(labels, Sequence) or not all(isinstance(x, str) for x in labels):
            raise TaskError(f"labels is {labels!r}: give a list with the name of each class")
        if len(set(labels)) != len(labels):
            raise TaskError(f"labels has the same name twice: {', '.join(labels)}")
        if num_classes is not None and num_classes != len(labels):
            raise TaskError(f"num_classes={num_classes} contradicts the {len(labels)} labels: leave num_classes out")
        num_classes = len(labels)
    if num_classes is None:
        raise TaskError("how many classes? Give num_classes=..., or labels=..., as in labels=datamodule.labels")
    low = 1 if multi_label else 2
    if type(num_classes) is not int or num_classes < low:
        hint = "" if multi_label else ": with one class alone there is nothing to learn"
        raise TaskError(f"num_classes was given {num_classes!r}: it must be a whole number of {low} or more{hint}")
    return num_classes


def check_classes_of(data: object, task: Classes) -> None:
    """Look whether data are of the classes that a task has; data that do not say theirs may have any.

    Raises:
        TaskError: more classes, others or in another order, or several labels per sample on one side alone.
    """
    multi_label, classes = getattr(data, "multi_label", None), getattr(data, "num_classes", None)
    if isinstance(multi_label, bool) and multi_label != task.multi_label and classes is not None:
        raise TaskError(
            f"the data have {'any number of labels' if multi_label else 'one label'} per sample, and the task was made "
            f"with multi_label={task.multi_label}: give ImageClassifier multi_label={multi_label}"
        )
    if isinstance(classes, int) and classes > task.num_classes:
        raise TaskError(
            f"the data have {classes} classes and the task {task.num_classes}: give ImageClassifier "
            "num_classes=datamodule.num_classes"
        )
    labels = getattr(data, "labels", None)
    if labels is not None and task.labels is not None and list(labels) != task.labels:
        raise TaskError(
            f"the data have the labels {', '.join(labels)}, and the task {', '.join(task.labels)}: a number would "
            "stand for two names; give ImageClassifier labels=datamodule.labels, or the data labels=model.labels"
        )
