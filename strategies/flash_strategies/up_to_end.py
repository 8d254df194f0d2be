"""A strategy as far as a run gets: phases past its last epoch are left out, not refused. Pure Python."""

from dataclasses import dataclass

from flash_strategies.errors import StrategyValueError
from flash_strategies.schedule import FinetuningStrategy, Phase, known_epochs, validated_phases


@dataclass(frozen=True)
class UpToEnd:
    """Another strategy's phases that a run reaches."""

    strategy: FinetuningStrategy
    """The strategy."""

    @property
    def name(self) -> str:
        """The other's."""
        return self.strategy.name

    def phases(self, max_epochs: int | None) -> tuple[Phase, ...]:
        """Those that begin before the end. Raises what the other raises but for an epoch past the end."""
        return self._split(max_epochs)[0]

    def left_out(self, max_epochs: int | None) -> tuple[Phase, ...]:
        """Those that never begin."""
        return self._split(max_epochs)[1]

    def _split(self, max_epochs: int | None) -> tuple[tuple[Phase, ...], tuple[Phase, ...]]:
        epochs = known_epochs(max_epochs)
        try:
            return validated_phases(self.strategy, epochs), ()
        except StrategyValueError as error:
            if epochs is None:
                raise
            try:
                phases = validated_phases(self.strategy, None)
            except StrategyValueError:  # not about the end
                raise error from None
        reached = tuple(phase for phase in phases if phase.first_epoch < epochs)
        return reached, phases[len(reached) :]
