"""The learning rate of what a phase unfreezes, beside the head's. Pure Python."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from flash_strategies.errors import StrategyTypeError, StrategyValueError

Ramp = float | Callable[[int], float]
"""Factor of the rate per epoch: a number, or a function of the epochs begun (1 in epoch 0), as Lightning calls it."""


@dataclass(frozen=True)
class Rate:
    """The learning rate of what a phase unfreezes: one that is given, or a ratio to the head's.

    The head's rate is that of the param group that holds the first parameter outside of the backbone. What is unfrozen
    keeps a *share* of it: at the unfreeze `ratio`, or `lr` over the head's rate at that moment. So a scheduler's factor
    applies to both alike, in every step. The share replaces the rate of the param group that the optimizer was built
    with for the backbone; the group's other options stay.

    With a `ramp`, the share is multiplied by it at the start of each epoch after the one of the unfreeze. With `align`
    it ends at 1, the head's rate, whatever it was before. Without a ramp it stays, above 1 too.

    Raises:
        StrategyTypeError: a field of the wrong type.
        StrategyValueError: neither or both of lr and ratio, or a number that is not above 0 and finite.
    """

    lr: float | None = None
    """The rate at the unfreeze."""
    ratio: float | None = None
    """The rate at the unfreeze over the head's at that moment."""
    ramp: Ramp | None = None
    """Factor per epoch, from the second epoch of what was unfrozen on."""
    align: bool = True
    """End the ramp where it reaches the head's rate."""

    def __post_init__(self) -> None:
        for name in ("lr", "ratio", "ramp"):
            given: object = getattr(self, name)
            if given is not None and not (name == "ramp" and callable(given)):
                _check_positive(name, given)
        align: object = self.align
        if not isinstance(align, bool):
            raise StrategyTypeError(f"Rate: align is {align!r}, it is True or False")
        if self.lr is not None and self.ratio is not None:
            raise StrategyValueError(
                f"Rate: both lr={self.lr!r} and ratio={self.ratio!r} say what the rate at the unfreeze is: give one"
            )
        if self.lr is None and self.ratio is None:
            what = f"the ramp {self.ramp!r} has no rate to begin with" if self.ramp is not None else "no rate is given"
            raise StrategyValueError(f"Rate: {what}: give lr, or ratio, for example Rate(ratio=0.1)")

    def first_share(self, head: float) -> float:
        """The share at the unfreeze.

        Args:
            head: the head's rate at that moment.
        """
        if self.ratio is not None:
            return self.ratio
        assert self.lr is not None
        return self.lr / head if head else 1.0

    def share(self, first: float, unfrozen: int, epoch: int) -> float:
        """The share in an epoch.

        Args:
            first: the share at the unfreeze.
            unfrozen: the epoch of the unfreeze.
            epoch: counted from 0, as `unfrozen`, and not before it.

        Raises:
            StrategyTypeError, StrategyValueError: a function as ramp gave what is no number above 0.
        """
        share = first
        for past in range(unfrozen + 1, epoch + 1) if self.ramp is not None else ():
            share *= self._factor(past)
            if self.align:
                share = min(share, 1.0)
        return share

    def at(self, epoch: int, head: float, *, unfrozen: int, head_then: float) -> float:
        """The rate in an epoch.

        Args:
            epoch: counted from 0.
            head: the head's rate now.
            unfrozen: the epoch of the unfreeze.
            head_then: the head's rate at the unfreeze.
        """
        return head * self.share(self.first_share(head_then), unfrozen, epoch)

    def _factor(self, epoch: int) -> float:
        if callable(self.ramp):
            factor: object = self.ramp(epoch + 1)
            return _check_positive(f"ramp({epoch + 1})", factor)
        assert self.ramp is not None
        return self.ramp

    def __str__(self) -> str:
        start = f"rate {self.lr:g}" if self.lr is not None else f"{self.ratio:g} of the head's rate"
        if self.ramp is None:
            return start
        factor = "by a function" if callable(self.ramp) else f"times {self.ramp:g}"
        end = " up to the head's" if self.align else ""
        return f"{start}, {factor} per epoch{end}"


def _check_positive(name: str, given: object) -> float:
    if not isinstance(given, (int, float)) or isinstance(given, bool):
        raise StrategyTypeError(f"Rate: {name} is {given!r}, it must be a number")
    if not 0 < given < math.inf:
        raise StrategyValueError(
            f"Rate: {name} is {given!r}, it must be a finite number above 0; what shall not train stays frozen"
        )
    return float(given)
