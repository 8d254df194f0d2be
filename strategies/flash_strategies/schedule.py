"""What trains when: phases, what each of them trains, and the protocol of a strategy. Pure Python."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Literal, Protocol, runtime_checkable

from flash_strategies.errors import StrategyTypeError, StrategyValueError
from flash_strategies.rate import Rate

Counting = Literal["parameters", "flash"]
COUNTINGS: tuple[Counting, ...] = ("parameters", "flash")


@dataclass(frozen=True)
class Nothing:
    """Nothing of the backbone trains."""


@dataclass(frozen=True)
class Everything:
    """All of the backbone trains."""


@dataclass(frozen=True)
class LastLayers:
    """The last layers of the backbone train.

    Raises:
        StrategyTypeError: a count that is neither an int nor a Fraction.
        StrategyValueError: a count below 1, a fraction outside of (0, 1], an unknown way of counting.
    """

    count: int | Fraction
    """How many layers, or which fraction of them (rounded up, at least one)."""
    counting: Counting = "parameters"
    """What counts as a layer: modules that hold parameters themselves, or Flash's leaf modules, activations too."""

    def __post_init__(self) -> None:
        check_layers(self.count, self.counting, "LastLayers")


@dataclass(frozen=True)
class Matching:
    """The parameters of the backbone train whose name under the task matches a pattern.

    Raises:
        StrategyTypeError: patterns that are not a tuple of strings.
        StrategyValueError: no pattern, or an empty one.
    """

    patterns: tuple[str, ...]
    """Patterns as in fnmatch, for example `("backbone.layer3.*", "backbone.layer4.*")`."""

    def __post_init__(self) -> None:
        given: object = self.patterns
        if not isinstance(given, tuple) or not all(isinstance(pattern, str) for pattern in given):
            raise StrategyTypeError(
                f"Matching takes a tuple of patterns, not {given!r}: write Matching(('backbone.layer4.*',))"
            )
        if not given or not all(given):
            raise StrategyValueError(
                f"Matching was given {given!r}, a pattern is missing: write Matching(('backbone.layer4.*',)), "
                "or use Nothing() to train nothing of the backbone"
            )


What = Nothing | Everything | LastLayers | Matching


@dataclass(frozen=True)
class Phase:
    """A stretch of training in which one fixed part of the backbone trains.

    What a phase unfreezes trains with the learning rate of its param group, or with the phase's `rate`: a share of the
    head's rate, ramped per epoch, to which a scheduler's factor applies as to the head's; see Rate.

    Raises:
        StrategyTypeError: a field of the wrong type.
        StrategyValueError: an empty name, or a negative epoch.
    """

    name: str
    """Told in plans, logs and metrics; unique within a strategy."""
    first_epoch: int
    """The phase begins at the start of this epoch; epochs count from 0."""
    what: What
    """What of the backbone trains. What lies outside of it always does."""
    rate: Rate | None = None
    """The learning rate of what this phase unfreezes, see Rate; None is that of its param group in the optimizer. It
    lasts as long as what was unfrozen trains, in later phases too; what is frozen and unfrozen again takes the rate of
    the phase that does so. The first phase, which unfreezes nothing, has none."""

    def __post_init__(self) -> None:
        name: object = self.name
        what: object = self.what
        if not isinstance(name, str):
            raise StrategyTypeError(f"a phase's name is a string, not {name!r}")
        if not name:
            raise StrategyValueError("a phase was given an empty name: name it for what trains, for example 'frozen'")
        check_epoch(self.first_epoch, f"phase {name!r}")
        if not isinstance(what, What):
            raise StrategyTypeError(
                f"phase {name!r} trains {what!r}: give Nothing(), Everything(), LastLayers(n) or Matching(patterns), "
                "an object of the class and not the class itself"
            )
        rate: object = self.rate
        if rate is not None and not isinstance(rate, Rate):
            raise StrategyTypeError(f"phase {name!r} has the rate {rate!r}: give Rate(lr=...) or Rate(ratio=...)")
        if rate is not None and self.first_epoch == 0:
            raise StrategyValueError(
                f"phase {name!r} begins at epoch 0, where nothing is unfrozen, and has the rate {rate}: unfreeze "
                "later, or give the backbone a param group with its rate in the optimizer"
            )


@runtime_checkable
class FinetuningStrategy(Protocol):
    """What trains when: any object with a name and phases."""

    @property
    def name(self) -> str:
        """What the strategy is called, without `_deepspeed`."""

    def phases(self, max_epochs: int | None) -> tuple[Phase, ...]:
        """The phases of a run of so many epochs, ascending, the first at epoch 0.

        `max_epochs` is None where the number is unknown. Callers go through `validated_phases`.

        Raises:
            StrategyValueError: an epoch past the end, defaults that need to know the end, ...
        """


