"""A real run, followed and looked at while it goes on and after it, as a user does from another terminal."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path

import pytest
from command import COMMAND, flash_launch


@pytest.mark.slow
def test_a_real_run_is_followed_looked_at_and_reported(tmp_path: Path) -> None:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    options = ("--strategy", "freeze_unfreeze", "--max-epochs", "2", "--procs-per-node", "1", "--output-dir", "run")
    run = subprocess.Popen([COMMAND, *options], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        end = time.monotonic() + 120
        while not (tmp_path / "run/config.yaml").exists() or not (tmp_path / "run/attempts/0001.json").exists():
            assert run.poll() is None
            assert time.monotonic() < end
            time.sleep(0.05)
        follower = subprocess.Popen([COMMAND, "logs", "run", "-f"], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
        live = json.loads(flash_launch(tmp_path, "status", "run", "--json").out)
        told, _ = run.communicate(timeout=200)
        log, _ = follower.communicate(timeout=30)
    finally:
        run.kill()
    assert run.returncode == 0
    assert (live["state"], live["max_epochs"], live["attempts"][0]["exit_code"]) == ("running", 2, None)
    assert follower.returncode == 0
    assert "epoch 1: " in log
    assert all(line in told for line in log.splitlines())

    after = json.loads(flash_launch(tmp_path, "status", "run", "--json").out)
    assert (after["state"], after["epochs_done"], after["step"], after["steps"]) == ("finished", 2, 8, 8)
    assert after["phase"] == "unfrozen"
    assert after["peak_memory_bytes"] > 10_000_000
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert all(row["memory_bytes"] > 10_000_000 for row in rows if row["kind"] == "step")
    text = flash_launch(tmp_path, "status", "run").out
    assert "state          finished" in text
    answer = flash_launch(tmp_path, "report", "run")
    assert (answer.code, answer.err) == (0, "")
    assert "val_accuracy" in (tmp_path / "run/report.html").read_text()
    assert (tmp_path / "run/report.png").stat().st_size < 300_000
