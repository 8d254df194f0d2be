"""When checkpoints are saved and which are kept: --checkpoint-every, --keep-last and --keep-best, resolved."""

import math
from dataclasses import dataclass
from typing import Literal

from flash_launch.checkpoint.manifest import Manifest
from flash_launch.metric_goal import MetricGoal

__all__ = ["Cadence", "Keeping"]

Unit = Literal["steps", "epochs", "minutes"]


@dataclass(frozen=True)
class Cadence:
    """Every so many steps, epochs or minutes; epochs also end with one where the run ends."""

    number: int
    """How many; 0: never."""
    unit: Unit
    """Of what."""

    @property
    def never(self) -> bool:
        """Nothing is saved."""
        return self.number == 0

    def after_steps(self, steps: int) -> bool:
        """Whether it is time, that many steps after the last checkpoint."""
        return self.unit == "steps" and not self.never and steps >= self.number

    def at_epoch(self, epochs: int) -> bool:
        """Whether it is time at the start of an epoch, with that many epochs done."""
        return self.unit == "epochs" and not self.never and epochs % self.number == 0

    def after_seconds(self, seconds: float) -> bool:
        """Whether it is time, that many seconds after the last checkpoint."""
        return self.unit == "minutes" and not self.never and seconds >= 60 * self.number


@dataclass(frozen=True)
class Keeping:
    """What is not deleted."""

    last: int
    """The newest so many."""
    best: MetricGoal | None
    """And the best by this metric of the epoch that ended before it."""

    def score(self, manifest: Manifest) -> float:
        """Higher is better; NaN where the metric is not known, or is of weights that have trained on since."""
        assert self.best is not None
        value = manifest.metrics.get(self.best.name, math.nan) if manifest.position.batch == 0 else math.nan
        return value if self.best.higher else -value