def validated_phases(strategy: FinetuningStrategy, max_epochs: int | None) -> tuple[Phase, ...]:
    """The strategy's phases, checked: at least one, ascending from epoch 0, names unique, none past the last epoch.

    Args:
        strategy: whose phases are asked for.
        max_epochs: epochs of the run; None or -1: unknown.

    Raises:
        StrategyTypeError: phases() gave something else than phases.
        StrategyValueError: phases that are out of order, named twice or past the end; or what phases() raises.
    """
    epochs = known_epochs(max_epochs)
    given: object = strategy.phases(epochs)
    who = f"strategy {strategy.name!r}"
    if not isinstance(given, (tuple, list)):
        raise StrategyTypeError(f"{who}: phases() gave {given!r}, it must give a tuple of Phase")
    phases: list[Phase] = []
    for phase in given:
        if not isinstance(phase, Phase):
            raise StrategyTypeError(f"{who}: phases() gave {phase!r} among its phases, it must give a tuple of Phase")
        phases.append(phase)
    if not phases:
        raise StrategyValueError(
            f"{who}: phases() gave no phase, it must give at least one that begins at epoch 0, "
            "for example Phase('unfrozen', 0, Everything())"
        )
    if phases[0].first_epoch != 0:
        raise StrategyValueError(
            f"{who}: the first phase {phases[0].name!r} begins at epoch {phases[0].first_epoch}, it must begin at "
            "epoch 0: add a phase that says what trains before"
        )
    for before, after in pairwise(phases):
        if after.first_epoch <= before.first_epoch:
            raise StrategyValueError(
                f"{who}: phase {after.name!r} begins at epoch {after.first_epoch}, but {before.name!r} before it at "
                f"epoch {before.first_epoch}: each phase must begin later than the one before"
            )
    names = [phase.name for phase in phases]
    for name in names:
        if names.count(name) > 1:
            raise StrategyValueError(f"{who}: {names.count(name)} phases are named {name!r}, names must be unique")
    if phases[-1].first_epoch > 0:
        check_before_end(phases[-1].first_epoch, epochs, who)
    return tuple(phases)


def freezes(phases: Sequence[Phase]) -> bool:
    """Whether any of the phases freezes anything. Where none does, a task need not say what its backbone is."""
    return any(not isinstance(phase.what, Everything) for phase in phases)


def known_epochs(max_epochs: int | None) -> int | None:
    """The number of epochs, or None where it is unknown: None, or -1 as Lightning says it.

    Raises:
        StrategyTypeError: not an int.
        StrategyValueError: no epoch at all.
    """
    given: object = max_epochs
    if given is None:
        return None
    if not isinstance(given, int) or isinstance(given, bool):
        raise StrategyTypeError(f"max_epochs is {given!r}: give an int of 1 or more, or None where it is unknown")
    if given == -1:
        return None
    if given < 1:
        raise StrategyValueError(f"max_epochs is {given}: give 1 or more, or -1 (or None) where it is unknown")
    return given


def check_epoch(given: object, who: str) -> int:
    """The epoch, if it is one. `who` begins the message.

    Raises:
        StrategyTypeError: not an int; True and False are none.
        StrategyValueError: negative.
    """
    if not isinstance(given, int) or isinstance(given, bool):
        raise StrategyTypeError(f"{who}: an epoch is an int of 0 or more, not {given!r}")
    if given < 0:
        raise StrategyValueError(f"{who}: epoch {given} does not exist, epochs count from 0: give 0 or more")
    return given


def check_layers(count: object, counting: object, who: str) -> None:
    """Check a number of layers and the way they are counted. `who` begins the message.

    Raises:
        StrategyTypeError: a count that is neither an int nor a Fraction.
        StrategyValueError: a count below 1, a fraction outside of (0, 1], an unknown way of counting.
    """
    if not isinstance(count, (int, Fraction)) or isinstance(count, bool):
        raise StrategyTypeError(
            f"{who}: the number of layers is an int, or a Fraction such as Fraction(1, 4) for a quarter, not {count!r}"
        )
    if isinstance(count, Fraction) and not 0 < count <= 1:
        raise StrategyValueError(f"{who}: {count} of the layers is not possible: give a Fraction above 0 and up to 1")
    if count <= 0:
        raise StrategyValueError(
            f"{who}: the last {count} layers would train nothing: give 1 or more, or use 'freeze' to train none"
        )
    if counting not in COUNTINGS:
        raise StrategyValueError(f"{who}: layers cannot be counted by {counting!r}: use one of {', '.join(COUNTINGS)}")


def check_before_end(epoch: int, max_epochs: int | None, who: str) -> None:
    """Check that a run of so many epochs reaches the epoch; a run of unknown length may.

    Raises:
        StrategyValueError: the epoch never begins.
    """
    epochs = known_epochs(max_epochs)
    if epochs is not None and epoch >= epochs:
        raise StrategyValueError(
            f"{who}: epoch {epoch} never begins, a run of {epochs} epoch{'s' * (epochs != 1)} ends with epoch "
            f"{epochs - 1} (epochs count from 0): give an epoch up to {epochs - 1}, or train for {epoch + 1} or more"
        )


def epochs_for_defaults(max_epochs: int | None, least: int, example: tuple[str, object]) -> int:
    """The number of epochs that a strategy's defaults are taken from; `example` shows how to do without them.

    Raises:
        StrategyValueError: the number is unknown, or there are fewer than `least`.
    """
    epochs = known_epochs(max_epochs)
    instead = f"give max_epochs of {least} or more, or say when to unfreeze, for example strategy={example!r}"
    if epochs is None:
        raise StrategyValueError(f"{example[0]}: its defaults need to know how many epochs the run has: {instead}")
    if epochs < least:
        raise StrategyValueError(
            f"{example[0]}: its defaults need {least} epochs or more, the run has {epochs}: {instead}"
        )
    return epochs
