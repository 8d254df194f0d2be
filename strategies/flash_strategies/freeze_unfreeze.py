"""The strategy `freeze_unfreeze`: the backbone is frozen until an epoch."""

from dataclasses import dataclass
from typing import ClassVar

from flash_strategies.errors import StrategyTypeError
from flash_strategies.schedule import Everything, Nothing, Phase, check_before_end, check_epoch, epochs_for_defaults


@dataclass(frozen=True)
class FreezeUnfreeze:
    """The backbone is frozen until an epoch, and trains from its start on.

    Raises:
        StrategyTypeError: an epoch that is not an int.
        StrategyValueError: a negative epoch.
    """

    unfreeze_epoch: int | None = None
    """The first epoch in which the backbone trains; None is half of the run's epochs, rounded up."""

    name: ClassVar[str] = "freeze_unfreeze"

    def __post_init__(self) -> None:
        if self.unfreeze_epoch is not None:
            check_epoch(self.unfreeze_epoch, self.name)

    @classmethod
    def from_metadata(cls, metadata: object) -> "FreezeUnfreeze":
        """From a pair's second half, an epoch. Raises what the class raises."""
        if not isinstance(metadata, int) or isinstance(metadata, bool):
            raise StrategyTypeError(
                f"{cls.name}: needs the epoch to unfreeze at, an int of 0 or more, and was given {metadata!r}: "
                f"write strategy=({cls.name!r}, 7)"
            )
        return cls(metadata)

    def phases(self, max_epochs: int | None) -> tuple[Phase, ...]:
        """Frozen, then unfrozen; unfrozen alone for epoch 0."""
        epoch = self.unfreeze_epoch
        if epoch is None:
            epoch = -(-epochs_for_defaults(max_epochs, 2, (self.name, 7)) // 2)
        elif epoch > 0:
            check_before_end(epoch, max_epochs, f"{self.name}: unfreezing")
        unfrozen = Phase("unfrozen", epoch, Everything())
        return (unfrozen,) if epoch == 0 else (Phase("frozen", 0, Nothing()), unfrozen)
