"""Scripts of any kind as Slurm jobs: requeued, they resume and end as if they had not been stopped."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from conftest import Login, Run

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(1200)]

LOOP = Path(__file__).parents[1] / "script/any_loop.py"
WORDS = ("it's", "a $b", '"', "*", "é;")


def reference(ranks: int) -> list[float]:
    """The weights at the end, by the same arithmetic in one process."""
    import torch

    weights = torch.zeros(4)
    for step in range(16):
        parts = [torch.randn(4, generator=torch.Generator().manual_seed(10 * step + rank)) for rank in range(ranks)]
        weights = weights + torch.tanh(sum(parts[1:], parts[0]) + weights)
    return list(weights.tolist())


def submit(login: Login, name: str, *options: str) -> Run:
    shutil.copy(LOOP, login.folder / "any loop.py")
    where = ("--output-dir", name, "--nodes", "2", "--wandb", "offline", *options)
    done = login.flash_launch("submit", *where, "script", "--timeout", "60", "any loop.py", *WORDS)
    assert done.returncode == 0, done.stderr
    return Run(login.cluster, login.folder / name, done)


def wait_for_step(run: Run, step: int) -> None:
    file = run.folder / "at0"
    done = lambda: file.exists() and int((file.read_text().split() or "00 0")[1]) >= step  # noqa: E731
    run.cluster.wait(done, 240, f"step {step}", lambda: run.output[-2000:])


def weights(run: Run) -> list[float]:
    import torch

    return list(torch.load(run.folder / "weights.pt", weights_only=True).tolist())


def test_requeued_and_resumed(login: Login) -> None:
    login.pause(0.5)
    run = submit(login, "requeued")
    wait_for_step(run, 3)
    login.cluster.run(["scontrol", "requeue", run.job_id])
    login.cluster.wait(lambda: (run.folder / "attempts/0001/end.json").exists(), 60, "the first attempt's end")
    login.pause(0)
    run.wait_for_end()
    assert run.end_of(1)["exit_code"] == 75
    assert run.end_of(2)["exit_code"] == 0
    assert run.attempts == 2
    assert run.summary["exit_codes"] == {"0": 0, "1": 0}
    assert weights(run) == reference(2)
    log = (run.folder / "logs/node1_rank1.log").read_text()
    assert f"rank 1 of attempt 1, {list(WORDS)}\n" in log
    assert f"rank 1 of attempt 2, {list(WORDS)}\n" in log


def test_cancelled_and_submitted_again(login: Login) -> None:
    login.pause(0.5)
    run = submit(login, "cancelled")
    wait_for_step(run, 3)
    assert login.flash_launch("cancel", "cancelled").returncode == 0
    run.wait_for_end("CANCELLED")
    login.cluster.wait(lambda: (run.folder / "attempts/0001/end.json").exists(), 60, "the end to be told")
    login.pause(0)
    again = Run(login.cluster, run.folder, login.flash_launch("submit", "cancelled", "--nodes", "1"))
    assert again.command.returncode == 0, again.command.stderr
    again.wait_for_end()
    assert again.attempts == 2
    assert again.summary["world_size"] == 1


def test_a_script_that_fails_is_not_requeued(login: Login) -> None:
    (login.folder / "bad.py").write_text("import os\nif os.environ['RANK'] == '1':\n    raise ValueError('a banana')\n")
    done = login.flash_launch("submit", "script", "--nodes", "2", "--output-dir", "bad", "bad.py")
    run = Run(login.cluster, login.folder / "bad", done)
    run.wait_for_end("FAILED")
    assert run.attempts == 1
    assert "failed first: ValueError: a banana" in run.output
