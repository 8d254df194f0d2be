"""The transition benchmark runs, and its JSON says what its table says. No figure is checked: those are no tests."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "transition.py"
TIMES = ("ours_seconds", "again_seconds", "back_seconds", "first_step_seconds", "step_seconds")
BYTES = ("peak_bytes", "held_bytes", "first_step_peak_bytes", "step_peak_bytes", "new_state_bytes", "again_peak_bytes")

pytestmark = pytest.mark.slow  # minutes on a machine that has other work too


@pytest.fixture(scope="module")
def benchmark_module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("transition", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["transition"] = module
    spec.loader.exec_module(module)
    return module


def run(output: Path, *arguments: str) -> dict:
    command = [sys.executable, str(SCRIPT), "--sizes", "20K", "--repeats", "1", "--memory-repeats", "1"]
    ended = subprocess.run(
        [*command, "--device", "cpu", "--output", str(output), *arguments], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert str(output) in ended.stdout
    return json.loads(output.read_text())


def check_case(case: dict, setup: str) -> None:
    assert case["setup"] == setup
    assert case["counted_parameters"] > 20_000
    for key in TIMES:
        assert 0 < case[key]["min"] <= case[key]["median"] <= case[key]["max"]
    for key in BYTES:
        assert isinstance(case[key], int | float)
    assert case["new_state_bytes"] > 0
    assert len(case["raw"]["ours"]) == len(case["raw"]["again"]) == len(case["raw"]["ours_memory"]) == 1
    assert len(case["raw"]["ours"][0]) == case["ranks"] == 2
    assert case["raw"]["exit_codes"]["ours"] == [0, 0]
    assert all(isinstance(met, bool) for met in case["aims"].values())


def test_ddp_against_wrapping_anew(tmp_path: Path) -> None:
    found = run(tmp_path / "out.json", "--setups", "ddp", "--skip-restart")
    assert found["benchmark"] == "transition"
    assert found["machine"]["versions"].keys() >= {"torch", "deepspeed", "flash-launch"}
    (case,) = found["cases"]
    check_case(case, "ddp")
    assert set(case["aims"]) == {"time_at_most_half_of_again", "memory_at_most_new_state_and_a_quarter"}


@pytest.mark.slow
@pytest.mark.parametrize("setup", ["ddp", "zero1", "zero2", "zero3"])
def test_against_both_peers(tmp_path: Path, setup: str) -> None:
    (case,) = run(tmp_path / "out.json", "--setups", setup)["cases"]
    check_case(case, setup)
    assert len(case["aims"]) == 3
    assert case["restart_seconds"] == pytest.approx(sum(case["raw"]["restart"].values()))


def answers(seconds: float, **more: float) -> list[dict]:
    keys = ("back_seconds", "first_step_seconds", "step_seconds", "cpu_seconds")
    return [
        {"seconds": seconds / 2, **dict.fromkeys(keys, 1.0), **more},
        {"seconds": seconds, **dict.fromkeys(keys, 1.0), **more},
    ]


@pytest.mark.parametrize(
    ("ours", "start", "peak", "met"),
    [
        (0.5, 10.0, 125, (True, True, True)),
        (0.6, 10.0, 126, (False, False, False)),
        (0.5, 9.0, 125, (True, False, True)),
    ],
)
def test_aims(benchmark_module: ModuleType, ours: float, start: float, peak: int, met: tuple[bool, bool, bool]) -> None:
    memory = answers(ours, **{**dict.fromkeys(BYTES[:-1], 0), "peak_bytes": peak, "new_state_bytes": 100})
    found = benchmark_module.conclude(
        {
            "ours": [answers(ours), answers(ours), answers(9.0)],
            "again": [answers(1.0)] * 3,
            "ours_memory": [memory],
            "again_memory": [memory],
            "restart": {"save": 0.0, "stop": 0.0, "start": start},
        }
    )
    assert found["ratio_again"] == pytest.approx(ours), "the median of the slowest ranks"
    assert tuple(found["aims"].values()) == met


@pytest.mark.parametrize(("text", "number"), [("10M", 10_000_000), ("1.5k", 1_500), ("12", 12)])
def test_sizes(benchmark_module: ModuleType, text: str, number: int) -> None:
    assert benchmark_module.size(text) == (text, number)
