"""The soak: what it draws, what it takes for a failure, and one start of it."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "soak.py"


@pytest.fixture(scope="module")
def soak() -> ModuleType:
    spec = importlib.util.spec_from_file_location("soak", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["soak"] = module
    spec.loader.exec_module(module)
    return module


def test_a_number_of_a_seed_is_always_the_same_start_and_all_kinds_come(soak: ModuleType) -> None:
    starts = [soak.draw(7, number) for number in range(200)]
    assert starts == [soak.draw(7, number) for number in range(200)]
    assert starts != [soak.draw(8, number) for number in range(200)]
    assert {(one.setup, one.strategy) for one in starts} == {(a, b) for a in soak.SETUPS for b in soak.STRATEGIES}
    assert {(one.nodes, one.procs) for one in starts} == set(soak.SHAPES)


@pytest.mark.parametrize(
    ("script", "said", "outside"),
    [
        ("exit 0", "", False),
        ("exit 0 # differ", "its ranks' digests differ", False),
        ("echo the verdict; exit 1", "the verdict", False),
        ("echo 'rank 1 failed first: out of memory'; exit 1", "out of memory", True),
        ("sleep 30", "no end within 1 s", False),
    ],
)
def test_what_counts_as_a_failure(
    soak: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, said: str, outside: bool
) -> None:
    summary = {"status": "finished", "parameter_digest": {"0": "a", "1": "b" if "differ" in script else "a"}}
    command = tmp_path / "command"
    command.write_text(f"#!/bin/sh\nmkdir run; echo '{json.dumps(summary)}' > run/summary.json\n{script}\n")
    command.chmod(0o755)
    monkeypatch.setattr(soak, "COMMAND", command)
    monkeypatch.setattr(soak, "RUN_SECONDS", 1.0 if "sleep" in script else 60.0)
    code = soak.main(
        [*("--starts", "2", "--at-once", "2", "--foreign", "0", "--ports", "5", "--output", str(tmp_path / "o.jsonl"))]
    )
    assert code == int(bool(said) and not outside)
    found = soak.recorded(tmp_path / "o.jsonl", 0)
    assert sorted(one.start.number for one in found) == [0, 1]
    for one in found:
        assert said in one.said
        assert bool(one.said) == bool(said)
        assert (tmp_path / "o" / f"start_{one.start.number}" / "console.log").exists() == bool(said)
    # what is there is not done again
    monkeypatch.setattr(soak, "COMMAND", tmp_path / "none")
    assert soak.main(["--starts", "2", "--foreign", "0", "--ports", "0", "--output", str(tmp_path / "o.jsonl")]) == code


@pytest.mark.slow
def test_real_starts_beside_a_foreign_job_finish(soak: ModuleType, tmp_path: Path) -> None:
    output = tmp_path / "soak.jsonl"
    assert soak.main(["--starts", "2", "--at-once", "2", "--foreign", "1", "--output", str(output)]) == 0
    assert [one.code for one in soak.recorded(output, 0)] == [0, 0]
