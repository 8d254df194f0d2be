"""A run of the real command, recorded offline, stopped twice and resumed: what W&B has of it, here and after sync."""

from __future__ import annotations

import importlib.util
import json
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
from command import Answer, flash_launch
from own_code import MY_TASK

from flash_launch.run_folder import read_jsonl

pytestmark = pytest.mark.timeout(600)

TRACKED = """
import os
import sys
import time

from flash_launch.rank_guard import stop_requested
from my_task import MyTask


class Tracked(MyTask):
    def training_step(self, batch, index):
        end = time.monotonic() + 60  # the test stops it at some steps: here it waits for that
        while f"{self.global_step}" == os.environ.get("STOP_AT") and not stop_requested() and time.monotonic() < end:
            time.sleep(0.01)
        self.log("doubled", 2.0 * self.global_step, on_step=True, on_epoch=False)
        return super().training_step(batch, index)

    def on_train_end(self) -> None:
        self.logger.experiment.summary["mine"] = 42
        print(f"rank {self.global_rank} has imported wandb: {'wandb' in sys.modules}", flush=True)
"""
OPTIONS = (
    *("--nodes", "2", "--task", "tracked:Tracked", "--strategy", "freeze_unfreeze", "--unfreeze-epoch", "2"),
    *("--max-epochs", "6", "--batch-size", "8", "--output-dir", "run", "--wandb-project", "proving"),
    *("--wandb-tags", "one,two", "--wandb-artifact", "true"),
)


def beside(name: str) -> ModuleType:
    """A module of tests/tracking."""
    path = Path(__file__).parents[1] / "tracking" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@dataclass(frozen=True)
