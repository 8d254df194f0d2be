"""The strategy `freeze`: the backbone stays frozen."""

from dataclasses import dataclass
from typing import ClassVar

from flash_strategies.schedule import Nothing, Phase


@dataclass(frozen=True)
class Freeze:
    """The backbone stays frozen, only the head trains."""

    name: ClassVar[str] = "freeze"

    def phases(self, max_epochs: int | None) -> tuple[Phase, ...]:
        """One phase in which nothing of the backbone trains."""
        return (Phase("frozen", 0, Nothing()),)
