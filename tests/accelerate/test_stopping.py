"""A loop around an `Accelerator` that flash-launch asks to stop, on two ranks, resumes at its batch."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from flash_strategies.run_session import ATTEMPT, EXIT_STOPPED, RUN

SCRIPT = Path(__file__).with_name("stopped_loop.py")
WITH_TRANSFORMERS = Path(sys.prefix) / "examples/bin/python"
SETUPS = ["ddp", pytest.param("zero2", marks=pytest.mark.slow), pytest.param("zero3", marks=pytest.mark.slow)]
MICRO_BATCHES = 10
"""Of an epoch, on each rank; two to a step."""


@pytest.mark.parametrize("setup", SETUPS)
def test_stopped_and_resumed_equals_the_unstopped_run(start_ranks: Any, tmp_path: Path, setup: str) -> None:
    if setup != "ddp" and not WITH_TRANSFORMERS.exists():
        pytest.skip(f"{WITH_TRANSFORMERS} is missing: Accelerate's DeepSpeed path was NOT tested")
    python = sys.executable if setup == "ddp" else str(WITH_TRANSFORMERS)

    def start(name: str, code: int, *stop_at: str, **variables: str) -> list[dict[str, Any]]:
        argv = [str(SCRIPT), str(tmp_path), setup, name, *stop_at]
        for ended in start_ranks(argv, 2, timeout=170, grace=60, environment=variables, python=python):
            assert ended.exit_code == code, ended.output[-4000:]
        return [torch.load(tmp_path / f"{name}.{rank}.pt", weights_only=True) for rank in range(2)]

    run = str(tmp_path / "run")
    whole = start("whole", 0)
    stopped = start("stopped", EXIT_STOPPED, "6", **{RUN: run, ATTEMPT: "1"})
    resumed = start("resumed", 0, **{RUN: run, ATTEMPT: "2"})
    for one, first, second in zip(whole, stopped, resumed, strict=True):
        assert one["steps"] == second["steps"] == 15
        assert 6 <= first["steps"] < 10  # in the second epoch, which unfroze the backbone
        assert len(one["seen"]) == 3 * MICRO_BATCHES
        assert first["seen"] == one["seen"][: 2 * first["steps"]]
        assert second["seen"] == one["seen"][2 * first["steps"] :]
        assert all(torch.equal(second["weights"][name], value) for name, value in one["weights"].items())
    assert all(torch.equal(whole[1]["weights"][name], value) for name, value in whole[0]["weights"].items())
    assert sorted({path.name[:4] for path in (tmp_path / "run" / "checkpoints").iterdir()}) == ["0002"]