class Run:
    """A run of three attempts."""

    folder: Path
    answers: list[Answer]

    @property
    def path(self) -> Path:
        return self.folder / "run"

    def metrics(self, kind: str) -> list[dict[str, object]]:
        return [row for row in read_jsonl(self.path / "metrics.jsonl") if row["kind"] == kind]

    def recordings(self) -> list[Path]:
        return sorted((self.path / "wandb").glob("offline-run-*/*.wandb"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    folder = tmp_path_factory.mktemp("wandb")
    (folder / "my_task.py").write_text(MY_TASK)
    (folder / "tracked.py").write_text(TRACKED)
    (folder / "home").mkdir()

    def steps(count: int) -> bool:
        return len([row for row in read_jsonl(folder / "run/metrics.jsonl") if row["kind"] == "step"]) >= count

    with pytest.MonkeyPatch.context() as patch:
        for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL", "NETRC"):
            patch.delenv(name, raising=False)
        patch.setenv("HOME", str(folder / "home"))
        patch.setenv("FLASH_LAUNCH_ARRAY", "my-sweep")
        answers = []
        for command, at in ((OPTIONS, 3), (("resume", "run"), 14)):  # after an epoch's last step, and within one
            patch.setenv("STOP_AT", str(at))
            answers.append(flash_launch(folder, *command, send=signal.SIGTERM, when=lambda at=at: steps(at)))
        patch.delenv("STOP_AT")
        answers.append(flash_launch(folder, "resume", "run"))
        assert [answer.code for answer in answers] == [75, 75, 0], answers
        yield Run(folder, answers)


def test_nothing_is_said_left_or_written_elsewhere(run: Run) -> None:
    """Who has no key and asked for nothing is not bothered."""
    for answer in run.answers:
        assert "wandb" not in answer.out.replace("has imported wandb", "")
        assert "W&B" not in answer.out
        assert (answer.err, answer.alive) == ("", ())
    assert list((run.folder / "home").rglob("*wandb*")) == []
    assert not (run.folder / "wandb").exists()
    log = (run.path / "logs/node1_rank1.log").read_text()
    assert "rank 1 has imported wandb: False" in log
    assert "rank 0 has imported wandb: True" in (run.path / "logs/node0_rank0.log").read_text()


def test_three_attempts_are_one_run(run: Run) -> None:
    found = [beside("wandb_file").read(file) for file in run.recordings()]
    identity = json.loads((run.path / "wandb/run.json").read_text())
    assert [one.run_id for one in found] == [identity["id"]] * 3
    assert [one.exit_code for one in found] == [75, 75, 0]
    assert [one.summary["status"] for one in found] == ["stopped", "stopped", "finished"]
    for one in found:
        assert (one.project, one.group, one.job_type, one.tags) == ("proving", "my-sweep", "array", ("one", "two"))
        assert ("*", "step") in one.metrics
        assert (one.config["lr"], one.config["strategy"], one.config["world_size"]) == (0.001, "freeze_unfreeze", 2)
        assert [phase["name"] for phase in one.config["plan"]["phases"]] == ["frozen", "unfrozen"]
        assert "wandb_project" not in one.config
    numbers = [row["_step"] for one in found for row in one.history]
    assert numbers == list(range(len(numbers)))


def test_all_metrics_are_there_once(run: Run) -> None:
    rows = [row for file in run.recordings() for row in beside("wandb_file").read(file).history]
    recorded = [row for row in rows if "loss" in row]
    for ours, theirs in zip(run.metrics("step"), recorded, strict=True):
        rates = ours.pop("lr")
        assert isinstance(rates, list)
        expected = {**ours, **{f"lr/group_{number}": rate for number, rate in enumerate(rates)}}
        assert {name: theirs[name] for name in expected if name != "kind"} == {
            name: value for name, value in expected.items() if name != "kind"
        }
    for ours in run.metrics("epoch"):
        there = [row for row in rows if row["step"] == ours["step"]]
        assert ours["doubled"] == 2.0 * (ours["step"] - 1), "the last step's, wherever the run was stopped"
        assert [row["my_accuracy"] for row in there if "my_accuracy" in row] == [ours["my_accuracy"]]
        # at a step it is rank 0's; then comes the epoch's, over the ranks
        assert [row["my_loss"] for row in there if "my_loss" in row][-1] == ours["my_loss"]
    assert [row["doubled"] for row in rows if "doubled" in row] != []


def test_transitions_groups_checkpoints_and_restarts_are_there(run: Run) -> None:
    rows = [row for file in run.recordings() for row in beside("wandb_file").read(file).history]
    launches = [
        (row["launch/attempt"], row["step"], row.get("launch/resumed_from")) for row in rows if "launch/attempt" in row
    ]
    assert [launch[0] for launch in launches] == [1, 2, 3]
    assert [launch[2] for launch in launches] == [None, *(f"step_{launch[1]}" for launch in launches[1:])]
    (transition,) = [row for row in rows if row.get("event") == "transition"]
    events = {row["event"]: row for row in read_jsonl(run.path / "events.jsonl")}
    assert transition["step"] == events["transition"]["step"]
    assert transition["transition/phase"] == "unfrozen"
    assert (transition["transition/trainable_before"], transition["transition/trainable_after"]) == (18, 146)
    assert transition["transition/unfrozen"] == 4
    assert "body.0.weight" in transition["transition/unfrozen/names"]
    assert transition["transition/groups"] == 2
    groups = [
        (transition[f"transition/groups/{n}/elements"], transition[f"transition/groups/{n}/weight_decay"])
        for n in (0, 1)
    ]
    assert sorted(groups) == [(18, 0.0), (128, 0.1)]
    saved = [row["checkpoint/bytes"] for row in rows if row.get("event") == "checkpoint"]
    assert saved == [row["bytes"] for row in read_jsonl(run.path / "events.jsonl") if row["event"] == "checkpoint"]


def test_the_end_is_there(run: Run) -> None:
    last = beside("wandb_file").read(run.recordings()[-1])
    summary = json.loads((run.path / "summary.json").read_text())
    assert last.summary["parameter_digest/0"] == summary["parameter_digest"]["0"]
    assert last.summary["mine"] == 42
    assert last.summary["phases/unfrozen/trainable"] == 146
    assert last.summary["phases/unfrozen/peak_bytes"] == summary["phases"][1]["peak_bytes"]
    assert last.artifacts == ["model.safetensors"]


def test_sync_uploads_the_attempts_as_one_run(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    server_module = beside("wandb_server")
    answer = flash_launch(run.folder, "sync", "run")
    assert (answer.code, answer.err.strip()) == (
        2,
        "flash-launch: error: there is no login for api.wandb.ai: set WANDB_API_KEY, or run `wandb login`, and sync "
        "again",
    )
    monkeypatch.setenv("WANDB_API_KEY", server_module.KEY)
    monkeypatch.setenv("WANDB_BASE_URL", server_module.nobody())
    answer = flash_launch(run.folder, "sync", "run")
    assert answer.code == 1
    assert "cannot be reached from here (Connection refused)" in answer.err
    with server_module.wandb_server() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        answer = flash_launch(run.folder, "sync", "run")
        assert answer.code == 0, answer.err
        assert server_module.KEY not in answer.out + answer.err
        identity = json.loads((run.path / "wandb/run.json").read_text())
        assert f"run: 3 of 3 uploaded, {server.url}/me/proving/runs/{identity['id']}" in answer.out
        assert {bucket["name"] for bucket in server.buckets if bucket.get("name")} == {identity["id"]}
        assert [line["loss"] for line in server.lines if "loss" in line] == [row["loss"] for row in run.metrics("step")]
        assert server.exit_code == 0
        assert server.committed
        assert server.unknown == []
        assert server.summary["status"] == "finished"
        assert flash_launch(run.folder, "sync", "run").out == "flash-launch: everything is uploaded already\n"
