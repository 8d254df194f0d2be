"""Learning-rate schedulers across transitions: their per-group lists follow the param groups.

torch's schedulers keep lists with one entry per param group and fail or fall silent when the number of groups changes.
Every such list is indexed anew; nothing else is touched, so a group that goes on sees no jump.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch.optim import Optimizer
from torch.optim.lr_scheduler import ChainedScheduler, LambdaLR, LRScheduler, ReduceLROnPlateau, SequentialLR

Scheduler = LRScheduler | ReduceLROnPlateau

# by name, not by length: OneCycleLR also has a list of two or three phases. The last three are DeepSpeed's schedules'.
_PER_GROUP = frozenset(
    (
        *("base_lrs", "lr_lambdas", "max_lrs", "base_momentums", "max_momentums", "_last_lr"),
        *("min_lrs", "delta_lrs", "last_lr"),
    )
)


def per_group_lists(scheduler: Scheduler, groups: int) -> dict[str, list[object]]:
    """The scheduler's attributes that hold one entry per param group."""
    return {
        name: value
        for name, value in vars(scheduler).items()
        if name in _PER_GROUP and isinstance(value, list) and len(value) == groups
    }


def flattened(schedulers: Sequence[Scheduler]) -> list[Scheduler]:
    """The schedulers and those inside of them."""
    found: list[Scheduler] = []
    for scheduler in schedulers:
        found.append(scheduler)
        if isinstance(scheduler, (SequentialLR, ChainedScheduler)):
            found.extend(flattened(scheduler._schedulers))
    return found


def reindex(
    schedulers: Sequence[Scheduler],
    optimizer: Optimizer,
    groups_before: int,
    entries: Sequence[int | dict[str, object]],
) -> None:
    """Make every per-group list follow the optimizer's new param groups.

    Args:
        schedulers: the run's schedulers, outermost ones.
        optimizer: already holds the new groups.
        groups_before: how many groups there were.
        entries: for each new group, the old group whose entries it takes, or entries kept by `park`.
    """
    for position, scheduler in enumerate(flattened(schedulers)):
        for name, old in per_group_lists(scheduler, groups_before).items():
            values = [
                old[e] if isinstance(e, int) else e.get(f"{position}.{name}", old[0] if old else None) for e in entries
            ]
            if name == "_last_lr":
                values = [group["lr"] for group in optimizer.param_groups]
            setattr(scheduler, name, values)


def park(schedulers: Sequence[Scheduler], groups_before: int, index: int) -> dict[str, object]:
    """The entries of one group that is about to go, for the day it comes back."""
    return {
        f"{position}.{name}": values[index]
        for position, scheduler in enumerate(flattened(schedulers))
        for name, values in per_group_lists(scheduler, groups_before).items()
    }


def scheduled_rate(schedulers: Sequence[Scheduler], entries: Mapping[str, object]) -> float | None:
    """The present learning rate of a group with these entries, where the schedule is a function of the group's own."""
    if len(schedulers) != 1 or not isinstance(schedulers[0], LambdaLR):
        return None
    function, base = entries.get("0.lr_lambdas"), entries.get("0.base_lrs")
    known = callable(function) and isinstance(base, (int, float))
    return float(base * function(schedulers[0].last_epoch)) if known else None  # type: ignore[operator]
