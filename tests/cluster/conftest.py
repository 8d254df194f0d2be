"""Fixtures of the cluster tests: a Slurm cluster that is up for the session, and runs that are submitted to it."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from slurm_cluster import SlurmCluster, may_use_namespaces, missing

COMMAND = str(Path(sys.executable).with_name("flash-launch"))
OPTIONS = (
    *("--nodes", "2", "--procs-per-node", "2", "--strategy", "freeze_unfreeze_deepspeed", "--unfreeze-epoch", "2"),
    *("--task", "slow_task:SlowTask", "--max-epochs", "4", "--checkpoint-every", "4", "steps", "--timeout", "60"),
)


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    """Two nodes: with addresses of their own where that is possible here, else on loopback."""
    if lacks := missing():
        pytest.skip(f"Slurm is not installed ({', '.join(lacks)}): apt-get install slurmctld slurmd slurm-client")
    kind = "namespaces" if may_use_namespaces() else "loopback"
    cluster = SlurmCluster(tmp_path_factory.mktemp("slurm"), kind=kind)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@dataclass
class Run:
    """A run that was submitted, or is to be."""

    cluster: SlurmCluster
    """Where."""
    folder: Path
    """Its run folder."""
    command: subprocess.CompletedProcess[str]
    """How `flash-launch submit` ended."""

    @property
    def job_id(self) -> str:
        """Its newest job."""
        return str(json.loads((self.folder / "slurm.json").read_text())["jobs"][-1]["job_id"])

    @property
    def output(self) -> str:
        """What its jobs printed."""
        return "".join(file.read_text() for file in sorted((self.folder / "logs").glob("slurm-*.out")))

    @property
    def summary(self) -> dict[str, object]:
        """Its summary; empty while there is none."""
        with contextlib.suppress(FileNotFoundError):
            read: dict[str, object] = json.loads((self.folder / "summary.json").read_text())
            return read
        return {}

    @property
    def digests(self) -> set[str]:
        """Digests of the parameters on all ranks."""
        found = self.summary["parameter_digest"]
        assert isinstance(found, dict)
        return set(found.values())

    @property
    def steps(self) -> int:
        """Optimizer steps that were logged."""
        with contextlib.suppress(FileNotFoundError, json.JSONDecodeError, IndexError):
            return int(json.loads((self.folder / "metrics.jsonl").read_text().splitlines()[-1])["step"])
        return 0

    @property
    def attempts(self) -> int:
        """How many attempts began."""
        return len(list((self.folder / "attempts").glob("*.json")))

    def end_of(self, attempt: int) -> dict[str, object]:
        """How an attempt ended."""
        read: dict[str, object] = json.loads((self.folder / f"attempts/{attempt:04}/end.json").read_text())
        return read

    def wait_for_step(self, step: int, seconds: float = 240) -> None:
        """Wait until so many steps were done."""
        self.cluster.wait(lambda: self.steps >= step, seconds, f"step {step}", lambda: self.output[-2000:])

    def wait_for_end(self, *states: str, seconds: float = 300) -> str:
        """Wait until its job is over."""
        try:
            return self.cluster.wait_for_state(self.job_id, *(states or ("COMPLETED",)), seconds=seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.output[-3000:]}") from None


@dataclass
class Login:
    """The login node: where a user sits."""

    cluster: SlurmCluster
    """The cluster."""
    folder: Path
    """The current folder there, with slow_task.py."""

    def pause(self, seconds: float) -> None:
        """How long each step takes from now on."""
        (self.folder / "pause.new").write_text(str(seconds))
        (self.folder / "pause.new").replace(self.folder / "pause")

    def flash_launch(self, *argv: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """Run the command."""
        return self.cluster.run([COMMAND, *argv], cwd=self.folder, timeout=timeout)

    def submit(self, name: str, *more: str, options: tuple[str, ...] = OPTIONS) -> Run:
        """Submit a run into a folder."""
        done = self.flash_launch("submit", *options, "--output-dir", name, *more)
        return Run(self.cluster, self.folder / name, done)


@pytest.fixture
def login(slurm: SlurmCluster, tmp_path: Path) -> Iterator[Login]:
    """A new folder on the login node; all jobs are gone afterwards."""
    shutil.copy(Path(__file__).with_name("slow_task.py"), tmp_path)
    found = Login(slurm, tmp_path)
    found.pause(0)
    yield found
    queued = slurm.run(["squeue", "-h", "-o", "%A"]).stdout.split()
    if queued:
        slurm.run(["scancel", *queued])
        slurm.wait(lambda: not slurm.run(["squeue", "-h"]).stdout.strip(), 60, "jobs gone")


@pytest.fixture(scope="session")
def never_stopped(slurm: SlurmCluster, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The run of OPTIONS from submission to its end, without a stop."""
    folder = tmp_path_factory.mktemp("never stopped, 'quoted'")
    shutil.copy(Path(__file__).with_name("slow_task.py"), folder)
    login = Login(slurm, folder)
    login.pause(0)
    run = login.submit("run", "--slurm.setup", "export SAID='a, \"b\" c'", "--slurm.time", "10")
    assert run.command.returncode == 0, run.command.stderr
    run.wait_for_end()
    return run


def wait_until(holds: Callable[[], bool], seconds: float, what: str) -> None:
    """Wait until something holds."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"waited {seconds} s for {what} in vain"
        time.sleep(0.1)
