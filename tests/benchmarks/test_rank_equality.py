"""The benchmark of ranks after an unfreeze: ours are equal, and as plain torch; a peer that is missing is said so."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "rank_equality.py"


@pytest.fixture(scope="module")
def benchmark_module() -> ModuleType:
    sys.path.insert(0, str(SCRIPT.parent))
    try:
        spec = importlib.util.spec_from_file_location("rank_equality", SCRIPT)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["rank_equality"] = module
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(SCRIPT.parent))
    return module


def run(output: Path, *arguments: str) -> tuple[dict[str, list[dict[str, object]]], subprocess.CompletedProcess[str]]:
    command = [sys.executable, str(SCRIPT), *arguments, "--output", str(output)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=280)
    assert ended.returncode == 0, ended.stderr
    return json.loads(output.read_text()), ended


def test_ours_is_equal_on_all_ranks_and_as_plain_torch(tmp_path: Path) -> None:
    found, ended = run(tmp_path / "out.json", "--only", "ours", "--epochs", "2", "--unfreeze", "1")
    (case,) = found["cases"]
    assert case["between_ranks"] == 0
    assert case["from_plain_torch"] == pytest.approx(0, abs=2e-6)
    assert "| flash_strategies | " in ended.stdout


@pytest.mark.slow
def test_lightnings_own_drifts(tmp_path: Path) -> None:
    found, _ = run(tmp_path / "out.json", "--only", "lightning")
    assert all(float(str(case["between_ranks"])) > 1e-3 for case in found["cases"])


def main(module: ModuleType, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
    module.main()


def test_a_peer_that_is_not_there_is_left_out_loudly(
    benchmark_module: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output, folder = tmp_path / "out.json", tmp_path / "none"
    arguments = ["--only", "scheduler", "--finetuning-scheduler", str(folder), "--output", str(output)]
    main(benchmark_module, monkeypatch, *arguments)
    cases = json.loads(output.read_text())["cases"]
    assert [case["between_ranks"] for case in cases] == [None, None]
    printed = capsys.readouterr()
    assert f"not in {folder}: --finetuning-scheduler FOLDER" in printed.out
    assert "left out: finetuning-scheduler" in printed.err


def test_an_unfreeze_that_is_not_in_the_middle_is_refused(
    benchmark_module: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(benchmark_module, monkeypatch, "--epochs", "2", "--unfreeze", "2")
    assert ended.value.code == 2
    assert "--unfreeze 2 is not in the middle of 2 epochs" in capsys.readouterr().err


def test_plain_torch_trains_the_backbone_from_the_unfreeze_on(benchmark_module: ModuleType) -> None:
    first = dict(benchmark_module.build_net().state_dict())
    frozen, trained = (dict(benchmark_module.train_plainly(2, unfreeze)) for unfreeze in (2, 1))
    assert all(torch.equal(frozen[name], first[name]) for name in first if name.startswith("backbone"))
    assert not any(torch.equal(trained[name], first[name]) for name in first)


def test_the_greatest_difference_is_found_and_what_is_not_finite_is_refused(benchmark_module: ModuleType) -> None:
    one = {"a": torch.zeros(3), "b": torch.ones(2, 2)}
    other = {"a": torch.tensor([0.0, -0.25, 0.0]), "b": torch.ones(2, 2)}
    assert benchmark_module.greatest_difference(one, other) == 0.25
    with pytest.raises(ValueError, match="not finite"):
        benchmark_module.greatest_difference(one, {**one, "a": torch.tensor([0.0, float("nan"), 0.0])})
