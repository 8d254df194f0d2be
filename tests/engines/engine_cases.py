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


PRECISIONS = ("fp32", "bf16")
ZERO = SETUPS[1:]
TEMPLATED = tuple(f"template_{setup}" for setup in TEMPLATES)

# all on two ranks; on one and three what depends on how partitions are cut
NOOP = [
    *(Case(2, "noop", (setup, precision)) for setup in (*SETUPS, *TEMPLATED) for precision in PRECISIONS),
    *(Case(1, "noop", (setup, precision)) for setup in SETUPS for precision in PRECISIONS),
    *(Case(3, "noop", (setup, "fp32")) for setup in ZERO),
]
REFERENCE = [
    *(Case(2, "reference", (setup,)) for setup in (*SETUPS, *TEMPLATED)),
    *(Case(n, "reference", (setup,)) for n in (1, 3) for setup in ZERO),
]
UNUSED = [Case(2, "unused", (setup, precision)) for setup in (*SETUPS, *TEMPLATED) for precision in PRECISIONS]
AGREEMENT = [
    *(Case(2, "disagreement", (setup, how)) for setup in SETUPS for how in ("phase", "names", "lr", "step")),
    *(Case(3, "disagreement", (setup, "names")) for setup in ("ddp", "zero3")),
    *(Case(2, "absence", (setup,)) for setup in SETUPS),
    Case(3, "absence", ("zero2",)),
]
ALARMS = [
    Case(2, "alarm", (setup, how))
    for setup in SETUPS
    for how in ("frozen_one", "frozen_all", "ulp", "stuck", "lr", "start", "copy")
    if (setup, how) != ("zero3", "ulp")  # a slice has no copy that it could differ from
    and (setup == "zero3" or how != "copy")
]
CALM = [
    Case(2, "calm", (setup, how))
    for setup in SETUPS
    for how in ("zero_gradients", "warm_up", "unused", "tiny_bf16", "ones_bf16", "shrinks", "overflow")
    if (setup, how) != ("ddp", "overflow")  # has no scaler of its own
]
LINKED = [Case(1, "linked", (setup,)) for setup in ("zero1", "zero2")]
SCALE = [Case(1, "scale", (setup,)) for setup in ZERO]
SURVIVAL = [*(Case(2, "survival", (setup,)) for setup in ZERO), Case(3, "survival", ("zero2",))]
APART = [Case(2, "apart", (setup,)) for setup in ZERO]
BUFFERS = [Case(2, "buffers", (setup,)) for setup in SETUPS]
BUFFER_ALARMS = [Case(2, "buffer_alarm", ("ddp", how)) for how in ("frozen", "differs", "shape")]
LEAKS = [Case(2, "leaks", (setup,)) for setup in SETUPS]
BYTES = [
    *(Case(2, "bytes", (setup, precision)) for setup in SETUPS for precision in PRECISIONS),
    Case(3, "bytes", ("zero2", "fp32")),
]
RELOCATE = [Case(n, "relocate") for n in (2, 3)]

_ALL = [
    *(*NOOP, *REFERENCE, *UNUSED, *AGREEMENT, *ALARMS, *CALM, *LINKED, *SCALE, *SURVIVAL, *APART),
    *(*BUFFERS, *BUFFER_ALARMS, *LEAKS, *BYTES, *RELOCATE),
]
BY_NAME = {case.name: case for case in _ALL}
