"""Schedules: the phases of each strategy, what is refused and why, and the central check of anyone's phases."""

from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import pytest

from flash_strategies.errors import StrategyTypeError, StrategyValueError
from flash_strategies.freeze import Freeze
from flash_strategies.freeze_unfreeze import FreezeUnfreeze
from flash_strategies.no_freeze import NoFreeze
from flash_strategies.schedule import (
    Everything,
    FinetuningStrategy,
    LastLayers,
    Matching,
    Nothing,
    Phase,
    freezes,
    validated_phases,
)
from flash_strategies.unfreeze_milestones import UnfreezeMilestones

FROZEN = Phase("frozen", 0, Nothing())
QUARTER = LastLayers(Fraction(1, 4))


@dataclass(frozen=True)
class Own:
    """A strategy of somebody else's, whose phases may be anything."""

    given: object
    name: ClassVar[str] = "own"

    def phases(self, max_epochs: int | None) -> tuple[Phase, ...]:
        return self.given  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("strategy", "max_epochs", "expected"),
    [
        (NoFreeze(), 1, (Phase("unfrozen", 0, Everything()),)),
        (NoFreeze(), None, (Phase("unfrozen", 0, Everything()),)),
        (Freeze(), -1, (FROZEN,)),
        (FreezeUnfreeze(7), 10, (FROZEN, Phase("unfrozen", 7, Everything()))),
        (FreezeUnfreeze(9), 10, (FROZEN, Phase("unfrozen", 9, Everything()))),
        (FreezeUnfreeze(7), None, (FROZEN, Phase("unfrozen", 7, Everything()))),
        (FreezeUnfreeze(7), -1, (FROZEN, Phase("unfrozen", 7, Everything()))),
        (FreezeUnfreeze(0), 1, (Phase("unfrozen", 0, Everything()),)),
        (
            UnfreezeMilestones((3, 8), 2),
            10,
            (FROZEN, Phase("last_layers", 3, LastLayers(2)), Phase("unfrozen", 8, Everything())),
        ),
        (
            UnfreezeMilestones((0, 1), 2),
            2,
            (Phase("last_layers", 0, LastLayers(2)), Phase("unfrozen", 1, Everything())),
        ),
        (
            UnfreezeMilestones((3, 8), Fraction(1, 2), "flash"),
            None,
            (FROZEN, Phase("last_layers", 3, LastLayers(Fraction(1, 2), "flash")), Phase("unfrozen", 8, Everything())),
        ),
    ],
)
def test_phases(strategy: FinetuningStrategy, max_epochs: int | None, expected: tuple[Phase, ...]) -> None:
    assert validated_phases(strategy, max_epochs) == expected
    assert strategy.phases(max_epochs) == expected


@pytest.mark.parametrize(("max_epochs", "epoch"), [(2, 1), (3, 2), (4, 2), (5, 3), (10, 5)])
def test_unfreezes_at_half_of_the_epochs_by_default(max_epochs: int, epoch: int) -> None:
    assert validated_phases(FreezeUnfreeze(), max_epochs) == (FROZEN, Phase("unfrozen", epoch, Everything()))


@pytest.mark.parametrize(
    ("max_epochs", "first", "second"), [(3, 1, 2), (4, 2, 3), (5, 2, 4), (6, 2, 4), (7, 3, 5), (9, 3, 6), (100, 34, 67)]
)
def test_milestones_are_at_thirds_by_default(max_epochs: int, first: int, second: int) -> None:
    expected = (FROZEN, Phase("last_layers", first, QUARTER), Phase("unfrozen", second, Everything()))
    assert validated_phases(UnfreezeMilestones(), max_epochs) == expected


@pytest.mark.parametrize(
    ("strategy", "max_epochs", "said"),
    [
        (FreezeUnfreeze(10), 10, "epoch 10 never begins.*ends with epoch 9.*up to 9, or train for 11"),
        (FreezeUnfreeze(1), 1, "a run of 1 epoch ends"),
        (UnfreezeMilestones((3, 8), 2), 8, "epoch 8 never begins"),
        (FreezeUnfreeze(None), 1, "need 2 epochs or more, the run has 1.*max_epochs of 2.*'freeze_unfreeze', 7"),
        (FreezeUnfreeze(None), None, "need to know how many epochs"),
        (FreezeUnfreeze(None), -1, "need to know how many epochs"),
        (UnfreezeMilestones(None, 2), 2, "need 3 epochs or more, the run has 2"),
        (UnfreezeMilestones(None, 2), -1, "need to know how many epochs"),
        (Freeze(), 0, "max_epochs is 0: give 1 or more"),
        (Freeze(), -2, "max_epochs is -2"),
    ],
)
def test_a_run_too_short_is_refused(strategy: FinetuningStrategy, max_epochs: int | None, said: str) -> None:
    with pytest.raises(StrategyValueError, match=said):
        validated_phases(strategy, max_epochs)


