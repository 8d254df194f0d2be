"""A step waits for nothing but gradients; stops, fences and saves are agreed on; bad storage ends no run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from conftest import Suites

SUITE = Path(__file__).parent / "training_suite.py"
FIRST, LOGGED = 25, (0, 1)
"""Steps before this are proved or measured; every tenth, and Lightning's tenth one later, are logged."""


@dataclass(frozen=True)
class Case:
    """A case of the suite."""

    name: str
    suite: Path = SUITE
    world_size: int = 2


def case(name: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", [Case(name)], ids=[name])


@pytest.mark.parametrize("case", [Case(f"calls_{setup}") for setup in ("ddp", "zero2", "zero3")], ids=lambda c: c.name)
def test_an_ordinary_step_waits_for_nothing_but_gradients(suites: Suites, case: Case) -> None:
    for rank in suites.result(SUITE, 2, case.name):
        steps = [step for number, step in enumerate(rank[:-1]) if number > FIRST and number % 10 not in LOGGED]
        assert len(steps) > 50
        ours = {
            line
            for step in steps
            for kind in ("reads", "waits")
            for line in step[kind]
            if "at deepspeed/" not in line  # its own questions: whether the norm of the gradients is a number
        }
        assert ours == set()
        looks = [sum(times for line, times in step["talks"].items() if "begin_max" in line) for step in steps]
        assert sum(looks) > 0, "ranks ask each other about stops"
        assert max(looks) == 1


@case("stop")
def test_one_ranks_stop_is_all_ranks_at_the_same_step(suites: Suites, case: Case) -> None:
    (first, summary, names), (second, _, _) = suites.result(SUITE, 2, case.name)
    assert first == second
    assert 20 < summary["steps"] == first <= 20 + 2 * 16 + 1
    assert summary["status"] == "stopped"
    assert names[0] == f"step_{first}"


@case("fence")
def test_a_newer_attempt_ends_training_on_all_ranks(suites: Suites, case: Case) -> None:
    for raised, late in suites.result(SUITE, 2, case.name):
        assert raised is not None, "an attempt that was superseded has trained to its end"
        assert "attempt 1 of this run was superseded by attempt 2" in raised
        assert not late, "it was noticed at the end of training only"


@case("slow")
def test_a_slow_write_is_waited_for_and_the_next_saves_are_skipped(suites: Suites, case: Case) -> None:
    events, summary, names = suites.result(SUITE, 2, case.name)[0]
    saves = [(event["event"], event["step"]) for event in events if event["event"].startswith("checkpoint")]
    skipped, saved = "checkpoint_skipped", "checkpoint"
    assert saves == [(skipped, 40), (skipped, 60), (saved, 20), (saved, 80), (saved, 100)]
    assert summary["status"] == "finished"
    assert names[0] == "step_100"


@case("fails")
def test_a_failed_write_ends_no_run_and_the_next_one_is_tried(suites: Suites, case: Case) -> None:
    events, summary, names = suites.result(SUITE, 2, case.name)[0]
    saves = [(event["event"], event["step"]) for event in events if event["event"].startswith("checkpoint")]
    failed, saved = "checkpoint_failed", "checkpoint"
    assert saves == [(failed, 20), (failed, 40), (failed, 60), (saved, 80), (saved, 100)]
    errors = [event["error"] for event in events if event["event"] == failed]
    assert "at saving step_20, rank 1" in errors[0]
    assert "Read-only file system" in errors[0]
    assert "not as expected" in errors[1]
    assert "Connection closed" in errors[2]
    assert (summary["status"], names) == ("finished", ["step_100", "step_80"])
