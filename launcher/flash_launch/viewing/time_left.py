"""How long a run still takes, where that can be known: by the clock, validation and checkpoints included."""

from dataclasses import dataclass

from flash_launch.viewing.run_view import RunView

__all__ = ["Pace", "pace_of", "steps_in_all"]

_FEWEST_STEPS = 3


@dataclass(frozen=True)
class Pace:
    """The pace of a run, and what follows from it."""

    seconds_per_step: float
    """By the clock, over the phase or the attempt so far."""
    seconds_left: float
    """Until the last epoch is done, if later phases are as fast."""
    phases_to_come: int
    """Phases that have not begun, and may be slower."""


def steps_in_all(view: RunView) -> int | None:
    """Optimizer steps of the whole run, by the length of its last epoch; None before one has ended."""
    per_epoch, epochs = view.progress.steps_per_epoch, view.progress.epochs
    if per_epoch is None or view.max_epochs is None:
        return None
    return epochs[-1].step + max(view.max_epochs - 1 - epochs[-1].epoch, 0) * per_epoch


def pace_of(view: RunView) -> Pace | None:
    """The pace of a run that goes on; None where too little is known yet."""
    total, step, written = steps_in_all(view), view.progress.step, view.progress.time
    if total is None or step is None or written is None or not view.attempts:
        return None
    began = view.attempts[-1].attempt.began
    marks = [
        (event.time, event.step)
        for event in view.lineage
        if event.kind in ("start", "resume", "transition") and event.step is not None and event.time >= began
    ]
    # the newest stretch that is long enough; the first step after a transition proves and allocates
    for time, first in reversed(marks):
        if step - first >= _FEWEST_STEPS and written > time:
            per_step = (written - time) / (step - first)
            coming = sum(1 for phase in view.phases if phase.first_step is None)
            return Pace(per_step, max(total - step, 0) * per_step, coming)
    return None
