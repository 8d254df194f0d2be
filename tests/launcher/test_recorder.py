"""What the recorder writes of a task's own metrics and batches."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import torch

from flash_launch.recorder import Recorder, _length
from flash_launch.run_folder import RunFolder, read_jsonl


def test_metrics_of_the_names_of_our_columns(tmp_path: Path) -> None:
    """Lightning's users log `step` and `epoch` to choose the axis of their charts."""
    folder = RunFolder(tmp_path)
    recorder = Recorder(folder, SimpleNamespace(listeners=[]), batch_size=4)  # type: ignore[arg-type]
    trainer = SimpleNamespace(global_step=7, current_epoch=1)
    metrics = {"step": 3.0, "epoch": 1.0, "kind": 2.0, "val_loss": 0.5}
    recorder._metric(trainer, "epoch", metrics)  # type: ignore[arg-type]
    (row,) = read_jsonl(folder.metrics_jsonl)
    assert row == {
        **{"step": 7, "epoch": 1, "phase": None, "kind": "epoch", "val_loss": 0.5},
        **{"task/step": 3.0, "task/epoch": 1.0, "task/kind": 2.0},
    }


def test_samples_of_a_batch() -> None:
    x = torch.zeros(5, 2)
    for batch in (x, (x, torch.zeros(5)), [torch.zeros(()), {"a": x}], {"text": ["a"], "x": x}):
        assert _length(batch) == 5
    assert _length(["a", 3]) is None
