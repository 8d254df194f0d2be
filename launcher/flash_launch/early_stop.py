"""A run that its task ends before the last epoch: by what, why, and which phases never came."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytorch_lightning as pl

    from flash_strategies.lightning import FinetuningCallback

__all__ = ["EarlyStop", "find_early_stop"]


@dataclass(frozen=True)
class EarlyStop:
    """A final end, as if all epochs were done; only more epochs than were asked for then let the run resume."""

    by: str
    """The callback, or the task."""
    reason: str
    """As it says; may be empty."""
    epoch: int
    """The last epoch that trained, from 0."""
    max_epochs: int
    """Epochs that the run was to have."""
    missed: tuple[str, ...] = ()
    """Phases that never began, each with its epoch."""

    def __str__(self) -> str:
        why = f" ({self.reason})" if self.reason else ""
        never = f"; never began: {', '.join(self.missed)}" if self.missed else ""
        return (
            f"stopped early by {self.by} in epoch {self.epoch}, {self.epoch + 1} of {self.max_epochs} done{why}{never}"
        )

    def ends(self, max_epochs: int) -> bool:
        """Whether a run that is to have so many epochs has nothing left to do."""
        return max_epochs <= self.max_epochs

    def to_json(self) -> dict[str, object]:
        """For summary.json and manifests."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: object) -> EarlyStop | None:
        """What `to_json` gave; None: something else."""
        if not isinstance(values, Mapping):
            return None
        try:
            return cls(**{**values, "missed": tuple(values.get("missed", ()))})
        except TypeError:
            return None


def find_early_stop(trainer: pl.Trainer, finetuning: FinetuningCallback) -> EarlyStop | None:
    """Whether the task ended the fit before its last epoch; in `on_train_end`."""
    from pytorch_lightning.callbacks import EarlyStopping, Timer

    done, total = trainer.current_epoch, trainer.max_epochs
    if not trainer.should_stop or total is None or done >= total:
        return None
    by, reason = "the task, which set trainer.should_stop", ""
    for one in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(one, EarlyStopping) and one.stopping_reason.name != "NOT_STOPPED":
            by = type(one).__name__
            reason = (one.stopping_reason_message or "").replace(" Signaling Trainer to stop.", "").rstrip(".")
        elif isinstance(one, Timer) and (left := one.time_remaining()) is not None and left <= 0:
            by, reason = type(one).__name__, "its time is over"
    coming = [one.phase for one in getattr(finetuning, "phases", ()) if one.phase.first_epoch >= done]
    missed = tuple(f"phase {phase.name} (epoch {phase.first_epoch})" for phase in coming)
    return EarlyStop(by, reason, done - 1, total, missed)
