"""Param groups twice: as the user built them, which schedulers see, and the live ones, which the optimizer steps.

A group whose parameters are all frozen is no live group, since it would cost memory and traffic. Schedulers keep seeing
it, so that any of them, known or not, computes what it computes in plain torch. What a scheduler writes into a group is
written to the live groups that came from it; what is written into a live group by hand is written to its home.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real

import torch
from torch import nn
from torch.optim import Optimizer

from flash_strategies.plan import GroupPlan, GroupRate, Option
from flash_strategies.schedulers import Scheduler, attach

Group = dict[str, object]
"""A param group of torch: "params", and options by name."""

_NO_OPTIONS = ("params", "param_names")


@dataclass
class LiveGroup:
    """What is known of one live param group beside its options."""

    home: int
    """Index of the group the optimizer was built with."""
    scale: float = 1.0
    """Its learning rate over its home's."""
    seen: Group = field(default_factory=dict)
    """Its options when they were last looked at."""


class ParamGroups:
    """The homes (the groups as they were built), the live groups, and the view of the homes that schedulers have."""

    def __init__(self, optimizer: Optimizer, schedulers: Sequence[Scheduler]) -> None:
        """Take over the optimizer's groups; `begin` must follow.

        Raises:
            TransitionError: a scheduler in which the optimizer is not found.
        """
        self.optimizer = optimizer
        self.homes: list[Group] = list(optimizer.param_groups)
        self._live: list[LiveGroup] = []
        self._groups: list[Group] = []
        self._seen: list[Group] = []
        self._hold(self.homes, map(LiveGroup, range(len(self.homes))))
        self._given = {
            id(parameter): name
            for group in self.homes
            for parameter, name in zip(_listed(group, "params"), _listed(group, "param_names"), strict=False)
        }
        self._views: dict[int, Optimizer] = {}
        attach(schedulers, optimizer, self._view)
        optimizer.register_step_pre_hook(lambda *_: self.sync())

    def begin(self, live: Mapping[int, Sequence[tuple[str, nn.Parameter]]]) -> None:
        """Let the optimizer hold live groups only: new ones, so that who holds the old ones sees what schedulers see.

        Args:
            live: names and parameters that train, by home.
        """
        self._hold([self._group(self.homes[home], members) for home, members in live.items()], map(LiveGroup, live))

    def replace(self, plans: Sequence[GroupPlan], parameters: Mapping[str, nn.Parameter]) -> None:
        """Let the optimizer hold a plan's groups, with whole parameters in them."""
        self.sync()
        present = self._present()
        groups = []
        for plan in plans:
            source = self.homes[plan.home] if plan.source is None else present[plan.source]
            group = self._group(source, [(name, parameters[name]) for name in plan.names])
            write_options(group, dict(plan.options))
            groups.append(group)
        self._hold(groups, (LiveGroup(plan.home, plan.scale) for plan in plans))

    def options(self, index: int) -> dict[str, Option]:
        """lr, initial_lr, weight_decay, ... of a live group."""
        return plain_options(self._present()[index])

    def scale(self, index: int) -> float:
        """A live group's learning rate over its home's."""
        return self._live[index].scale

    def scale_of(self, home: int, rate: float) -> float:
        """What a rate is over the home's present one; where that is zero, over the one its schedule began with."""
        options = plain_options(self.homes[home])
        return _share(rate, options.get("lr")) or _share(rate, options.get("initial_lr")) or 1.0

    def home_lr(self, home: int) -> float:
        """A home's learning rate; where it is zero now, as in a warm-up, the one its schedule began with."""
        options = plain_options(self.homes[home])
        rates = [options.get(key) for key in ("lr", "initial_lr")]
        return next((float(rate) for rate in rates if isinstance(rate, (int, float)) and rate), 0.0)

    def rate_beside(self, home: int, head: int, share: float) -> GroupRate:
        """What a share of the rate of the home `head` is for a group of the home `home`."""
        present = plain_options(self.homes[head])["lr"]
        assert isinstance(present, float)
        if home == head:
            return GroupRate(present * share, share)
        of = self.home_lr(home)
        return GroupRate(present * share, self.home_lr(head) * share / of if of else share)

    def set_rate(self, index: int, rate: GroupRate) -> None:
        """Give a live group another rate, which is nothing that was written by hand."""
        self.sync()
        group, one = self._present()[index], self._live[index]
        home = self.homes[one.home]
        if rate.scale == 1 and isinstance(home["lr"], torch.Tensor):
            group["lr"] = home["lr"]  # schedulers write into it
        else:
            write_options(group, {"lr": rate.lr})
        one.scale, one.seen = rate.scale, _options(group)

    def sync(self) -> None:
        """Carry over what was written since the last time: by hand into live groups, by schedulers into the homes.

        Where both were, the hand was later: a scheduler looks at the view, which syncs, before it writes.
        """
        live: list[list[tuple[LiveGroup, Group]]] = [[] for _ in self.homes]
        for one, group in zip(self._live, self._present(), strict=True):
            live[one.home].append((one, group))
        for home, options in enumerate(self.homes):
            scheduled = _changed(options, self._seen[home])
            for number, (one, group) in enumerate(live[home]):
                by_hand = _changed(group, one.seen)
                if "lr" in by_hand and (number or not one.scale):
                    one.scale = _share(group["lr"], options["lr"]) or one.scale
                elif number == 0 and by_hand:  # the oldest stands for its home
                    options.update({key: group[key] for key in by_hand})
                    if "lr" in by_hand and one.scale != 1:
                        options["lr"] = group["lr"] / one.scale  # type: ignore[operator]
                    if "lr" in by_hand:
                        for other, theirs in live[home][1:]:
                            other.scale = _share(theirs["lr"], options["lr"]) or other.scale
                for key in scheduled:
                    if key not in by_hand:
                        group[key] = options[key]
                if (
                    one.scale != 1
                    and "lr" not in by_hand
                    and ("lr" in scheduled or isinstance(options["lr"], torch.Tensor))
                ):
                    group["lr"] = options["lr"] * one.scale  # type: ignore[operator]
                one.seen = _options(group)
            self._seen[home] = _options(options)

    def restore(self, homes: Sequence[Mapping[str, Option]]) -> None:
        """Give the homes options that were saved; a rebuild must follow."""
        for group, options in zip(self.homes, homes, strict=True):
            write_options(group, options)

    def _view(self, optimizer: Optimizer) -> Optimizer:
        return self._views.setdefault(id(optimizer), view_of(optimizer, self))

    def _present(self) -> list[Group]:
        """The live groups; ZeRO-1/2 let the optimizer hold one of them at a time while it steps."""
        if len(self.optimizer.param_groups) == len(self._live):
            self._groups = list(self.optimizer.param_groups)
        return self._groups

    def _group(self, source: Group, members: Sequence[tuple[str, nn.Parameter]]) -> Group:
        group = {**source, "params": [parameter for _, parameter in members]}
        if self._given:
            group["param_names"] = [self._given.get(id(parameter), name) for name, parameter in members]
        return group

    def _hold(self, groups: Sequence[Group], live: Iterable[LiveGroup]) -> None:
        # in place: optimizers around optimizers share the list
        self.optimizer.param_groups[:] = groups
        self._groups, self._live = list(groups), list(live)
        for one, group in zip(self._live, groups, strict=True):
            one.seen = _options(group)
        self._seen = [_options(group) for group in self.homes]


