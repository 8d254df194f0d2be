"""Going on with a run: what may change, what may not, where it goes on, and what is dropped from metrics.jsonl."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flash_launch.checkpoint.attempts import begin
from flash_launch.checkpoint.manifest import Manifest, Position
from flash_launch.config import RunConfig
from flash_launch.continuation import MAY_CHANGE, STRATEGY, check_can_go_on, continued, find, trim_metrics
from flash_launch.errors import ConfigError
from flash_launch.run_folder import RunFolder, read_jsonl, write_json

OLD = RunConfig(strategy="freeze_unfreeze_deepspeed", setup="zero2", max_epochs=8)


def test_every_option_is_sorted_in() -> None:
    fixed = {
        *("task", "task_args", "backbone", "weights", "data", "data_args", "val_fraction", "image_size", "seed"),
        *("optimizer", "lr", "weight_decay", "no_decay", "momentum", "lr_schedule", "warmup_steps"),
        *("backbone_lr", "backbone_lr_ratio", "backbone_lr_ramp", "backbone_lr_align"),
        *("gradient_clip", "precision", "wandb_project", "wandb_entity"),
    }
    assert set(vars(OLD)) == MAY_CHANGE | STRATEGY | fixed


@pytest.mark.parametrize(
    "changes",
    [
        {"nodes": 4},
        {"setup": "zero3"},
        {"batch_size": 8, "accumulate": 2},
        {"checkpoint_every": (5, "steps")},
        {"unfreeze_epoch": 6},
    ],
)
def test_what_may_change(changes: dict[str, object]) -> None:
    assert continued(OLD, OLD.replace(**changes)) == OLD.replace(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr": 0.5}, "--lr cannot change when a run goes on: it was 0.001 and is now 0.5"),
        ({"seed": 1, "data": "pictures"}, r"--data \(and --seed\) cannot change"),
        ({"precision": "bf16"}, "--precision cannot change"),
        ({"strategy": "mine:Own", "setup": "zero2"}, "--strategy was freeze_unfreeze_deepspeed and is now mine:Own"),
    ],
)
def test_what_may_not(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        continued(OLD, OLD.replace(**changes))


def test_epochs_that_were_shares_of_the_run_stay_where_they_were() -> None:
    assert continued(OLD, OLD.replace(max_epochs=20)).unfreeze_epoch == 4
    old = RunConfig(strategy="unfreeze_milestones", max_epochs=9)
    assert continued(old, old.replace(max_epochs=12)).milestones == (3, 6)
    assert continued(OLD, OLD.replace(max_epochs=20, unfreeze_epoch=5)).unfreeze_epoch == 5
    given = OLD.replace(unfreeze_epoch=2)
    assert continued(given, given.replace(max_epochs=20)).unfreeze_epoch == 2


def test_nothing_saved_yet_starts_again(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    begin(folder.attempts)
    continuation = find(folder, OLD)
    assert (continuation.manifest, continuation.finished) == (None, False)
    assert "starts again" in continuation.notes[0]


def test_a_finished_run_has_nothing_to_do_until_it_gets_more_epochs(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    begin(folder.attempts)
    write_json(folder.summary_json, {"status": "finished", "epochs": 8})
    assert find(folder, OLD).finished
    assert not find(folder, OLD.replace(max_epochs=9)).finished


def test_a_run_of_an_older_version_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="attempts/, of a version"):
        check_can_go_on(RunFolder(tmp_path))


def manifest(step: int, epoch: int, batch: int, *, validating: bool = False) -> Manifest:
    position = Position(step, epoch, batch, 0, validating)
    return Manifest("step", "run", 1, position, 0.0, "", "", (), 2, "ddp", 8, 1, {}, (), {})


@pytest.mark.parametrize(
    ("at", "steps", "epochs"),
    [
        (manifest(5, 1, 1), [1, 2, 3, 4, 5], [0]),
        (manifest(4, 1, 0), [1, 2, 3, 4], [0]),
        (manifest(4, 0, 4, validating=True), [1, 2, 3, 4], []),
        (None, [], []),
    ],
)
def test_rows_that_will_be_written_again_are_dropped(
    tmp_path: Path, at: Manifest | None, steps: list[int], epochs: list[int]
) -> None:
    folder = RunFolder(tmp_path)
    rows: list[dict[str, object]] = []
    for step in range(1, 9):
        rows.append({"kind": "step", "step": step, "epoch": (step - 1) // 4})
        if step % 4 == 0:
            rows.append({"kind": "epoch", "step": step, "epoch": step // 4 - 1})
    folder.metrics_jsonl.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"kind": "st')
    trim_metrics(folder, at)
    left = list(read_jsonl(folder.metrics_jsonl))
    assert [row["step"] for row in left if row["kind"] == "step"] == steps
    assert [row["epoch"] for row in left if row["kind"] == "epoch"] == epochs