@pytest.mark.parametrize("max_epochs", [True, 2.0, "3"])
def test_max_epochs_of_another_type_is_refused(max_epochs: int) -> None:
    with pytest.raises(StrategyTypeError, match="max_epochs is"):
        validated_phases(Freeze(), max_epochs)


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (lambda: FreezeUnfreeze(True), StrategyTypeError, "int of 0 or more, not True"),
        (lambda: FreezeUnfreeze(7.0), StrategyTypeError, "not 7.0"),  # type: ignore[arg-type]
        (lambda: FreezeUnfreeze(-1), StrategyValueError, "epoch -1 does not exist"),
        (lambda: UnfreezeMilestones((5, 5), 2), StrategyValueError, r"\(5, 5\) do not ascend"),
        (lambda: UnfreezeMilestones((8, 3), 2), StrategyValueError, r"\(8, 3\) do not ascend"),
        (lambda: UnfreezeMilestones((-1, 3), 2), StrategyValueError, "epoch -1 does not exist"),
        (lambda: UnfreezeMilestones((False, 3), 2), StrategyTypeError, "not False"),
        (lambda: UnfreezeMilestones((3, 8, 9), 2), StrategyTypeError, "two milestones"),  # type: ignore[arg-type]
        (lambda: UnfreezeMilestones((3, 8), 0), StrategyValueError, "the last 0 layers would train nothing"),
        (lambda: UnfreezeMilestones((3, 8), -2), StrategyValueError, "the last -2 layers"),
        (lambda: UnfreezeMilestones((3, 8), True), StrategyTypeError, "not True"),
        (lambda: UnfreezeMilestones((3, 8), 0.25), StrategyTypeError, r"Fraction\(1, 4\)"),  # type: ignore[arg-type]
        (lambda: UnfreezeMilestones((3, 8), Fraction(5, 4)), StrategyValueError, "5/4 of the layers"),
        (lambda: LastLayers(Fraction(0)), StrategyValueError, "0 of the layers"),
        (lambda: LastLayers(1, "leaves"), StrategyValueError, "parameters, flash"),  # type: ignore[arg-type]
        (lambda: Matching("backbone.*"), StrategyTypeError, "a tuple of patterns"),  # type: ignore[arg-type]
        (lambda: Matching(()), StrategyValueError, "a pattern is missing"),
        (lambda: Matching(("",)), StrategyValueError, "a pattern is missing"),
        (lambda: Phase("", 0, Nothing()), StrategyValueError, "empty name"),
        (lambda: Phase(3, 0, Nothing()), StrategyTypeError, "is a string"),  # type: ignore[arg-type]
        (lambda: Phase("a", -1, Nothing()), StrategyValueError, "epoch -1"),
        (lambda: Phase("a", 0, Nothing), StrategyTypeError, "not the class"),  # type: ignore[arg-type]
        (lambda: Phase("a", 0, None), StrategyTypeError, "Everything()"),  # type: ignore[arg-type]
    ],
)
def test_what_makes_no_sense_is_refused_with_a_reason(make: object, error: type[Exception], said: str) -> None:
    assert callable(make)
    with pytest.raises(error, match=said):
        make()


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        (None, StrategyTypeError, "gave None, it must give a tuple"),
        (("frozen",), StrategyTypeError, "gave 'frozen' among its phases"),
        ((), StrategyValueError, "gave no phase"),
        ((Phase("a", 1, Nothing()),), StrategyValueError, "must begin at epoch 0"),
        ((FROZEN, Phase("b", 0, Everything())), StrategyValueError, "must begin later"),
        ((FROZEN, Phase("b", 3, QUARTER), Phase("c", 2, Everything())), StrategyValueError, "'c' begins at epoch 2"),
        ((FROZEN, Phase("frozen", 3, QUARTER)), StrategyValueError, "2 phases are named 'frozen'"),
        ((FROZEN, Phase("b", 10, Everything())), StrategyValueError, "epoch 10 never begins"),
    ],
)
def test_the_phases_of_any_strategy_are_checked(given: object, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        validated_phases(Own(given), 10)


def test_a_strategy_of_somebody_elses_needs_no_base_class() -> None:
    refreeze = (FROZEN, Phase("middle", 2, Matching(("backbone.1.*",))), Phase("again", 4, Nothing()))
    assert isinstance(Own(refreeze), FinetuningStrategy)
    assert validated_phases(Own(list(refreeze)), 10) == refreeze


def test_only_a_schedule_that_freezes_needs_a_backbone() -> None:
    assert not freezes(NoFreeze().phases(1))
    assert not freezes(FreezeUnfreeze(0).phases(1))
    assert freezes(Freeze().phases(1))
    assert freezes(UnfreezeMilestones((0, 1), 1).phases(2))
