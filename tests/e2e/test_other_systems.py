"""Whole runs without what only Linux has: a stand-in for macOS takes it away from the command, its agents and ranks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from command import flash_launch

pytestmark = pytest.mark.timeout(600)

OTHER_SYSTEM = Path(__file__).with_name("other_system")
SHORT = ("--nodes", "2", "--max-epochs", "2", "--limit-train-batches", "3", "--output-dir", "run")


def test_the_stand_in_takes_away_what_it_says() -> None:
    code = (
        "import os, sys; from pathlib import Path; from flash_launch import processes as p\n"
        "print(hasattr(os, 'waitid'), hasattr(os, 'sched_getaffinity'), p._has_proc(), Path('/proc/self').exists())\n"
        "print(p.usable_cores() == os.cpu_count(), 'flash_launch' in p.command_line(os.getpid()))"
    )
    environment = {"PYTHONPATH": str(OTHER_SYSTEM), "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["False", "False", "False", "True", "True", "True"], done.stderr


def test_a_run_on_two_nodes_finishes_with_loader_workers_that_are_spawned(tmp_path: Path) -> None:
    answer = flash_launch(
        tmp_path, *SHORT, "--strategy", "freeze_unfreeze", "--num-workers", "1", python_path=OTHER_SYSTEM
    )
    assert answer.code == 0, answer.out + answer.err
    assert answer.alive == ()
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["status"] == "finished"
    assert [phase["peak_bytes"] > 2**26 for phase in summary["phases"]] == [True, True]
    assert len(set(summary["parameter_digest"].values())) == 1


@pytest.mark.slow
def test_a_rank_that_is_killed_is_named_and_nothing_is_left_behind(tmp_path: Path) -> None:
    (tmp_path / "falls.py").write_text(
        "import os, signal\n"
        "from flash_launch.tasks.image import ImageClassifier\n\n\n"
        "class Falls(ImageClassifier):\n"
        "    def training_step(self, *args):\n"
        "        if os.environ['RANK'] == '1' and self.trainer.global_step == 2:\n"
        "            os.kill(os.getpid(), signal.SIGKILL)\n"
        "        return super().training_step(*args)\n"
    )
    own = ("--task", "falls:Falls", "--data", "digits", "--strategy", "freeze")
    answer = flash_launch(tmp_path, *SHORT, *own, python_path=OTHER_SYSTEM)
    assert answer.code == 1, answer.out + answer.err
    assert "rank 1" in answer.err + answer.out
    assert "SIGKILL" in answer.err + answer.out
    assert answer.alive == ()
