"""The strategy `unfreeze_milestones`: the last layers unfreeze at one epoch, the rest at a later one."""

from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

from flash_strategies.errors import StrategyTypeError, StrategyValueError
from flash_strategies.schedule import (
    Counting,
    Everything,
    LastLayers,
    Nothing,
    Phase,
    check_before_end,
    check_epoch,
    check_layers,
    epochs_for_defaults,
)

EXAMPLE = ("unfreeze_milestones", ((3, 8), 2))


@dataclass(frozen=True)
class UnfreezeMilestones:
    """The backbone starts frozen, its last layers train from the first milestone on, all of it from the second.

    Raises:
        StrategyTypeError: milestones that are not two ints, a number of layers that is neither an int nor a Fraction.
        StrategyValueError: milestones that do not ascend, a negative one, a number of layers below 1.
    """

    milestones: tuple[int, int] | None = None
    """The two epochs; None is one and two thirds of the run's epochs, rounded up."""
    num_layers: int | Fraction | None = None
    """How many of the last layers unfreeze first, or which fraction of them; None is a quarter."""
    counting: Counting = "parameters"
    """What counts as a layer, see LastLayers."""

    name: ClassVar[str] = "unfreeze_milestones"

    def __post_init__(self) -> None:
        check_layers(1 if self.num_layers is None else self.num_layers, self.counting, self.name)
        if self.milestones is not None:
            _check_milestones(self.milestones)

    @classmethod
    def from_metadata(cls, metadata: object) -> "UnfreezeMilestones":
        """From a pair's second half, `((epoch, epoch), layers)`. Raises what the class raises."""
        if not isinstance(metadata, tuple) or len(metadata) != 2 or None in metadata:
            raise StrategyTypeError(
                f"{cls.name}: needs two epochs and a number of layers, ((int, int), int), and was given {metadata!r}: "
                f"write strategy={EXAMPLE!r}"
            )
        milestones, num_layers = metadata
        return cls(milestones, num_layers)

    def phases(self, max_epochs: int | None) -> tuple[Phase, ...]:
        """Frozen, last layers, unfrozen; without the first where the first milestone is epoch 0."""
        if self.milestones is None:
            epochs = epochs_for_defaults(max_epochs, 3, EXAMPLE)
            first, second = -(-epochs // 3), -(-2 * epochs // 3)
        else:
            first, second = self.milestones
            check_before_end(second, max_epochs, f"{self.name}: milestones {self.milestones}")
        last = Fraction(1, 4) if self.num_layers is None else self.num_layers
        frozen = (Phase("frozen", 0, Nothing()),) if first > 0 else ()
        return (
            *frozen,
            Phase("last_layers", first, LastLayers(last, self.counting)),
            Phase("unfrozen", second, Everything()),
        )


def _check_milestones(given: object) -> None:
    who = UnfreezeMilestones.name
    if not isinstance(given, tuple) or len(given) != 2:
        raise StrategyTypeError(
            f"{who}: takes two milestones, a tuple (int, int), and was given {given!r}: write strategy={EXAMPLE!r}"
        )
    first, second = (check_epoch(epoch, f"{who}: milestones {given!r}") for epoch in given)
    if first >= second:
        raise StrategyValueError(
            f"{who}: milestones {given!r} do not ascend, so the rest of the backbone would never unfreeze on its own: "
            f"give a second one later than {first}, or use ('freeze_unfreeze', {second}) to unfreeze all at once"
        )
