"""`Rate` and `with_rate`: numbers in, numbers out, and what is refused."""

import dataclasses
import math

import pytest

from flash_strategies import (
    Everything,
    FreezeUnfreeze,
    Nothing,
    Phase,
    Rate,
    StrategyTypeError,
    StrategyValueError,
    parse_strategy,
    validated_phases,
    with_rate,
)


def rates(rate: Rate, heads: list[float], unfrozen: int = 2) -> list[float]:
    """The rate in each epoch from the unfreeze on, by the head's in each epoch."""
    epochs = range(unfrozen, unfrozen + len(heads))
    return [
        rate.at(epoch, head, unfrozen=unfrozen, head_then=heads[0]) for epoch, head in zip(epochs, heads, strict=True)
    ]


@pytest.mark.parametrize(
    ("rate", "heads", "expected"),
    [
        (Rate(ratio=0.25), [0.1, 0.1, 0.1], [0.025, 0.025, 0.025]),
        (Rate(lr=0.01), [0.1, 0.1, 0.1], [0.01, 0.01, 0.01]),
        # a scheduler's factor applies to both
        (Rate(ratio=0.25), [0.1, 0.05, 0.01], [0.025, 0.0125, 0.0025]),
        (Rate(lr=0.01), [0.1, 0.05, 0.2], [0.01, 0.005, 0.02]),
        # the ramp begins an epoch after the unfreeze and ends at the head's
        (Rate(ratio=0.1, ramp=2), [1.0] * 6, [0.1, 0.2, 0.4, 0.8, 1.0, 1.0]),
        (Rate(ratio=0.1, ramp=2, align=False), [1.0] * 6, [0.1, 0.2, 0.4, 0.8, 1.6, 3.2]),
        (Rate(ratio=0.1, ramp=2), [1.0, 0.5, 0.5, 0.1, 0.1], [0.1, 0.1, 0.2, 0.08, 0.1]),
        (Rate(ratio=0.4, ramp=0.5), [1.0] * 3, [0.4, 0.2, 0.1]),
        # above the head's: kept without a ramp, aligned with one
        (Rate(lr=3.0), [1.0] * 3, [3.0] * 3),
        (Rate(lr=3.0, ramp=2), [1.0] * 3, [3.0, 1.0, 1.0]),
        # a function is given what Lightning gives its lambda_func: the epoch + 1
        (Rate(ratio=0.01, ramp=lambda begun: begun), [1.0] * 4, [0.01, 0.04, 0.2, 1.0]),
        (Rate(lr=0.1, ramp=2), [0.0, 0.5, 0.5], [0.0, 0.5, 0.5]),
    ],
)
def test_rate_by_epoch_and_the_heads_rate(rate: Rate, heads: list[float], expected: list[float]) -> None:
    assert rates(rate, heads) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({}, StrategyValueError, "no rate is given: give lr, or ratio"),
        ({"ramp": 2.0}, StrategyValueError, "the ramp 2.0 has no rate to begin with: give lr, or ratio"),
        ({"lr": 0.1, "ratio": 0.1}, StrategyValueError, r"both lr=0.1 and ratio=0.1 say .* give one"),
        ({"lr": -0.1}, StrategyValueError, "lr is -0.1, it must be a finite number above 0"),
        ({"ratio": 0}, StrategyValueError, "ratio is 0, it must be a finite number above 0"),
        ({"ratio": math.nan}, StrategyValueError, "ratio is nan"),
        ({"lr": 0.1, "ramp": math.inf}, StrategyValueError, "ramp is inf"),
        ({"lr": "0.1"}, StrategyTypeError, "lr is '0.1', it must be a number"),
        ({"lr": True}, StrategyTypeError, "lr is True"),
        ({"lr": 0.1, "align": 1}, StrategyTypeError, "align is 1, it is True or False"),
    ],
)
def test_what_is_no_rate(given: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Rate(**given)  # type: ignore[arg-type]


def test_a_ramp_that_gives_no_number() -> None:
    with pytest.raises(StrategyValueError, match=r"ramp\(4\) is -1.0, it must be a finite number above 0"):
        Rate(ratio=0.1, ramp=lambda begun: -1.0).share(0.1, 2, 3)
    with pytest.raises(StrategyTypeError, match=r"ramp\(4\) is None"):
        Rate(ratio=0.1, ramp=lambda begun: None).share(0.1, 2, 3)  # type: ignore[arg-type,return-value]


def test_a_rate_in_words() -> None:
    assert str(Rate(lr=1e-4)) == "rate 0.0001"
    assert str(Rate(ratio=0.1, ramp=2.0)) == "0.1 of the head's rate, times 2 per epoch up to the head's"
    assert str(Rate(ratio=0.1, ramp=float, align=False)) == "0.1 of the head's rate, by a function per epoch"


def test_a_phase_takes_a_rate() -> None:
    assert Phase("unfrozen", 2, Everything(), Rate(ratio=0.1)).rate == Rate(ratio=0.1)
    with pytest.raises(StrategyTypeError, match=r"phase 'unfrozen' has the rate 0.1: give Rate\(lr=...\)"):
        Phase("unfrozen", 2, Everything(), 0.1)  # type: ignore[arg-type]
    with pytest.raises(StrategyValueError, match="phase 'all' begins at epoch 0, where nothing is unfrozen"):
        Phase("all", 0, Everything(), Rate(ratio=0.1))


class Refreezing:
    """A user's strategy."""

    name = "refreezing"

    def phases(self, max_epochs: int | None) -> tuple[Phase, ...]:
        return Phase("a", 0, Nothing()), Phase("b", 1, Everything()), Phase("c", 2, Nothing())


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        (("freeze_unfreeze", 2), [False, True]),
        (["unfreeze_milestones", [[1, 2], 1]], [False, True, True]),
        (Refreezing(), [False, True, False]),
        (FreezeUnfreeze(1), [False, True]),
    ],
)
def test_with_rate_gives_it_to_what_unfreezes(strategy: object, expected: list[bool]) -> None:
    rate = Rate(ratio=0.1)
    spec = with_rate(strategy, rate)
    plain = parse_strategy(strategy)
    assert (spec.name, spec.deepspeed, spec.strategy.name) == (plain.name, plain.deepspeed, plain.strategy.name)
    phases = validated_phases(spec.strategy, 4)
    assert [phase.rate for phase in phases] == [rate if one else None for one in expected]
    assert [dataclasses.replace(phase, rate=None) for phase in phases] == list(validated_phases(plain.strategy, 4))


def test_with_rate_keeps_the_setup_of_the_name() -> None:
    assert with_rate(("freeze_unfreeze_deepspeed", 2), Rate(lr=0.1)).deepspeed


@pytest.mark.parametrize("strategy", ["no_freeze", "freeze", ("freeze_unfreeze", 0)])
def test_a_strategy_that_unfreezes_nothing_takes_no_rate(strategy: object) -> None:
    with pytest.raises(StrategyValueError, match=r"unfreezes nothing after the start.*\(rate 0.1\): leave it out"):
        validated_phases(with_rate(strategy, Rate(lr=0.1)).strategy, 4)


def test_one_rate_only() -> None:
    rated = with_rate(("freeze_unfreeze", 2), Rate(lr=0.1))
    with pytest.raises(StrategyValueError, match="'unfrozen' has a rate already"):
        validated_phases(with_rate(rated, Rate(lr=0.2)).strategy, 4)
    with pytest.raises(StrategyTypeError, match=r"the rate is 0.1: give Rate\(lr=...\)"):
        with_rate(("freeze_unfreeze", 2), 0.1)  # type: ignore[arg-type]
