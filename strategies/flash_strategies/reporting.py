"""What a fit reports on rank 0: what was frozen at the start, each transition, and what it finds on the way."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch.distributed as dist

if TYPE_CHECKING:
    from flash_strategies.engines.base import StateBytes
    from flash_strategies.transition import TransitionReport

LOGGER = logging.getLogger("flash_strategies.report")
"""Takes what was frozen and the transitions, at level INFO; whoever reports these by other means silences it."""

NOTES = logging.getLogger("flash_strategies.notes")
"""Takes all else, at level INFO."""

_PACKAGE = logging.getLogger("flash_strategies")
if _PACKAGE.level == logging.NOTSET:  # as Lightning does with its own
    _PACKAGE.setLevel(logging.INFO)


def say(line: str, logger: logging.Logger = LOGGER) -> None:
    """Log a line on rank 0; where nobody has set up logging, it appears on stderr."""
    if on_rank_zero() and logger.isEnabledFor(logging.INFO):
        if logger.hasHandlers():
            logger.info(line)
        else:
            print(line, file=sys.stderr)


@contextmanager
def silenced() -> Iterator[None]:
    """Keep back what was frozen and the transitions, but not the notes."""
    level = LOGGER.level
    LOGGER.setLevel(logging.WARNING)
    try:
        yield
    finally:
        LOGGER.setLevel(level)


def on_rank_zero() -> bool:
    """Whether this process is rank 0; before the process group is there, as the launcher's variables say."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank() == 0
    return os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) == "0"  # Lightning's launcher sets the second only


def transition_line(report: TransitionReport, *, epoch: int, total: int, layers: int | None, held: StateBytes) -> str:
    """One line about a transition whose first step is done and proved.

    Args:
        report: what the transition did.
        epoch: in which it was made.
        total: elements of the whole model.
        layers: layers of the backbone that train; None where that is not known.
        held: what this rank holds for training now.
    """
    after = f"{report.trainable_after:,} trainable parameters of {total:,}"
    change = f"{report.trainable_before:,} -> {after}" if report.number else after
    change += f", unfrozen at learning rate {' and '.join(f'{rate:g}' for rate in report.rates)}" * bool(report.rates)
    counted = f"{layers} layers, " if layers is not None else ""
    return (
        f"epoch {epoch}: phase {report.phase}, {change}, {counted}{report.seconds:.2f} s, "
        f"{readable(held.masters + held.moments)} of optimizer state per rank; ranks equal"
    )


def readable(count: int) -> str:
    """Bytes in words: 1.2 MB."""
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    raise AssertionError("the loop returns")
