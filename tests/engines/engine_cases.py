"""The cases of the engine suite, by name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

SETUPS = ("ddp", "zero1", "zero2", "zero3")
PHASES = ("d", "cde", "abcde", "bd", "bcde", "abcde")
"""Layers that train, phase by phase: unfreezing from the end, a frozen middle, and refreezing."""
STEPS = 3
TEMPLATES = ("zero1", "zero2", "zero2_offload", "zero3", "zero3_offload")


@dataclass(frozen=True)
class Case:
    """A function of the suite and its arguments."""

    world_size: int
    what: str
    arguments: tuple[str, ...] = ()

    suite = Path(__file__).with_name("engine_suite.py")

    @property
    def name(self) -> str:
        """As tests are named."""
        return "-".join([str(self.world_size), self.what, *self.arguments])


NOOP = [
    *(Case(n, "noop", (setup, p)) for n in (1, 2, 3) for setup in SETUPS for p in ("fp32", "bf16")),
    *(Case(2, "noop", (f"template_{setup}", p)) for setup in TEMPLATES for p in ("fp32", "bf16")),
]
REFERENCE = [Case(n, "reference", (setup,)) for n in (1, 2, 3) for setup in SETUPS] + [
    Case(2, "reference", (f"template_{setup}",)) for setup in TEMPLATES
]
UNUSED = [
    *(Case(2, "unused", (setup, p)) for setup in SETUPS for p in ("fp32", "bf16")),
    *(Case(2, "unused", (f"template_{setup}", p)) for setup in TEMPLATES for p in ("fp32", "bf16")),
]

BY_NAME = {case.name: case for case in [*NOOP, *REFERENCE, *UNUSED]}