class _View(Optimizer):
    """The optimizer as the user built it: all groups, frozen ones too. Else it is the optimizer itself."""

    _groups: ParamGroups
    _viewed: Optimizer

    @property
    def param_groups(self) -> list[Group]:  # type: ignore[override]
        """The homes, with what was written into live groups by hand."""
        self._groups.sync()
        return self._groups.homes

    @property
    def state(self) -> object:  # type: ignore[override]
        """The optimizer's."""
        return self._viewed.state

    @property
    def _opt_called(self) -> bool:
        """Whether the optimizer stepped: torch's schedulers warn if not."""
        return bool(getattr(self._viewed, "_opt_called", False))

    def __eq__(self, other: object) -> bool:
        return other is self or other is self._viewed

    def __hash__(self) -> int:
        return hash(self._viewed)

    def __reduce_ex__(self, protocol: object) -> str | tuple[object, ...]:
        return self._viewed.__reduce_ex__(protocol)  # type: ignore[arg-type]


def view_of(optimizer: Optimizer, groups: ParamGroups) -> Optimizer:
    """A view of an optimizer for schedulers, of a class with the optimizer's name below its own."""
    kind = type(type(optimizer).__name__, (_View, type(optimizer)), {})
    view: Optimizer = object.__new__(kind)
    hidden = ("param_groups", "state", "_opt_called")
    vars(view).update({name: value for name, value in vars(optimizer).items() if name not in hidden})
    vars(view).update(_groups=groups, _viewed=optimizer)
    return view


