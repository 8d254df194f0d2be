"""Whole runs of the command on two ranks: what one leaves, that it repeats, that finetuning helps, how one fails."""

from __future__ import annotations

import json
import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from command import Answer, flash_launch
from safetensors.torch import load_file

from flash_launch.config import RunConfig
from flash_launch.data.digits import Digits
from flash_launch.run_folder import read_jsonl
from flash_launch.tasks.image import ImageClassifier

pytestmark = pytest.mark.timeout(600)

BACKBONE, WHOLE = 49_680, 51_077
BATCH_NORMS_AND_HEAD = 1_397


@dataclass(frozen=True)
class Run:
    """A run that finished."""

    answer: Answer
    path: Path

    def json(self, name: str) -> dict[str, object]:
        value = json.loads((self.path / name).read_text())
        assert isinstance(value, dict)
        return value

    def jsonl(self, name: str) -> list[dict[str, object]]:
        return [json.loads(line) for line in (self.path / name).read_text().splitlines()]

    @property
    def metrics(self) -> dict[str, float]:
        return self.json("summary.json")["metrics"]  # type: ignore[return-value]


def read(file: Path) -> list[dict[str, object]]:
    """The rows of a file of one object per line, if it is there yet."""
    return list(read_jsonl(file))


def finished(folder: Path, *argv: str) -> Run:
    """A run of two ranks that ends well."""
    answer = flash_launch(folder, "--nodes", "2", *argv, "--output-dir", "run")
    assert answer.code == 0, answer.out + answer.err
    assert answer.alive == ()
    return Run(answer, folder / "run")


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The demo, as the README gives it."""
    folder = tmp_path_factory.mktemp("demo")
    answer = flash_launch(folder, "--nodes", "2", "--strategy", "freeze_unfreeze_deepspeed")
    assert answer.code == 0, answer.out + answer.err
    (path,) = (folder / "runs").iterdir()
    return Run(answer, path)


def test_a_run_leaves_all_it_promises(demo: Run) -> None:
    assert sorted(path.name for path in demo.path.iterdir()) == [
        *("attempts", "checkpoints", "config.yaml", "deepspeed.json", "events.jsonl", "logs", "metrics.jsonl"),
        *("model.safetensors", "plan.json", "summary.json"),
    ]
    logs = ["node0_agent.log", "node0_rank0.log", "node1_agent.log", "node1_rank1.log"]
    assert sorted(path.name for path in (demo.path / "logs").iterdir()) == logs
    config = RunConfig.from_yaml((demo.path / "config.yaml").read_text())
    assert (config.nodes, config.procs_per_node, config.setup) == (2, 1, "zero2")
    assert [path.name for path in demo.path.parent.parent.iterdir()] == ["runs"]
    assert demo.answer.alive == ()


def test_the_console_tells_what_happens(demo: Run) -> None:
    out = demo.answer.out
    assert "no cluster here: running 2 nodes x 1 rank on this machine (gloo, CPU)" in out
    assert f"epoch 0: frozen    trains {BATCH_NORMS_AND_HEAD:,} of {WHOLE:,} parameters" in out
    assert "epoch 4: phase unfrozen, 1,397 -> 51,077 trainable parameters" in out
    assert f"val_accuracy {demo.metrics['val_accuracy']:.4g}" in out
    assert "Traceback" not in out
    assert "Warning" not in out
    assert demo.answer.err == ""


def test_the_engines_configuration_is_resolved(demo: Run) -> None:
    text = (demo.path / "deepspeed.json").read_text()
    assert '"auto"' not in text
    config = json.loads(text)
    assert config["zero_optimization"]["stage"] == 2
    assert (config["train_micro_batch_size_per_gpu"], config["gradient_accumulation_steps"]) == (32, 1)


def test_the_plan_says_what_then_trains(demo: Run) -> None:
    planned, done = demo.json("plan.json"), demo.json("summary.json")
    facts = [
        [(phase["name"], phase["first_epoch"], phase["trainable"], phase["frozen"]) for phase in source["phases"]]
        for source in (planned, done)
    ]
    assert facts[0] == facts[1]
    assert facts[0] == [("frozen", 0, BATCH_NORMS_AND_HEAD, BACKBONE), ("unfrozen", 4, WHOLE, 0)]
    assert planned["phases_known"] is True
    names = planned["phases"][0]["trainable_names"]
    assert "head.weight" in names
    assert "backbone.stages.0.0.weight" not in names


def test_the_summary_has_its_schema(demo: Run) -> None:
    summary = demo.json("summary.json")
    assert sorted(summary) == ["epochs", "metrics", "parameter_digest", "phases", "status", "steps", "world_size"]
    assert (summary["status"], summary["world_size"], summary["steps"], summary["epochs"]) == ("finished", 2, 16, 8)
    assert sorted(demo.metrics) == ["train_loss", "train_loss_epoch", "val_accuracy", "val_loss"]
    digests = summary["parameter_digest"]
    assert sorted(digests) == ["0", "1"]
    assert digests["0"] == digests["1"]
    assert len(bytes.fromhex(digests["0"])) == 32
    frozen, unfrozen = summary["phases"]
    for phase in (frozen, unfrozen):
        assert sorted(phase) == [
            *("bytes_sent_per_step", "first_epoch", "frozen", "name", "peak_bytes", "state_bytes", "step_seconds"),
            *("steps", "trainable"),
        ]
        assert phase["steps"] == 8
        assert 0 < phase["step_seconds"] < 10
        assert phase["peak_bytes"] > 10_000_000
        # half of two moments and one master in fp32 on each rank, rounded up to what the partitions are aligned to
        state = phase["state_bytes"]
        assert state["masters"] == pytest.approx(4 * phase["trainable"] / 2, rel=0.01)
        assert state["moments"] == 2 * state["masters"]
    # what is frozen is not sent: traffic goes with what trains
    sent = unfrozen["bytes_sent_per_step"] / frozen["bytes_sent_per_step"]
    assert sent == pytest.approx(WHOLE / BATCH_NORMS_AND_HEAD, rel=0.05)


def test_metrics_and_events_are_told_as_they_happen(demo: Run) -> None:
    rows = demo.jsonl("metrics.jsonl")
    steps = [row for row in rows if row["kind"] == "step"]
    epochs = [row for row in rows if row["kind"] == "epoch"]
    assert [row["step"] for row in steps] == list(range(1, 17))
    assert [row["epoch"] for row in epochs] == list(range(8))
    assert [row["phase"] for row in epochs] == ["frozen"] * 4 + ["unfrozen"] * 4
    assert all(row["loss"] > 0 and row["examples_per_s"] > 0 for row in steps)  # type: ignore[operator]
    assert {name: epochs[-1][name] for name in demo.metrics} == demo.metrics
    events = demo.jsonl("events.jsonl")
    assert [event["event"] for event in events if event["event"] != "checkpoint"] == ["launch", "start", "transition"]
    saves = [event for event in events if event["event"] == "checkpoint"]
    assert [event["step"] for event in saves] == list(range(2, 17, 2))
    assert [event["frozen_bytes"] > 0 for event in saves] == [True] + [False] * 7  # type: ignore[operator]
    assert all(event["bytes"] > 0 and event["stall"] > 0 for event in saves)  # type: ignore[operator]
    assert sorted(path.name for path in (demo.path / "checkpoints").iterdir()) == ["frozen", "step_14", "step_16"]
    (transition,) = (event for event in events if event["event"] == "transition")
    assert (transition["epoch"], transition["step"], transition["phase"]) == (4, 8, "unfrozen")
    assert "backbone.stages.0.0.weight" in transition["unfrozen"]  # type: ignore[operator]
    assert transition["seconds"] > 0  # type: ignore[operator]
    assert transition["bytes_after"]["masters"] > 30 * transition["bytes_before"]["masters"]  # type: ignore[index]


def test_the_weights_load_into_a_fresh_task_and_score_the_same(demo: Run) -> None:
    task = ImageClassifier("digits_net", 5, "none")
    task.load_state_dict(load_file(demo.path / "model.safetensors"), strict=True)
    task.eval()
    data = Digits(batch_size=771, seed=0).val_dataset()
    images, labels = data[:]
    with torch.no_grad():
        accuracy = (task(images).argmax(dim=1) == labels).float().mean().item()
    assert accuracy == pytest.approx(demo.metrics["val_accuracy"], abs=1e-6)


@pytest.mark.slow
def test_one_command_starts_it_stops_and_goes_on_bit_for_bit(demo: Run, tmp_path: Path) -> None:
    shutil.copy(demo.path / "config.yaml", tmp_path / "config.yaml")
    metrics = tmp_path / "run" / "metrics.jsonl"
    command = ("--config", "config.yaml", "--resume", "auto")
    stopped = flash_launch(
        tmp_path, *command, "--output-dir", "run", send=signal.SIGTERM, when=lambda: len(read(metrics)) > 2
    )
    assert (stopped.code, stopped.err, stopped.alive) == (75, "", ())
    assert "go on from step_" in stopped.out
    done = read(metrics)[-1]["step"]
    again = finished(tmp_path, *command)
    assert f"attempt 2 goes on from step_{done} " in again.answer.out
    assert len(read(metrics)) == len(read(demo.path / "metrics.jsonl"))
    third = flash_launch(tmp_path, *command, "--output-dir", "run")
    assert (third.code, third.err) == (0, "")
    assert "the run has finished its 8 epochs" in third.out
    assert again.json("summary.json")["parameter_digest"] == demo.json("summary.json")["parameter_digest"]
    assert again.metrics == demo.metrics
    assert (again.path / "model.safetensors").read_bytes() == (demo.path / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_unfreezing_beats_staying_frozen(demo: Run, tmp_path: Path) -> None:
    frozen = finished(tmp_path, "--strategy", "freeze_deepspeed")
    assert demo.metrics["val_accuracy"] > 0.85
    assert demo.metrics["val_accuracy"] > frozen.metrics["val_accuracy"] + 0.2


@pytest.mark.slow
def test_pretrained_weights_beat_random_ones(demo: Run, tmp_path: Path) -> None:
    random = finished(tmp_path, "--strategy", "freeze_unfreeze_deepspeed", "--weights", "none")
    assert demo.metrics["val_accuracy"] > random.metrics["val_accuracy"] + 0.05


@pytest.mark.slow
def test_ddp_learns_what_zero2_learns(demo: Run, tmp_path: Path) -> None:
    """The same sums in another order: after 16 steps in fp32 the losses agree to a thousandth."""
    ddp = finished(tmp_path, "--strategy", "freeze_unfreeze")
    assert ddp.json("plan.json")["setup"] == "ddp"
    digests = ddp.json("summary.json")["parameter_digest"]
    assert digests["0"] == digests["1"]  # type: ignore[index]
    assert ddp.metrics["val_loss"] == pytest.approx(demo.metrics["val_loss"], rel=1e-3)
    assert ddp.metrics["val_accuracy"] == pytest.approx(demo.metrics["val_accuracy"], abs=3 / 771)


@pytest.mark.slow
def test_a_run_in_bf16(tmp_path: Path) -> None:
    run = finished(tmp_path, *["--strategy", "freeze_unfreeze_deepspeed", "--precision", "bf16", "--max-epochs", "2"])
    config = run.json("deepspeed.json")
    assert (config["bf16"], "fp16" in config and config["fp16"]["enabled"]) == ({"enabled": True}, False)
    summary = run.json("summary.json")
    assert summary["status"] == "finished"
    assert len(set(summary["parameter_digest"].values())) == 1
    assert [phase["name"] for phase in summary["phases"]] == ["frozen", "unfrozen"]
    assert 0 < run.metrics["val_loss"] < 10
    weights = load_file(run.path / "model.safetensors")  # as the ranks held them; bf16 halves the file
    assert {value.dtype for value in weights.values()} == {torch.bfloat16, torch.int64}
    ImageClassifier("digits_net", 5, "none").load_state_dict(weights, strict=True)


FAILING = """
import pathlib, time
from flash_launch.tasks.image import ImageClassifier

