"""Scripts by the command: stopped, killed and resumed, each run ends with the weights of one that was not."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

COMMAND = Path(sys.executable).with_name("flash-launch")
LOOP = Path(__file__).with_name("any_loop.py")
SECONDS = 120


def reference(ranks: int) -> list[float]:
    """The weights at the end, by the same arithmetic in one process."""
    import torch

    weights = torch.zeros(4)
    for step in range(16):
        parts = [torch.randn(4, generator=torch.Generator().manual_seed(10 * step + rank)) for rank in range(ranks)]
        weights = weights + torch.tanh(sum(parts[1:], parts[0]) + weights)
    return list(weights.tolist())


@dataclass
class Here:
    """A folder with the script, and the launches in it."""

    folder: Path
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def pause(self, seconds: float) -> None:
        """How long each step takes from now on."""
        (self.folder / "pause.new").write_text(str(seconds))
        (self.folder / "pause.new").replace(self.folder / "pause")

    def launch(self, *argv: str) -> subprocess.Popen[str]:
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        self.started.append(
            subprocess.Popen(
                [str(COMMAND), *argv],
                cwd=self.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
        return self.started[-1]

    def end(self, launch: subprocess.Popen[str]) -> tuple[int, str]:
        out, _ = launch.communicate(timeout=SECONDS)
        return launch.returncode, out

    def run(self, *argv: str) -> tuple[int, str]:
        return self.end(self.launch(*argv))

    def wait_for_step(self, step: int, launch: subprocess.Popen[str], ranks: int = 2) -> list[int]:
        """Wait until all ranks have done a step; their pids."""
        files = [self.folder / f"run/at{rank}" for rank in range(ranks)]

        def done() -> bool:
            return all(file.exists() and int((file.read_text().split() or "00 0")[1]) >= step for file in files)

        wait_until(lambda: done() or launch.poll() is not None)
        assert launch.poll() is None, self.end(launch)
        return [int(file.read_text().split()[2]) for file in files]

    @property
    def summary(self) -> dict[str, object]:
        read: dict[str, object] = json.loads((self.folder / "run/summary.json").read_text())
        return read

    @property
    def weights(self) -> list[float]:
        import torch

        return list(torch.load(self.folder / "run/weights.pt", weights_only=True).tolist())


def wait_until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Here]:
    shutil.copy(LOOP, tmp_path / "any loop.py")
    found = Here(tmp_path)
    found.pause(0)
    yield found
    for launch in found.started:
        launch.kill()
        launch.wait()


def alive(pids: list[int]) -> bool:
    return any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_stopped_and_resumed_on_as_many_ranks_and_ended_as_if_it_had_not(here: Here) -> None:
    here.pause(0.5)
    launch = here.launch("script", "--procs-per-node", "2", "--output-dir", "run", "any loop.py", "--lr", "it's $1")
    pids = here.wait_for_step(2, launch)
    launch.send_signal(signal.SIGTERM)
    code, out = here.end(launch)
    assert code == 75, out
    assert "the script has saved" in out
    assert "start it again with: flash-launch resume run" in out
    assert not alive(pids)
    assert here.summary["exit_codes"] == {"0": 75, "1": 75}
    assert "it was asked to stop, and the script has saved" in here.run("status", "run")[1]
    assert "nothing failed" in here.run("why", "run")[1]
    here.pause(0)
    code, out = here.run("resume", "run")
    assert code == 0, out
    assert "rank 0 of attempt 2, ['--lr', \"it's $1\"]" in out
    assert here.weights == reference(2)
    assert "rank 1 of attempt 1" in here.run("logs", "run", "--rank", "1")[1]
    assert here.run("resume", "run")[0] == 0, "there is nothing left to do, and it says so"
    assert here.summary["status"] == "finished"


def _kill_rank(launch: subprocess.Popen[str], pids: list[int]) -> None:
    os.kill(pids[1], signal.SIGKILL)


def _kill_launcher(launch: subprocess.Popen[str], pids: list[int]) -> None:
    launch.kill()


def _interrupt(launch: subprocess.Popen[str], pids: list[int]) -> None:
    launch.send_signal(signal.SIGINT)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kill", "code", "why"),
    [
        (_kill_rank, 1, "rank 1 (node 0"),
        (_kill_launcher, -9, "the agent of node 0"),
        (_interrupt, 130, "Ctrl-C (SIGINT)"),
    ],
)
def test_killed_and_resumed(
    here: Here, kill: Callable[[subprocess.Popen[str], list[int]], None], code: int, why: str
) -> None:
    here.pause(0.5)
    launch = here.launch("script", "--procs-per-node", "2", "--output-dir", "run", "any loop.py")
    pids = here.wait_for_step(5, launch)  # a checkpoint is there, and a step after it
    kill(launch, pids)
    assert here.end(launch)[0] == code
    wait_until(lambda: not alive(pids))
    assert why in here.run("why", "run")[1]
    here.pause(0)
    resumed = ("script", "--procs-per-node", "2", "--output-dir", "run", "--resume", "auto", "any loop.py")
    assert here.run(*resumed)[0] == 0
    assert here.weights == reference(2)


@pytest.mark.slow
def test_two_nodes_a_module_and_another_number_of_ranks(here: Here) -> None:
    (here.folder / "package").mkdir()
    (here.folder / "any loop.py").rename(here.folder / "package/loop.py")
    (here.folder / "package/pause").write_text("0.3")
    launch = here.launch("script", "--nodes", "2", "--output-dir", "run", "-m", "package.loop", "x")
    here.wait_for_step(3, launch)
    assert here.run("cancel", "run")[0] == 0
    assert here.end(launch)[0] == 75
    (here.folder / "package/pause").write_text("0")
    assert sorted(path.name for path in (here.folder / "run/logs").glob("*rank*")) == [
        "node0_rank0.log",
        "node1_rank1.log",
    ]
    code, out = here.run("resume", "run", "--nodes", "1")
    assert code == 0, out
    assert here.summary["world_size"] == 1


@pytest.mark.slow
def test_a_script_that_never_looks_is_ended_after_a_while(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    (here.folder / "sleep.py").write_text("import time, sys\nprint('begun', flush=True)\ntime.sleep(300)\n")
    launch = here.launch("script", "--output-dir", "run", "sleep.py")
    log = here.folder / "run/logs/node0_rank0.log"
    wait_until(lambda: log.exists() and "begun" in log.read_text())
    launch.send_signal(signal.SIGTERM)
    code, out = here.end(launch)
    assert code == 143, out
    assert "the script never calls stop_requested(), so it gets SIGTERM" in out
    assert here.summary["status"] == "stopped"


@pytest.mark.slow
def test_a_newer_attempt_fences_off_an_older_one(here: Here) -> None:
    here.pause(1)
    first = here.launch("script", "--output-dir", "run", "any loop.py")
    here.wait_for_step(2, first, ranks=1)
    here.pause(30)
    second = here.launch("resume", "run")
    code, out = here.end(first)
    assert code == 1
    assert "attempt 1 of this run was superseded by attempt 2" in out
    second.send_signal(signal.SIGINT)
    here.end(second)


@pytest.mark.slow
def test_a_script_with_flash_trainer_stops_and_survives_a_kill(here: Here) -> None:
    shutil.copy(Path(__file__).with_name("fit_script.py"), here.folder / "fit.py")
    argv = ("script", "--procs-per-node", "2", "--output-dir", "run")
    assert here.run(*argv, "fit.py")[0] == 0
    whole = here.weights
    (here.folder / "run").rename(here.folder / "whole")
    here.pause(0.5)
    launch = here.launch(*argv, "fit.py")
    here.wait_for_step(2, launch)
    launch.send_signal(signal.SIGTERM)  # in the frozen phase
    assert here.end(launch)[0] == 75
    for file in (here.folder / "run").glob("at[0-9]"):
        file.unlink()
    launch = here.launch("resume", "run")
    pids = here.wait_for_step(14, launch)  # in the last epoch, after a checkpoint
    os.kill(pids[0], signal.SIGKILL)
    assert here.end(launch)[0] == 1
    here.pause(0)
    code, out = here.run("resume", "run")
    assert code == 0, out
    assert here.weights == whole
