"""The crash drill comes to the same end after kills, and it does see a difference where there is one."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "crash_drill.py"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="it asks the kernel to end orphans")


@pytest.fixture(scope="module")
def drill() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("crash_drill", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["crash_drill"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["crash_drill"]


@pytest.mark.slow
def test_a_few_trials(tmp_path: Path) -> None:
    output = tmp_path / "out.json"
    # In a process of its own: it forks, which takes a process without threads. The kills of this seed come in saves and
    # around the transition, on each target, whatever the machine's speed.
    command = [sys.executable, str(SCRIPT), "--trials", "3", "--kills", "2", "--setups", "zero2", "--seed", "3"]
    ended = subprocess.run(
        [*command, "--folder", str(tmp_path / "runs"), "--output", str(output)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    found = json.loads(output.read_text())
    assert (found["trials"], found["different"]) == (3, [])
    assert found["kills"] >= found["attempts"] - 3 > 0
    assert not list((tmp_path / "runs").glob("trial_*")), "trials without differences are deleted"


def test_kills_come_from_the_seed(drill: ModuleType) -> None:
    drawn = [drill.draw(number, 0, 4) for number in range(100)]
    assert drawn == [drill.draw(number, 0, 4) for number in range(100)]
    assert drawn != [drill.draw(number, 1, 4) for number in range(100)]
    assert {len(kills) for kills in drawn} == {1, 2, 3, 4}
    assert {kill.target for kills in drawn for kill in kills} == set(drill.TARGETS)
    assert {kill.moment for kills in drawn for kill in kills} == set(drill.MOMENTS)


def rows(steps: list[int]) -> list[dict]:
    return [{"step": step, "kind": "step", "loss": step / 8, "step_seconds": 0.1} for step in steps]


def write_run(drill: ModuleType, path: Path, *, steps: list[int], weights: bytes = b"w", **summary: object) -> object:
    folder = drill.RunFolder(path)
    folder.attempts.mkdir(parents=True)
    (folder.attempts / "0001.json").write_text(json.dumps({"run": "r"}))
    folder.weights.write_bytes(weights)
    folder.metrics_jsonl.write_text("".join(json.dumps(row) + "\n" for row in rows(steps)))
    told = {"status": "finished", "steps": 32, "parameter_digest": {"0": "a", "1": "a"}, "phases": [], **summary}
    folder.summary_json.write_text(json.dumps(told))
    return folder


ALL = list(range(1, 33))


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({}, None),
        ({"parameter_digest": {"0": "a", "1": "b"}}, "parameter_digest"),
        ({"status": "stopped"}, "status"),
        ({"weights": b"v"}, "model.safetensors"),
        ({"steps": [*ALL[:9], 9, *ALL[9:]]}, "metrics.jsonl has the steps"),
        ({"steps": ALL[:-1]}, "metrics.jsonl has the steps"),
    ],
)
def test_a_difference_is_seen(drill: ModuleType, tmp_path: Path, changed: dict, told: str | None) -> None:
    expected = drill.outcome(write_run(drill, tmp_path / "a", steps=ALL))
    if isinstance(changed.get("steps"), list):
        found = write_run(drill, tmp_path / "b", **changed)
    else:
        found = write_run(drill, tmp_path / "b", **{"steps": ALL, **changed})
    differences = drill.differences(expected, found)
    assert [told in one for one in differences] == [True] if told else not differences


def test_half_a_checkpoint_is_seen(drill: ModuleType, tmp_path: Path) -> None:
    folder = write_run(drill, tmp_path / "a", steps=ALL)
    (folder.checkpoints / ".tmp_step_8_attempt_1").mkdir(parents=True)
    (folder.checkpoints / "step_7").mkdir()
    found = drill.differences(drill.outcome(folder), folder)
    assert [one.split(":")[0] for one in found] == ["left among the checkpoints", "checkpoint step_7"]