def plain_options(group: Mapping[str, object]) -> dict[str, Option]:
    """A group's options as plain values: those that JSON can hold."""
    found = {key: _plain(value) for key, value in group.items() if key not in _NO_OPTIONS}
    options = {key: value for key, value in found.items() if not isinstance(value, _NotPlain)}
    return {key: float(value) if key == "lr" and type(value) is int else value for key, value in options.items()}


class _NotPlain:
    pass


def _plain(value: object) -> Option | _NotPlain:
    if isinstance(value, torch.Tensor):
        return float(value) if value.numel() == 1 else _NotPlain()
    if isinstance(value, (list, tuple)):
        items = tuple(_plain(item) for item in value)
        return _NotPlain() if any(isinstance(item, _NotPlain) for item in items) else items  # type: ignore[return-value]
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, Integral):
        return int(value)
    return float(value) if isinstance(value, Real) else _NotPlain()


def write_options(group: Group, options: Mapping[str, Option]) -> None:
    """Write plain values over those that differ, each in the type it has: tensors stay tensors, lists stay lists."""
    present = plain_options(group)
    for key, value in options.items():
        if key not in present or present[key] != value:
            group[key] = _typed(group.get(key), value)


def _typed(present: object, value: Option) -> object:
    if isinstance(present, torch.Tensor) and isinstance(value, (bool, int, float)):
        return torch.full_like(present, value)
    if isinstance(present, (list, tuple)) and isinstance(value, tuple):
        of = present if len(present) == len(value) else value
        return type(present)(_typed(old, new) for old, new in zip(of, value, strict=True))
    return value


def _options(group: Group) -> Group:
    return {key: value for key, value in group.items() if key not in _NO_OPTIONS}


def _changed(group: Group, seen: Group) -> list[str]:
    return [
        key
        for key, value in group.items()
        if key not in _NO_OPTIONS and value is not seen.get(key) and not _equal(value, seen.get(key))
    ]


def _equal(value: object, seen: object) -> bool:
    """Of tensors: the same one. Live groups share theirs with their home, and to compare would wait for the device."""
    return type(value) is type(seen) and isinstance(value, (bool, int, float, str, tuple)) and value == seen


def _share(rate: object, of: object) -> float | None:
    """rate / of; None where that is no number."""
    numbers = [float(one) if isinstance(one, (Real, torch.Tensor)) else 0.0 for one in (rate, of)]
    return numbers[0] / numbers[1] if numbers[1] else None


def _listed(group: Group, key: str) -> list[object]:
    listed = group.get(key, [])
    return list(listed) if isinstance(listed, (list, tuple)) else []
