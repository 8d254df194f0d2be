"""Which of a file's tensors are the backbone's: under which key of the file, and after which prefix of their names."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from flash_launch.tasks.weights_file import Tables

__all__ = ["Choice", "choose"]

# Put into names by what wraps a module, anywhere in them.
_WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")

# Copies that follow the trained weights: taken only where there is nothing else, or where they are named.
_COPIES = ("ema", "avg", "averaged", "momentum", "teacher", "target", "shadow", "k")


@dataclass(frozen=True)
class Choice:
    """Tensors of a file, brought to the task's names, and how they were found."""

    state: dict[str, Tensor]
    """`backbone.*` and `head.*`, and what else has the same prefix in the file."""

    label: str
    """The key and the prefix in the file, joined by dots; empty: neither."""

    matched: int
    """How many are called as the task's."""

    fitting: int
    """How many of them have the task's shape as well."""

    left_out: tuple[str, ...] = ()
    """Names of the other tensors under the same key."""

    others: tuple[str, ...] = ()
    """Labels of other tensors in the file that would fit as well."""


def choose(
    tables: Tables,
    target: Mapping[str, Tensor],
    head_name: str,
    renamed: Callable[[str], str],
    wanted: str | None = None,
) -> Choice | None:
    """The tensors that fit best: by names, then shapes, then what else is there; trained before copies; as they come.

    Args:
        tables: what the file holds.
        target: the task's tensors, `backbone.*` and `head.*`.
        head_name: of the head in the whole model, which files name in place of `head`.
        renamed: brings a name of an older form to today's.
        wanted: a key or prefix that was asked for; None: any.

    Returns:
        The choice; None where no tensor is called as one of the task's.
    """
    choices = [
        choice
        for key, table in tables.items()
        for choice in _choices(key, table, target, head_name, renamed)
        if wanted is None or f".{wanted}." in f".{choice.label}."
    ]
    if not choices:
        return None
    best = min(choices, key=lambda choice: _rank(choice, target))
    alike = [other for other in choices if (other.matched, other.fitting) == (best.matched, best.fitting)]
    used = {
        id(value) for name, value in best.state.items() if name in target
    }  # under another label, these are no other
    labels = dict.fromkeys(
        other.label
        for other in alike
        if other.label != best.label
        and not all(id(other.state[name]) in used for name in other.state if name in target)
    )
    return Choice(best.state, best.label, best.matched, best.fitting, best.left_out, tuple(labels))


def _rank(choice: Choice, target: Mapping[str, Tensor]) -> tuple[int, int, int, int]:
    unknown = sum(1 for name in choice.state if name not in target and not name.startswith("head."))
    parts = choice.label.replace("_", ".").replace("-", ".").lower().split(".")
    return -choice.matched, -choice.fitting, unknown, sum(1 for part in parts if part in _COPIES)


def _choices(
    key: str, table: Mapping[str, Tensor], target: Mapping[str, Tensor], head_name: str, renamed: Callable[[str], str]
) -> Iterable[Choice]:
    given = {renamed(_unwrapped(name)): (name, value) for name, value in table.items()}
    to_task = {name: name for name in target}
    of_head = head_name + "."
    to_whole = {
        of_head + name.removeprefix("head.") if name.startswith("head.") else name.removeprefix("backbone."): name
        for name in target
    }
    for names, whole in ((to_task, False), (to_whole, True)):
        found = _prefixes(given, names)
        most = max(found.values(), default=0)
        for prefix, matched in found.items():
            if matched < most / 2:
                continue  # the name of one layer stands in the names of others
            after = {name.removeprefix(prefix): pair for name, pair in given.items() if name.startswith(prefix)}
            state = {_task_name(name, of_head) if whole else name: value for name, (_, value) in after.items()}
            fitting = sum(1 for name in state if name in target and state[name].shape == target[name].shape)
            others = tuple(original for name, (original, _) in given.items() if not name.startswith(prefix))
            yield Choice(state, f"{key}.{prefix}".strip("."), matched, fitting, others)


def _task_name(name: str, of_head: str) -> str:
    return "head." + name.removeprefix(of_head) if name.startswith(of_head) else "backbone." + name


def _prefixes(given: Iterable[str], names: Mapping[str, str]) -> Counter[str]:
    """What stands before the wanted names, and how many of the backbone's or the head's stand after it."""
    found: Counter[str] = Counter()
    for name in given:
        start = 0
        while start >= 0:
            if name[start:] in names:
                found[name[:start]] += 1
            start = name.find(".", start) + 1 or -1
    return found


def _unwrapped(name: str) -> str:
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    return name
