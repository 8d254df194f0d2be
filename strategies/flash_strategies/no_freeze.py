"""The strategy `no_freeze`: the backbone trains from the start."""

from dataclasses import dataclass
from typing import ClassVar

from flash_strategies.schedule import Everything, Phase


@dataclass(frozen=True)
class NoFreeze:
    """The backbone and the head train from the start."""

    name: ClassVar[str] = "no_freeze"

    def phases(self, max_epochs: int | None) -> tuple[Phase, ...]:
        """One phase in which everything trains."""
        return (Phase("unfrozen", 0, Everything()),)
