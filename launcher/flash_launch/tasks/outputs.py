"""From a classifier's logits to what is asked for of each sample: labels, classes, probabilities or logits."""

import difflib
from collections.abc import Iterable, Sequence

from torch import Tensor

from flash_launch.errors import TaskError
from flash_strategies.reporting import NOTES, say

__all__ = ["convert", "output_names"]

_NAMES = ("classes", "labels", "logits", "preds", "probabilities")

THRESHOLD = 0.5
"""With several labels per sample: the probability above which a label is given."""


def output_names() -> tuple[str, ...]:
    """What `convert` takes as `name`."""
    return _NAMES


def convert(
    outputs: Iterable[Tensor], name: str, labels: Sequence[str] | None = None, multi_label: bool = False
) -> list[list[object]]:
    """Give logits the form that is asked for.

    Args:
        outputs: a tensor of logits (n, classes) for each batch.
        name: "labels" (a name of `labels`; with `multi_label` a list of them), "classes" (their positions),
            "probabilities" (a list of floats, softmax or, with `multi_label`, sigmoid), "logits" (a list of floats),
            or "preds" (the logits as a tensor).
        labels: names of the classes by position; None: not known, and "labels" gives positions, and says so.
        multi_label: whether a sample may have any number of labels: those of a probability above 0.5.

    Returns:
        For each batch a list with an item for each sample.

    Raises:
        TaskError: an unknown name, logits that are not of shape (n, classes), or not as many labels as classes.
    """
    given: object = name
    if not isinstance(given, str) or given not in _NAMES:
        near = difflib.get_close_matches(given, _NAMES, n=1, cutoff=0.4) if isinstance(given, str) else []
        hint = f", the nearest is {near[0]!r}" if near else ""
        raise TaskError(f"there is no output {given!r}{hint}. Outputs: {', '.join(_NAMES)}")
    if name == "labels" and labels is None:
        say(
            "output='labels' gives numbers of classes, whose names are not known: give the task labels=[...]",
            NOTES,
        )
    return [_of_batch(logits, name, labels, multi_label) for logits in outputs]


def _of_batch(logits: Tensor, name: str, labels: Sequence[str] | None, multi_label: bool) -> list[object]:
    given: object = logits
    if not isinstance(given, Tensor) or given.dim() != 2:
        what = f"a tensor of shape {tuple(given.shape)}" if isinstance(given, Tensor) else type(given).__name__
        raise TaskError(f"output={name!r} is made of logits of shape (samples, classes), and predict_step gave {what}")
    logits = logits.detach().float().cpu()
    if name == "preds":
        return list(logits)
    if name == "logits":
        return list(logits.tolist())
    if name == "probabilities":
        return list((logits.sigmoid() if multi_label else logits.softmax(dim=1)).tolist())
    if name == "labels" and labels is not None and len(labels) != logits.shape[1]:
        raise TaskError(f"{len(labels)} labels are given for {logits.shape[1]} classes")
    names = labels if name == "labels" and labels is not None else range(logits.shape[1])
    if multi_label:
        return [[names[c] for c, yes in enumerate(row) if yes] for row in (logits.sigmoid() > THRESHOLD).tolist()]
    return [names[position] for position in logits.argmax(dim=1).tolist()]
