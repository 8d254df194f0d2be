"""Learning-rate schedulers get a view of their optimizer that keeps all param groups, also those that are frozen."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from flash_strategies.errors import TransitionError

Scheduler = LRScheduler | ReduceLROnPlateau


def attach(schedulers: Sequence[Scheduler], optimizer: Optimizer, view_of: Callable[[Optimizer], Optimizer]) -> None:
    """Put the view where schedulers hold the optimizer: under any name, in lists, in schedulers within schedulers.

    Args:
        schedulers: the run's schedulers, outermost ones.
        optimizer: that they were built on; its list of param groups is not changed yet.
        view_of: gives a view of an optimizer, which has the same groups, and keeps them.

    Raises:
        TransitionError: a scheduler that holds neither the optimizer nor its groups.
    """
    for scheduler in schedulers:
        if not _Replacement(optimizer, view_of).inside(scheduler):
            raise TransitionError(
                f"the optimizer is not found in the learning-rate schedule {type(scheduler).__name__}, so its rates "
                "would not reach what is unfrozen later: keep the optimizer in an attribute of the scheduler, and let "
                "it be the one that trains"
            )


class _Replacement:
    """One walk through what a scheduler holds."""

    def __init__(self, optimizer: Optimizer, view_of: Callable[[Optimizer], Optimizer]) -> None:
        self._optimizer, self._view_of = optimizer, view_of
        self._groups = {id(group) for group in optimizer.param_groups}
        self._visited: set[int] = set()
        self.found = False

    def inside(self, scheduler: object) -> bool:
        """Replace the optimizer in an object's attributes; whether the object holds it, or its groups."""
        self._in_dict(getattr(scheduler, "__dict__", {}))
        for name in _slots(scheduler):
            value = getattr(scheduler, name)
            if (other := self._instead_of(value)) is not value:
                setattr(scheduler, name, other)
        return self.found

    def _in_dict(self, held: dict[object, object]) -> None:
        if id(held) not in self._visited:
            self._visited.add(id(held))
            for key, value in list(held.items()):
                if (other := self._instead_of(value)) is not value:
                    held[key] = other

    def _instead_of(self, value: object) -> object:
        """The view for the optimizer, what lies around it as it is; all else as it is."""
        if isinstance(value, Optimizer):
            # an optimizer around an optimizer (SAM, Lookahead) shares its groups; a view is equal to what it is of
            same = value.param_groups is self._optimizer.param_groups
            self.found |= same or value == self._optimizer
            return self._view_of(value) if same else value
        if value is self._optimizer.param_groups:
            self.found = True
            return self._view_of(self._optimizer).param_groups
        if isinstance(value, weakref.ref) and value() is self._optimizer:
            self.found = True
            return weakref.ref(self._view_of(self._optimizer))
        if type(value) is tuple:
            return tuple(map(self._instead_of, value))
        if isinstance(value, list):
            if id(value) not in self._visited:
                self._visited.add(id(value))
                value[:] = map(self._instead_of, value)
        elif isinstance(value, dict):
            self.found |= id(value) in self._groups
            if id(value) not in self._groups:
                self._in_dict(value)
        elif _is_scheduler(value):
            self.inside(value)
        return value


def _is_scheduler(value: object) -> bool:
    parts = all(callable(getattr(value, name, None)) for name in ("step", "state_dict"))
    return parts and not isinstance(value, (nn.Module, type))


def _slots(scheduler: object) -> list[str]:
    """Attributes that a class keeps in `__slots__`, those that are set."""
    slots = [getattr(kind, "__slots__", ()) for kind in type(scheduler).__mro__]
    names = [name for one in slots for name in ((one,) if isinstance(one, str) else one)]
    return [name for name in names if name not in ("__dict__", "__weakref__") and hasattr(scheduler, name)]
