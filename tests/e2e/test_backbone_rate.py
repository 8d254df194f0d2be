"""The rate of what is unfrozen on the command line, on two ranks: in the plan, in training, and after a resume."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command import flash_launch

pytestmark = [pytest.mark.timeout(900), pytest.mark.slow]

OPTIONS = (
    *("--unfreeze-epoch", "1", "--max-epochs", "4", "--limit-train-batches", "3", "--limit-val-batches", "0"),
    *("--backbone-lr-ratio", "0.1", "--backbone-lr-ramp", "4", "--lr-schedule", "cosine", "--batch-size", "4"),
    *("--checkpoint-every", "1", "steps", "--keep-last", "100"),
)


def rates(run: Path) -> dict[int, set[float]]:
    """By step, the rates of groups over the head's, which is the first."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if row["kind"] == "step"]
    return {row["step"]: {round(rate / row["lr"][0], 9) for rate in row["lr"]} for row in steps}


@pytest.mark.parametrize("strategy", ["freeze_unfreeze", "freeze_unfreeze_deepspeed"])
def test_a_run_with_a_backbone_rate(strategy: str, tmp_path: Path) -> None:
    answer = flash_launch(tmp_path, "--nodes", "2", "--strategy", strategy, *OPTIONS, "--output-dir", "run")
    assert answer.code == 0, answer.out + answer.err
    said = "what it unfreezes at 0.1 of the head's rate, times 4 per epoch up to the head's"
    assert said in answer.out + answer.err
    run = tmp_path / "run"
    wanted = {step: ({1.0}, {1.0, 0.1}, {1.0, 0.4}, {1.0})[(step - 1) // 3] for step in range(1, 13)}
    assert rates(run) == wanted
    digests = json.loads((run / "summary.json").read_text())["parameter_digest"]
    assert len(set(digests.values())) == 1
    # in the middle of the epoch in which the ramp took its first step
    again = flash_launch(tmp_path, "resume", "run", "--checkpoint", "8")
    assert again.code == 0, again.out + again.err
    assert json.loads((run / "summary.json").read_text())["parameter_digest"] == digests
    assert rates(run) == wanted