class Failing(ImageClassifier):
    def training_step(self, batch, index):
        if self.global_rank == 1 and self.global_step == 3:
            pathlib.Path("failed").write_text(repr(time.time()))
            raise ValueError("pixel 7 is not a number")
        return super().training_step(batch, index)
"""


@pytest.mark.slow
def test_a_rank_that_fails_ends_the_run_and_is_named(tmp_path: Path) -> None:
    (tmp_path / "my_task.py").write_text(FAILING)
    argv = "--nodes 2 --strategy freeze_unfreeze_deepspeed --task my_task:Failing --data digits --output-dir run"
    answer = flash_launch(tmp_path, *argv.split())
    assert time.time() - float((tmp_path / "failed").read_text()) < 10
    assert answer.code == 1
    verdict = answer.err.splitlines()
    assert "rank 1 (node 1, " in verdict[0]
    assert "failed first: ValueError: pixel 7 is not a number" in verdict[0]
    assert verdict[1:] == [
        "  where: the forward pass after step 3 (epoch 1)",
        f"  at {tmp_path / 'my_task.py'}:9 in training_step",
        f"  log: {tmp_path / 'run' / 'logs' / 'node1_rank1.log'}",
    ]
    assert "Traceback" not in answer.out + answer.err
    assert 'raise ValueError("pixel 7 is not a number")' in (tmp_path / "run/logs/node1_rank1.log").read_text()
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["status"] == "failed"
    assert "pixel 7" in summary["verdict"]
    assert answer.alive == ()
