"""What is known of processes, from /proc and from ps."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flash_launch import processes
from flash_launch.processes import command_line, process_began, usable_cores

SLEEPER = [sys.executable, "-c", "input('a mark of ours')"]


@pytest.fixture(params=["proc", "ps"])
def source(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "ps":
        monkeypatch.setattr(processes, "_PROC", Path("/there/is/none"))
    return str(request.param)


def test_a_process_its_remains_and_none(source: str) -> None:
    started = time.time()
    with subprocess.Popen(SLEEPER, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        began = process_began(process.pid)
        assert began is not None
        assert abs(began - started) < 5
        assert "a mark of ours" in command_line(process.pid)
        process.kill()
        end = time.monotonic() + 10
        while process_began(process.pid) is not None:  # dead, and not waited for
            assert time.monotonic() < end
            time.sleep(0.05)
    assert process_began(process.pid) is None
    assert command_line(process.pid) == ""


@pytest.mark.parametrize(
    ("elapsed", "seconds"),
    [("00:07", 7), ("03:07", 187), ("11:03:07", 39_787), ("2-11:03:07", 212_587), ("100-00:00:00", 8_640_000)],
)
def test_the_times_of_ps(elapsed: str, seconds: int) -> None:
    assert processes._seconds(elapsed) == seconds


def test_cores_are_those_of_the_mask_or_all(monkeypatch: pytest.MonkeyPatch) -> None:
    assert usable_cores() == len(os.sched_getaffinity(0))
    monkeypatch.delattr(os, "sched_getaffinity")
    assert usable_cores() == os.cpu_count()
