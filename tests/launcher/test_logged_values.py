"""Values of an epoch are of all ranks' samples, on every rank, before anything monitors them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from logged_suite import SHARES, X

from flash_launch.logged_values import reduced
from flash_strategies.lightning.private import EpochValue

if TYPE_CHECKING:
    from conftest import Suites


SUITE = Path(__file__).with_name("logged_suite.py")


@dataclass(frozen=True)
class Case:
    name: str
    suite: Path = SUITE
    world_size: int = 2


MEAN = float(X.mean())
WHOLE = {"val_mean": MEAN, "val_synced": MEAN, "val_sum": float(X.sum()), "val_max": 1024.0, "val_min": 1.0}


def named(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", [Case(name) for name in names], ids=names)


@named("one", "keys", "loaders")
def test_values_are_those_of_one_process_on_all_samples(case: Case, suites: Suites) -> None:
    for rank, found in enumerate(suites.result(case.suite, case.world_size, case.name)):
        assert isinstance(found, dict)
        validated, ended = found["validated"], found["ended"]
        suffixes = ("/dataloader_idx_0", "/dataloader_idx_1") if case.name == "loaders" else ("",)
        for name, value in WHOLE.items():
            for suffix in suffixes:
                assert validated[name + suffix] == pytest.approx(value), (rank, name)
        assert validated["val_whole"] == pytest.approx(MEAN)  # logged once per rank, of 7 and of 4 samples
        assert ended["train_mean"] == pytest.approx(float(X[[0, 1, 2, 3, 4, 5, 7, 8, 9, 10]].mean()))
        assert ended["train_step"] == pytest.approx(float(X[[3, 4, 5, 10]].mean()))  # the last step's batches
        assert found["monitored"] == pytest.approx(4 / 10)  # rank 1's share of the training samples
        assert validated["val_zero"] == rank + 5  # rank_zero_only: knowingly not of all


@named("keys")
def test_what_one_rank_logs_is_said_and_known_to_all(case: Case, suites: Suites) -> None:
    first, second = suites.result(case.suite, case.world_size, case.name)
    assert isinstance(first, dict)
    assert isinstance(second, dict)
    own = float(X[list(SHARES[1])].mean())
    assert first["validated"]["val_mine"] == second["validated"]["val_mine"] == pytest.approx(own)
    assert first["said"].count("val_mine is logged on rank 1 only, so it is of rank 1's samples") == 1
    assert "val_mine" not in second["said"]


def value(number: float, weight: float = 1, reduction: str = "mean") -> EpochValue:
    return EpochValue(("x",), reduction, number, weight)  # type: ignore[arg-type]


def test_equal_values_stay_as_they_are_and_no_number_stays_none() -> None:
    third = 0.3333333432674408
    assert reduced([value(third, 7), value(third, 4)]) == third
    assert math.isnan(reduced([value(1, 0), value(2, 0)]))
    for way in ("max", "min", "sum", "mean"):
        assert math.isnan(reduced([value(1, 1, way), value(math.nan, 1, way)]))
