"""The lookout: what is asked at one step is known at a later one, looks follow the steps' speed, and none waits."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from flash_launch.checkpoint import lookout as lookouts
from flash_launch.checkpoint.attempts import Fence, begin
from flash_launch.checkpoint.lookout import Lookout, Reasons
from flash_strategies import agreed_looks
from flash_strategies.agreement import ControlGroup


class Clock:
    """Time that passes when told."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    for module in (agreed_looks, lookouts):
        monkeypatch.setattr(module, "time", found)
    return found


def looks(watch: Lookout, clock: Clock, seconds: float, steps: int, first: int = 1) -> list[int]:
    """The steps after which there is a look, where each step takes so long."""
    found = []
    for step in range(first, first + steps):
        clock.now += seconds
        if watch.due(step):
            watch.answer()
            watch.ask(step, Reasons())
            found.append(step)
    return found


@pytest.mark.parametrize(("seconds", "interval"), [(2.0, 1), (0.1, 2), (0.05, 4), (0.001, 16)])
def test_looks_follow_the_speed_of_the_steps(tmp_path: Path, clock: Clock, seconds: float, interval: int) -> None:
    found = looks(Lookout(ControlGroup(), Fence(tmp_path, 1)), clock, seconds, 100)
    assert found[:2] == [1, 2], "until a step was timed, there is a look after each"
    between = [after - before for before, after in itertools.pairwise(found[4:])]
    assert set(between) <= {interval, interval - 1}, "time is not exact"
    assert between


def test_looks_are_close_together_after_an_agreement_that_waits(tmp_path: Path, clock: Clock) -> None:
    watch = Lookout(ControlGroup(), Fence(tmp_path, 1))
    looks(watch, clock, 0.001, 50)
    watch.now(50, Reasons())
    assert looks(watch, clock, 0.5, 3, first=51) == [51, 52, 53], "the next phase's steps may be slower"


def test_an_answer_is_that_of_the_step_at_which_was_asked(tmp_path: Path, clock: Clock) -> None:
    watch = Lookout(ControlGroup(), Fence(tmp_path, 1))
    assert watch.answer() is None
    watch.ask(1, Reasons(stop=1, outcome=2))
    assert watch.answer() == Reasons(stop=1, outcome=2)
    assert watch.answer() is None
    assert watch.now(2, Reasons(save=1)) == Reasons(save=1)


def test_a_newer_attempt_is_found_within_seconds_and_not_forgotten(tmp_path: Path, clock: Clock) -> None:
    begin(tmp_path)
    watch = Lookout(ControlGroup(), Fence(tmp_path, 1))
    begin(tmp_path)
    assert not watch.fenced(), "the folder is not read at each look"
    clock.now += 6
    assert watch.fenced()
    assert watch.fenced()


def test_one_rank_waits_for_nobody() -> None:
    wait = ControlGroup().begin_max(torch.tensor([3, -2]))
    assert wait().tolist() == [3, -2]
