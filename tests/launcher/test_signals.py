"""Signals: which ones ask a launch to save and stop, which end it, and what data workers make of them."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from flash_launch.executors import agent
from flash_launch.executors.agent import Signals

TERM, USR1, INT, HUP = signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP


@pytest.mark.parametrize(
    ("received", "outside", "in_job"),
    [
        ((), None, None),
        ((TERM,), None, None),
        ((USR1, USR1), None, None),
        ((USR1, TERM), None, None),  # a warning, and the limit itself, at which a save may still be under way
        ((TERM, TERM), TERM, None),  # Slurm kills by itself what has not ended by its KillWait
        ((TERM, INT), INT, INT),
        ((INT,), INT, INT),
        ((USR1, HUP), HUP, HUP),
    ],
)
def test_what_ends_a_run_at_once(
    monkeypatch: pytest.MonkeyPatch, received: tuple[int, ...], outside: int | None, in_job: int | None
) -> None:
    monkeypatch.setattr(agent, "_BURST_SECONDS", 0.0)
    for variable, expected in (("", outside), ("7", in_job)):
        if variable:
            monkeypatch.setenv("SLURM_JOB_ID", variable)
        else:
            monkeypatch.delenv("SLURM_JOB_ID", raising=False)
        signals = Signals()
        for number in received:
            signals.note(number, None)
        assert signals.hard == expected


def test_several_sigterms_at_once_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """As slurmd sends them, and who signals a process and its group."""
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    signals = Signals()
    for _ in range(3):
        signals.note(TERM, None)
    assert (signals.received, signals.hard) == ([TERM], None)
    signals.overdue = True
    assert signals.hard == TERM


WORKER = """
import multiprocessing, os, signal, subprocess, time
from flash_launch.rank_guard import _heed_only_parent

os.register_at_fork(after_in_child=_heed_only_parent)
worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,), daemon=True)
worker.start()
time.sleep(0.3)
subprocess.run(["kill", "-TERM", str(worker.pid)], check=True)
worker.join(0.5)
print("alive" if worker.is_alive() else "dead")
worker.terminate()
worker.join(10)
print("alive" if worker.is_alive() else "dead")
"""


def test_a_data_worker_heeds_its_ranks_sigterm_only() -> None:
    """In a job, Slurm sends it to every process, and the rank whose worker is gone could not save."""
    done = subprocess.run([sys.executable, "-c", WORKER], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("alive\ndead\n", "")
