"""The cases of the parity suite: strategies, setups, ranks, and what each phase is known to train."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch

SUITE = Path(__file__).with_name("parity_suite.py")
EPOCHS = 4
GLOBAL_BATCH = 8
BATCHES_PER_EPOCH = 3

STRATEGIES = ("no_freeze", "freeze", "freeze_unfreeze", "unfreeze_milestones", "guide", "refreeze")
"""`guide` is Flash's own example of a custom strategy, `refreeze` a strategy object that freezes again."""
SETUPS = ("ddp", "zero1", "zero2", "zero3")


@dataclass(frozen=True)
class Case:
    """One run: ours on the ranks, and the reference's in one process."""

    setup: str
    strategy: str
    net: str
    world_size: int = 2
    train_bn: bool = True
    optimizer: str = "adamw"
    schedule: str = "one_cycle"
    clip: float = 0.0
    accumulate: int = 1
    groups: bool = False
    """The user's own two param groups, of head and backbone."""
    bf16: bool = False

    suite = SUITE

    @property
    def name(self) -> str:
        """As tests are named."""
        net = self.net if self.net != "conv" else ("conv_bn" if self.train_bn else "conv_nobn")
        extra = [self.optimizer] * (self.optimizer != "adamw") + [self.schedule] * (self.schedule != "one_cycle")
        extra += ["clip"] * (self.clip > 0) + ["accumulate"] * (self.accumulate > 1) + ["groups"] * self.groups
        return "-".join([str(self.world_size), self.setup, self.strategy, net, *extra, *["bf16"] * self.bf16])


@dataclass
class Step:
    """What a rank held after an optimizer step."""

    epoch: int
    rates: dict[str, float]
    """Learning rate with which the step was made, by parameter name."""
    weights: dict[str, str]
    """Digest of each whole parameter's bytes."""
    gradients: list[str]
    """Names of parameters that hold a gradient."""


@dataclass
class Run:
    """All that a rank noted of one run."""

    steps: list[Step] = field(default_factory=list)
    weights: list[dict[str, torch.Tensor]] = field(default_factory=list)
    """Whole weights at the beginning and after each epoch."""
    buffers: list[dict[str, torch.Tensor]] = field(default_factory=list)
    chunks: list[list[tuple[str, str, int, torch.Tensor]]] = field(default_factory=list)
    """Of each epoch's end: (kind, parameter name, start, elements) of masters and moments on this rank."""
    counts: list[dict[str, float]] = field(default_factory=list)
    """Step counts of each epoch's end."""


def _cases() -> list[Case]:
    cases: list[Case] = []
    for setup in SETUPS:
        for strategy in STRATEGIES:
            cases += [
                Case(setup, strategy, "conv"),
                Case(setup, strategy, "conv", train_bn=False),
                Case(setup, strategy, "tied"),
                Case(setup, strategy, "tied", world_size=1),
            ]
        cases += [
            Case(setup, "unfreeze_milestones", "conv", world_size=4),
            Case(setup, "guide", "tied", world_size=4),
            Case(setup, "refreeze", "tied", world_size=4),
            Case(setup, "guide", "conv", world_size=1),
        ]
        cases += [
            Case(setup, "refreeze", "tied", clip=0.05),
            Case(setup, "refreeze", "tied", accumulate=2),
            Case(setup, "refreeze", "tied", optimizer="sgd"),
            Case(setup, "refreeze", "tied", schedule="lambda"),
            Case(setup, "refreeze", "tied", groups=True),
        ]
        for strategy in ("unfreeze_milestones", "refreeze"):
            cases.append(
                Case(setup, strategy, "conv", train_bn=False, clip=0.05, accumulate=2, schedule="lambda", groups=True)
            )
            if setup != "ddp":
                cases.append(Case(setup, strategy, "conv", bf16=True))
    return cases


CASES = _cases()
BY_NAME = {case.name: case for case in CASES}

# ---- what each strategy means, written out by hand for the two networks

LAYERS = {
    "conv": [
        ["backbone.0.weight"],
        ["backbone.1.weight", "backbone.1.bias"],
        ["backbone.3.weight"],
        ["backbone.4.weight", "backbone.4.bias"],
    ],
    "tied": [
        ["backbone.embed.weight"],
        ["backbone.first.weight", "backbone.first.bias"],
        ["backbone.middle.weight", "backbone.middle.bias"],
        ["backbone.spare.weight", "backbone.spare.bias"],
        ["backbone.branch.weight", "backbone.branch.bias"],
        ["backbone.first.weight", "backbone.again.bias"],  # again.weight is first.weight
        ["backbone.last.weight", "backbone.last.bias"],
    ],
}
OUTSIDE = {"conv": ["head.weight", "head.bias"], "tied": ["backbone.embed.weight", "head.bias"]}  # the head's weight
BATCH_NORMS = {"conv": {"backbone.1": LAYERS["conv"][1], "backbone.4": LAYERS["conv"][3]}, "tied": {}}
REFREEZE = {  # patterns of Matching, and the parameters they mean: a frozen middle, then less
    "conv": (
        (("backbone.0.*", "backbone.4.*"), [*LAYERS["conv"][0], *LAYERS["conv"][3]]),
        (("backbone.0.*",), LAYERS["conv"][0]),
    ),
    "tied": (
        (("backbone.first.*", "backbone.last.*"), [*LAYERS["tied"][1], *LAYERS["tied"][6]]),
        (("backbone.middle.*", "backbone.last.weight"), [*LAYERS["tied"][2], "backbone.last.weight"]),
    ),
}


def trainable_backbone(strategy: str, net: str, epoch: int) -> list[str]:
    """Names of the backbone's parameters that a strategy trains in an epoch."""
    layers = LAYERS[net]
    everything = [name for layer in layers for name in layer]
    match strategy:
        case "no_freeze":
            return everything
        case "freeze":
            return []
        case "freeze_unfreeze" | "guide":
            return everything if epoch >= 2 else []
        case "unfreeze_milestones":
            last_two = [name for layer in layers[-2:] for name in layer]
            return everything if epoch >= 2 else last_two if epoch >= 1 else []
    middle_frozen, less = REFREEZE[net]
    return [middle_frozen[1], everything, less[1], everything][epoch]


def trains(case: Case, epoch: int) -> set[str]:
    """Names of all that trains in an epoch."""
    names = {*OUTSIDE[case.net], *trainable_backbone(case.strategy, case.net, epoch)}
    if (
        case.strategy == "guide" and epoch < 2
    ):  # one's own callback freezes what it names, also where the head shares it
        names.discard("backbone.embed.weight")
    if case.train_bn:
        names.update(name for norm in BATCH_NORMS[case.net].values() for name in norm)
    return names


def held_batch_norms(case: Case, epoch: int) -> set[str]:
    """Names of the batch norms that normalise by their running statistics in an epoch."""
    live = trains(case, epoch)
    return {norm for norm, parameters in BATCH_NORMS[case.net].items() if not live.issuperset(parameters)}
