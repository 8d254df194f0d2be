"""What all ranks must agree on before a transition: the phase, its parameter groups and their options."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TypeAlias

Option: TypeAlias = "float | int | bool | str | tuple[Option, ...] | None"


@dataclass(frozen=True)
class GroupRate:
    """A learning rate for a param group."""

    lr: float
    """The rate now."""
    scale: float
    """The rate over that of the group the optimizer was built with, which schedulers then keep."""


@dataclass(frozen=True)
class GroupPlan:
    """One param group of the coming phase: a cohort of parameters that were unfrozen together."""

    names: tuple[str, ...]
    """Parameter names, in the order in which they lie in the group."""
    shapes: tuple[tuple[int, ...], ...]
    """Shapes of those parameters, whole (not as a rank holds them)."""
    dtype: str
    """Their common data type."""
    source: int | None
    """Index of the param group before the transition that goes on in this one; None: newly unfrozen."""
    home: int
    """Index of the param group the optimizer was built with, to which these parameters belong."""
    options: tuple[tuple[str, Option], ...]
    """The group's options (lr, weight_decay, ...), sorted by name."""
    scale: float = 1.0
    """Its learning rate over that of the group the optimizer was built with."""


@dataclass(frozen=True)
class PhasePlan:
    """All that the ranks must have in common at a transition."""

    phase: str
    """Name of the coming phase."""
    number: int
    """How many transitions there were before this one."""
    step: int
    """Optimizer steps done so far."""
    groups: tuple[GroupPlan, ...]
    """The coming param groups, in the order of the groups the optimizer was built with."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all parameters that train in the coming phase."""
        return tuple(name for group in self.groups for name in group.names)

    @property
    def fresh_rates(self) -> tuple[float, ...]:
        """Learning rates of what is newly unfrozen, each once, ascending."""
        options = [option for group in self.groups if group.source is None for option in group.options]
        return tuple(sorted({float(value) for key, value in options if key == "lr" and isinstance(value, float)}))

    def to_json(self) -> str:
        """One line of JSON, the same on every rank that agrees."""
        plan = asdict(self)
        for group in plan["groups"]:
            group["options"] = dict(group["options"])
        return json.dumps(plan, sort_keys=True)

    def fingerprint(self) -> str:
        """SHA-256 of `to_json`, in hex."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


def first_difference(ours: object, theirs: object, where: str = "plan") -> str | None:
    """Where two decoded plans first differ, in words; None if they do not.

    Args:
        ours: a value decoded from JSON.
        theirs: the other rank's value.
        where: the path to these values, for the message.
    """
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
        # the phase and the counters tell more than the list of groups that follows from them
        for key in sorted(set(ours) | set(theirs), key=lambda key: (key == "groups", str(key))):
            if found := first_difference(ours.get(key), theirs.get(key), f"{where}.{key}"):
                return found
        return None
    if isinstance(ours, list) and isinstance(theirs, list):
        for index, (left, right) in enumerate(zip(ours, theirs, strict=False)):
            if found := first_difference(left, right, f"{where}[{index}]"):
                return found
        if len(ours) != len(theirs):
            longer = ours if len(ours) > len(theirs) else theirs
            extra = longer[min(len(ours), len(theirs))]
            return f"{where} has {len(ours)} entries here and {len(theirs)} there, the first extra one {_short(extra)}"
        return None
    return None if ours == theirs else f"{where} is {_short(ours)} here and {_short(theirs)} there"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."
