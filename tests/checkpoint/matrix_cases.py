"""The cases of the matrix: which run was stored where, and on what it goes on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

SUITE = Path(__file__).with_name("matrix_suite.py")
SAVED = "matrix_saved"
"""Folder of the unstopped runs, beside those of the ranks."""
SETUPS = ("ddp", "zero1", "zero2", "zero3")
RANKS = (1, 2, 4)
SAVING_RANKS = 2
GLOBAL_BATCH = 24  # for 1, 2, 3 and 4 ranks
BATCHES_PER_EPOCH = 3
EPOCHS = 5
TRANSITION = 2
"""The epoch that all positions lie around: its start freezes what trained and unfreezes what was frozen."""

POSITIONS = {
    "before": TRANSITION * BATCHES_PER_EPOCH - 1,
    "at": TRANSITION * BATCHES_PER_EPOCH,
    "after": TRANSITION * BATCHES_PER_EPOCH + 1,
    "mid-epoch": (TRANSITION + 1) * BATCHES_PER_EPOCH + 2,
}
"""Optimizer steps done. The middle is that of an epoch which makes no transition; the one after it does."""


@dataclass(frozen=True)
class Unstopped:
    """A run from start to end on two ranks, with a checkpoint at each step."""

    setup: str
    strategy: str = "swap"
    net: str = "plain"

    suite = SUITE
    world_size = SAVING_RANKS

    @property
    def name(self) -> str:
        """As its folder is named."""
        return "-".join([*[self.net] * (self.net != "plain"), *[self.strategy] * (self.strategy != "swap"), self.setup])


@dataclass(frozen=True)
class Case:
    """A run that goes on from a checkpoint of an unstopped one."""

    unstopped: Unstopped
    position: str
    setup: str
    world_size: int

    suite = SUITE

    @property
    def name(self) -> str:
        """As tests are named."""
        return f"{self.unstopped.name}-{self.position}-to-{self.setup}-{self.world_size}"

    @property
    def same(self) -> bool:
        """Whether it goes on as it was."""
        return (self.setup, self.world_size) == (self.unstopped.setup, SAVING_RANKS)


class State(NamedTuple):
    """What a rank holds at an optimizer-step boundary."""

    step: int
    trainable: tuple[str, ...]
    weights: dict[str, torch.Tensor]
    """Whole."""
    chunks: list[tuple[str, str, int, torch.Tensor]]
    """(kind, parameter name, start, elements) of masters and moments on this rank."""
    counts: dict[str, float]
    """The optimizer's step count by parameter name."""
    rates: dict[str, float]
    """Learning rate of the next step by parameter name."""


@dataclass
class Run:
    """What a rank knows of a run, and what the run left in its folder."""

    states: dict[int, State]
    """By optimizer step; of a run that went on, where it did."""
    weights: dict[str, torch.Tensor]
    """model.safetensors."""
    summary: dict[str, object]
    """summary.json."""
    rows: list[dict[str, object]]
    """metrics.jsonl."""


def _whole() -> list[Case]:
    return [
        Case(Unstopped(saved), position, resumed, ranks)
        for saved in SETUPS
        for position in POSITIONS
        for resumed in SETUPS
        for ranks in RANKS
    ]


def _covering() -> list[Case]:
    """Every pair of (save setup, position, resume setup, ranks) in 16 cases: an orthogonal array over GF(4)."""
    times_w = (0, 2, 3, 1)
    cases = []
    for saved, setup in enumerate(SETUPS):
        for place, position in enumerate(POSITIONS):
            resumed, ranks = SETUPS[saved ^ place], (1, 2, 4, 2)[saved ^ times_w[place]]
            cases.append(Case(Unstopped(setup), position, resumed, ranks))
    return cases


WHOLE = _whole()
SAME = [
    Case(Unstopped(setup), position, setup, SAVING_RANKS) for setup, position in zip(SETUPS, POSITIONS, strict=True)
]
"""Each setup and each position once where all must be bit-identical."""
COVERING = list(dict.fromkeys([*_covering(), *SAME]))
NORMS = [
    Case(Unstopped(setup, net="norms"), position, setup, SAVING_RANKS) for setup in SETUPS for position in POSITIONS
]
"""With batch norms and dropout, which depend on the batch and the random state of each rank."""
NORMS_COVERING = [case for case in NORMS if (case.unstopped.setup, case.position) == ("zero3", "mid-epoch")]
THREE = [Case(Unstopped("zero2"), "mid-epoch", "zero3", 3)]

DEEPSPEED = ("no_freeze_deepspeed", "freeze_deepspeed", "freeze_unfreeze_deepspeed", "unfreeze_milestones_deepspeed")
"""Flash's guide: "finetuning with DeepSpeed doesn't yet support the loading and storing of its parameters"."""
LIMITATION = [
    Case(Unstopped("zero2", strategy), position, "zero2", ranks)
    for strategy in DEEPSPEED
    for position, ranks in (("before", 4), ("after", 1))
]

BY_NAME: dict[str, Unstopped | Case] = {
    **{case.name: case for case in (*WHOLE, *NORMS, *THREE, *LIMITATION)},
    **{case.unstopped.name: case.unstopped for case in (*WHOLE, *NORMS, *THREE, *LIMITATION)},
}
