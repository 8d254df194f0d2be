"""Which warnings of libraries are shown: each once, on rank 0, but for those that this design answers itself."""

from __future__ import annotations

import logging
import re
import warnings
from typing import TextIO

__all__ = ["ANSWERED", "show_library_warnings"]

ANSWERED: dict[str, str] = {
    r"The `srun` command is available on your system but is not used": "the launcher starts the ranks",
    r"It is recommended to use `self\.log\(.*, sync_dist=True\)` when logging on epoch level": (
        "values of an epoch are reduced over the ranks without it: logged_values.py"
    ),
    r"find_unused_parameters=True was specified": "the ddp template asks for it: a phase may leave parameters unused",
    r"`broadcast_buffers` is deprecated": "the ddp template asks for it: buffers are averaged at the end of an epoch",
    r"The number of training batches \(\d+\) is smaller than the logging interval": (
        "metrics.jsonl has every step of a short epoch; the interval is no option of a run"
    ),
    r"\*+ You are using ZeRO with an untested optimizer": "tests hold it to plain torch",
    r"`isinstance\(treespec, LeafSpec\)` is deprecated": "Lightning's call of torch; the versions are pinned",
    r"`torch\.distributed\.(all_gather_into|reduce_scatter)_tensor` is deprecated": "DeepSpeed's call of torch",
}
"""How each message begins that is not shown (a regular expression) -> why there is nothing for a user to do."""

_LOGGERS = ("DeepSpeed", "pytorch_lightning", "lightning.pytorch", "lightning_fabric")
_MODULES = ("torch", "deepspeed", "pytorch_lightning", "lightning_fabric", "torchmetrics")


def show_library_warnings(rank: int) -> None:
    """Set filters and levels. Warnings of the user's own code are shown on every rank."""
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        logger.setLevel(logging.WARNING if rank == 0 else logging.ERROR)
        logger.addFilter(_unanswered)
    if rank != 0:
        for module in _MODULES:
            warnings.filterwarnings("ignore", module=rf"{module}(\..*)?")
    for message in ANSWERED:
        warnings.filterwarnings("ignore", message=message)
    _show_once()


def _unanswered(record: logging.LogRecord) -> bool:
    text = record.getMessage()
    return record.levelno >= logging.ERROR or not any(re.match(message, text) for message in ANSWERED)


def _show_once() -> None:
    """Python's own memory of what was shown is lost whenever a library changes a filter for a while."""
    show, shown = warnings.showwarning, set[tuple[type[Warning], str]]()

    def once(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if (key := (category, str(message))) not in shown:
            shown.add(key)
            show(message, category, filename, lineno, file, line)

    warnings.showwarning = once
