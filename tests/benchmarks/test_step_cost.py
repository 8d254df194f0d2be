"""The benchmark of a step runs, and its JSON says what its table says. No figure is checked: those are no tests."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "step_cost.py"


@pytest.fixture(scope="module")
def benchmark_module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("step_cost", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.parametrize("setup", ["ddp", "zero3"])
def test_against_lightning(tmp_path: Path, setup: str) -> None:
    output = tmp_path / "out.json"
    command = [sys.executable, str(SCRIPT), "--setups", setup, "--repeats", "1", "--steps", "240", "--width", "16"]
    ended = subprocess.run([*command, "--output", str(output)], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    (case,) = json.loads(output.read_text())["cases"]
    for variant in ("lightning", "ours"):
        found = case[variant]
        assert found["median_seconds"] > 0
        assert f"| {setup} | {variant} | {found['median_seconds'] * 1e3:.2f} ms |" in ended.stdout
    assert case["lightning"]["calls"]["waits"] == 1, "Lightning's broadcast of SIGTERM"
    assert case["ours"]["calls"]["waits"] == 0


def test_only_unlogged_steps_count(benchmark_module: ModuleType) -> None:
    quiet: dict[str, dict[str, int]] = {"reads": {}, "waits": {}, "talks": {}}
    loud = {**quiet, "reads": {"item at a.py:b": 3}}
    steps = [loud if step < 21 or step % 10 in (0, 1) else quiet for step in range(60)]
    steps[35] = {**quiet, "waits": {"allreduce_ at c.py:d": 2}}
    found = benchmark_module.count([{"calls": [*steps, loud]}, {"calls": [*[quiet] * 60, loud]}])
    assert (found["reads"], found["talks"]) == (0, 0)
    assert found["waits"] == pytest.approx(2 / 32, abs=1e-3), "of the rank with most"
    assert found["waits_from"] == {"allreduce_ at c.py:d": pytest.approx(1 / 32, abs=1e-3)}
