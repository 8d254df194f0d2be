"""Which folders are splits: their names as they occur in the wild, in lower or upper case."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from flash_launch.errors import DataError

__all__ = ["LEFT_BY_TOOLS", "Splits", "called_as_splits", "kind_of_split", "splits_in"]

LEFT_BY_TOOLS = {"__macosx", "__pycache__", "$recycle.bin", "system volume information", "@eadir", "lost+found"} | {
    *("thumbs.db", "desktop.ini")
}
"""Names, in lower case, of files and folders that tools leave behind."""

_TRAIN, _VAL, _TEST = "train", "val", "test"
_KINDS = {
    **dict.fromkeys(("train", "training", "trn"), _TRAIN),
    **dict.fromkeys(("val", "valid", "validation", "validate", "validating", "dev", "eval", "evaluation"), _VAL),
    **dict.fromkeys(("test", "testing", "tst"), _TEST),
}
# What may stand beside: train_images, TestSet, val2017, ILSVRC2012_img_val.
_BESIDE = {"", "set", "images", "image", "imgs", "img", "data", "dataset", "split", "folder", "ilsvrc", "coco"}


@dataclass(frozen=True)
class Splits:
    """The folders of a split."""

    train: Path
    """To train on."""

    val: Path
    """To validate on."""

    notes: tuple[str, ...]
    """What is not used, a sentence each."""


def splits_in(folder: Path, top: Mapping[str, bool]) -> Splits | None:
    """The splits among the folders in a folder; None: it has no split, its folders are something else.

    Args:
        folder: the folder.
        top: names of the folders in it, and whether each has folders inside.

    Raises:
        DataError: two folders for one split, or a split for training that has none to validate on, or the reverse.
    """
    by_kind: dict[str, list[str]] = {}
    for name in top:
        if (kind := kind_of_split(name)) is not None:
            by_kind.setdefault(kind, []).append(name)
    splits = [name for names in by_kind.values() for name in names]
    of_test = [name for name in by_kind.get(_TEST, ()) if top[name]]  # a flat one has no labels
    val_kind = _VAL if _VAL in by_kind else _TEST
    if len(splits) != len(top) and not any(top[name] for name in splits):
        return None  # classes that are called so
    if _TRAIN not in by_kind or (_VAL not in by_kind and not of_test and top[by_kind[_TRAIN][0]]):
        _check_not_alone(folder, top, by_kind)
        return None
    if len(splits) == 1:
        return None
    for kind in (_TRAIN, val_kind):
        if len(names := by_kind[kind]) > 1:
            raise DataError(
                f"{folder} has several folders that may be its {kind} split, {', '.join(names)}: leave one of them, "
                "or join them"
            )
    train, val = by_kind[_TRAIN][0], by_kind[val_kind][0]
    notes = []
    if val_kind == _TEST:
        notes.append(f"{folder} has no folder val: {folder / val} is validated on")
    passed_over = [name for name in top if name not in (train, val)]
    if passed_over:
        notes.append(f"neither trained nor validated on: {', '.join(str(folder / name) for name in passed_over)}")
    return Splits(folder / train, folder / val, tuple(notes))


def _check_not_alone(folder: Path, top: Mapping[str, bool], by_kind: Mapping[str, list[str]]) -> None:
    """Refuse a single split; without folders inside it is a class of that name."""
    alone = [name for names in by_kind.values() for name in names if top[name]]
    if not alone or (_TRAIN not in by_kind and len(top) > len(alone)):
        return
    if _TRAIN in by_kind:
        raise DataError(
            f"{folder} has a folder {alone[0]} with folders in it, but no folder val: add {folder / 'val'}, "
            f"or give {folder / alone[0]} to have a part of it held back"
        )
    raise DataError(
        f"{folder} has {', '.join(alone)}, but no folder train: add {folder / 'train'}, or give "
        f"{folder / alone[0]} to train on that"
    )


def kind_of_split(name: str) -> str | None:
    """Train, val or test, where a folder's name says so."""
    words = _words(name)
    kinds = {_KINDS[word] for word in words if word in _KINDS}
    if len(kinds) != 1 or any(word not in _KINDS and word not in _BESIDE for word in words):
        return None
    return kinds.pop()


def called_as_splits(names: Iterable[str]) -> list[str]:
    """Those that are the same but for the name of a split in them: seg_train and seg_test; empty: none."""
    alike: dict[tuple[str, ...], dict[str, str | None]] = {}
    for name in names:
        words = _words(name)
        rest = tuple(word for word in words if word not in _KINDS)
        if rest and len(rest) < len(words):
            alike.setdefault(rest, {})[name] = next(_KINDS[word] for word in words if word in _KINDS)
    return [
        name for kinds in alike.values() if _TRAIN in kinds.values() and len(set(kinds.values())) > 1 for name in kinds
    ]


def _words(name: str) -> list[str]:
    return re.split(r"[^a-z]+", name.lower().replace("set", " set"))
