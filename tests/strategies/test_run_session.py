"""What code under flash-launch may ask of it."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from flash_launch import rank_guard
from flash_launch.checkpoint.attempts import STOPPED
from flash_strategies import run_session
from flash_strategies.run_session import EXIT_STOPPED, RunSession, current_session, note_stop, stop_requested


@pytest.fixture(autouse=True)
def nobody_asks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = signal.getsignal(signal.SIGUSR1)
    run_session._stop.clear()
    yield
    run_session._stop.clear()
    signal.signal(signal.SIGUSR1, before)


def test_the_run_is_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FLASH_LAUNCH_RUN", raising=False)
    assert current_session() is None
    monkeypatch.setenv("FLASH_LAUNCH_RUN", "/runs/a b")
    monkeypatch.setenv("FLASH_LAUNCH_ATTEMPT", "3")
    assert current_session() == RunSession(Path("/runs/a b"), 3)
    assert RunSession(Path("/runs/a"), 1).checkpoints == Path("/runs/a/checkpoints")


def test_a_stop_that_a_signal_asks_for_is_noted() -> None:
    assert not stop_requested()
    signal.signal(signal.SIGUSR1, note_stop)
    signal.raise_signal(signal.SIGUSR1)
    assert stop_requested()
    assert rank_guard.stop_requested()  # the same note, which the guard's handler of that signal writes


def test_a_newer_attempt_supersedes_an_older_one(tmp_path: Path) -> None:
    (tmp_path / "attempts").mkdir()
    for name in ("0001.json", "0002.json", ".0003.tmp"):
        (tmp_path / "attempts" / name).write_text("{}")
    assert [RunSession(tmp_path, attempt).superseded for attempt in (1, 2)] == [True, False]


def test_who_never_asks_does_not_look_for_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    run_session._looked.clear()
    note_stop()
    assert not run_session.looks_for_stops()
    assert stop_requested()
    assert run_session.looks_for_stops()


def test_the_exit_code_is_the_commands() -> None:
    assert EXIT_STOPPED == STOPPED == 75
