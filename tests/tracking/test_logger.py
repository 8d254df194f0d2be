"""What a task reaches of W&B by its logger: nothing that goes wrong there comes back to it."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy
import pytest
import torch

from flash_launch.run_folder import RunFolder
from flash_launch.tracking.logger import RunLogger, _Shielded


class Summary:
    """As wandb's, whose process is gone from some time on."""

    def __init__(self) -> None:
        self.values: dict[str, object] = {}
        self.gone = False

    def __setitem__(self, key: str, value: object) -> None:
        if self.gone:
            raise ConnectionResetError("Connection lost")
        self.values[key] = value

    def __getitem__(self, key: str) -> object:
        return self.values[key]

    def __contains__(self, key: str) -> bool:
        return key in self.values

    def update(self, values: dict[str, object]) -> str:
        for key, value in values.items():
            self[key] = value
        return "updated"


class Run:
    """As wandb's run."""

    def __init__(self) -> None:
        self.summary, self.id, self.notes = Summary(), "abc", ""


def test_calls_go_through_and_failures_do_not_come_back() -> None:
    run, complaints = Run(), []
    experiment = _Shielded(run, complaints.append)
    experiment.summary["mine"] = 42  # type: ignore[index, attr-defined]
    assert experiment.summary.update({"more": 1}) == "updated"  # type: ignore[attr-defined]
    assert (experiment.id, experiment.summary["mine"], "more" in experiment.summary) == ("abc", 42, True)  # type: ignore[index, operator, attr-defined]
    experiment.notes = "good"
    assert run.notes == "good"
    run.summary.gone = True
    experiment.summary["late"] = 1  # type: ignore[index, attr-defined]
    experiment.summary.update({"late": 1}).anything().more["x"] = 2  # type: ignore[attr-defined]
    assert [str(error) for error in complaints] == ["Connection lost", "Connection lost"]
    with pytest.raises(AttributeError):  # the task's own mistake
        experiment.summary.no_such_thing()  # type: ignore[attr-defined]


def test_what_another_loggers_experiment_has_does_not_fail_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    experiment = _Shielded(Run(), lambda _: None, whole=True)
    for _ in range(2):
        experiment.add_scalar("loss", 1.0, 3)  # type: ignore[operator]
    assert capsys.readouterr().out.count("W&B's run, which has no add_scalar") == 1
    assert experiment.id == "abc"


def test_a_task_has_a_logger_where_nothing_is_recorded(tmp_path: Path) -> None:
    said: list[str] = []
    logger = RunLogger(RunFolder(tmp_path), None, say=said.append)
    model = torch.nn.Linear(2, 2)
    logger.watch(model, log="gradients")
    logger.experiment.config.update({"mine": 1}, allow_val_change=True)
    logger.experiment.summary["best"] = 1
    logger.experiment.add_scalar("loss", 1.0, 3)  # type: ignore[attr-defined]
    assert "best" not in logger.experiment.summary
    logger.log_metrics({"y": 1.0}, step=3)
    logger.log_hyperparams({"lr": 1.0})
    logger.log_text("texts", ["a"], [["b"]])
    logger.log_image("images", [numpy.zeros((4, 4, 3), dtype=numpy.uint8)])
    called = [sentence.split("calls ")[1].split("()")[0] for sentence in said]
    assert called == [f"self.logger.experiment.{name}" for name in ("watch", "config.update", "add_scalar")]
    copy.deepcopy(logger.experiment)
    logger.finalize("success")
    logger.close()
