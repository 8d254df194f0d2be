"""Outputs: logits become labels, classes and probabilities of each sample."""

import pytest
import torch

from flash_launch.errors import TaskError
from flash_launch.tasks.outputs import convert, output_names

LOGITS = [torch.tensor([[0.0, 2.0], [3.0, 3.5]]), torch.tensor([[1.0, -1.0]])]


def test_one_label_per_sample() -> None:
    assert convert(LOGITS, "labels", ["ants", "bees"]) == [["bees", "bees"], ["ants"]]
    assert convert(LOGITS, "classes") == [[1, 1], [0]]
    assert convert(LOGITS, "logits") == [[[0.0, 2.0], [3.0, 3.5]], [[1.0, -1.0]]]
    first, _ = convert(LOGITS, "probabilities")
    assert first[0] == pytest.approx([0.119203, 0.880797], abs=1e-6)
    (sample,) = convert(LOGITS, "preds")[1]
    assert torch.equal(sample, torch.tensor([1.0, -1.0]))


def test_several_labels_per_sample_are_those_above_one_half() -> None:
    logits = [torch.tensor([[0.1, -0.1, 5.0], [-1.0, -1.0, -1.0]])]
    assert convert(logits, "labels", ["a", "b", "c"], multi_label=True) == [[["a", "c"], []]]
    assert convert(logits, "classes", multi_label=True) == [[[0, 2], []]]
    assert convert(logits, "probabilities", multi_label=True)[0][1] == pytest.approx([0.268941] * 3, abs=1e-6)


def test_half_precision_is_converted_in_float32() -> None:
    ((row,),) = convert([torch.tensor([[0.0, 2.0]], dtype=torch.bfloat16)], "probabilities")
    assert row == pytest.approx([0.119203, 0.880797], abs=1e-6)


def test_labels_that_are_not_known_are_numbers_and_said(caplog: pytest.LogCaptureFixture) -> None:
    assert convert(LOGITS, "labels") == [[1, 1], [0]]
    assert "give the task labels=[...]" in caplog.text


def test_faults() -> None:
    assert output_names() == ("classes", "labels", "logits", "preds", "probabilities")
    with pytest.raises(TaskError, match=r"no output 'label', the nearest is 'labels'"):
        convert(LOGITS, "label")
    with pytest.raises(TaskError, match="3 labels are given for 2 classes"):
        convert(LOGITS, "labels", ["a", "b", "c"])
    with pytest.raises(TaskError, match=r"shape \(samples, classes\), and predict_step gave a tensor of shape \(3,\)"):
        convert([torch.zeros(3)], "classes")
