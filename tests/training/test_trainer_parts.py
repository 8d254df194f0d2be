"""A user's callbacks, loggers and Trainer flags: built from class_path, checked against the run, continued in files."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import pytest
import torch
from pytorch_lightning.callbacks import EarlyStopping, RichProgressBar
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.profilers import SimpleProfiler

from flash_launch.config import RunConfig
from flash_launch.errors import ConfigError, TaskError
from flash_launch.run_folder import RunFolder
from flash_launch.training.csv_logger import RunCSVLogger
from flash_launch.training.trainer_parts import LoggersSaved, build_loggers, build_parts, check_parts
from flash_strategies.errors import ParameterError
from flash_strategies.parameter_checks import Holding

DDP, ZERO2, ZERO3 = (Holding(stage, torch.float32, False) for stage in (0, 2, 3))
STOPPING = {"class_path": "lightning.pytorch.callbacks.EarlyStopping", "init_args": {"monitor": "x", "patience": "5"}}

MINE = """
import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint

class Mine(L.Callback):
    def __init__(self, every: int = 1):
        if every < 1:
            raise ValueError("every must be 1 or more")
        self.every = every

class Saves(ModelCheckpoint):
    pass
"""


def config(**trainer: object) -> RunConfig:
    return RunConfig(trainer=trainer)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(sys.path))
    (tmp_path / "trainer_parts_mine.py").write_text(MINE)
    return tmp_path


def test_callbacks_are_built_with_arguments_of_their_types(here: Path) -> None:
    mine = {"class_path": "trainer_parts_mine:Mine", "init_args": {"every": 3}}
    parts = build_parts(config(callbacks=[STOPPING, mine], deterministic="warn", profiler="simple"), DDP)
    stopping, own = parts.callbacks
    assert type(stopping) is EarlyStopping  # of Lightning's other name
    assert stopping.patience == 5
    assert own.every == 3  # type: ignore[attr-defined]
    assert parts.arguments == {"deterministic": "warn", "profiler": "simple"}
    assert parts.note == "trainer: callback EarlyStopping, callback Mine, deterministic warn, profiler simple"
    profiler = build_parts(config(profiler={"class_path": "lightning.pytorch.profilers.SimpleProfiler"}), DDP)
    assert isinstance(profiler.arguments["profiler"], SimpleProfiler)
    assert build_parts(config(), DDP).note is None


def test_a_single_callback_and_a_progress_bar(here: Path) -> None:
    parts = build_parts(config(callbacks={"class_path": "lightning.pytorch.callbacks.RichProgressBar"}), DDP)
    assert [type(one) for one in parts.callbacks] == [RichProgressBar]
    assert parts.other_bar
    assert build_parts(config(enable_progress_bar=False), DDP).other_bar
    assert not build_parts(config(callbacks=[STOPPING]), DDP).other_bar


@pytest.mark.parametrize(
    ("trainer", "error", "message"),
    [
        (
            {"callbacks": [{"class_path": "no_such.Callback"}]},
            ConfigError,
            r"--trainer\.callbacks Callback: .*No module",
        ),
        ({"callbacks": [{"class_path": "torch.nn.ReLU"}]}, ConfigError, "not correspond to a subclass of Callback"),
        ({"callbacks": [{"class_path": "EarlyStopping"}]}, ConfigError, "required: monitor"),
        ({"callbacks": [{**STOPPING, "init_args": {"monitr": "x"}}]}, ConfigError, "monitr"),
        (
            {"callbacks": [{"class_path": "trainer_parts_mine.Mine", "init_args": {"every": 0}}]},
            TaskError,
            r"--trainer\.callbacks Mine cannot be built: ValueError: every must be 1 or more",
        ),
        ({"callbacks": [{"class_path": "trainer_parts_mine.Saves"}]}, ConfigError, "Saves is not taken: .*--keep-best"),
        ({"min_epochs": "some"}, ConfigError, r"--trainer\.min_epochs some: .*int"),
        ({"logger": {"class_path": "no_such.Logger"}}, ConfigError, r"--trainer\.logger Logger: .*No module"),
        ({"logger": "tensorbord"}, ConfigError, r"--trainer\.logger tensorbord"),
        ({"gradient_clip_algorithm": "sideways"}, ConfigError, "Lightning's Trainer refuses it: .*sideways"),
        ({"profiler": "no_such"}, ConfigError, "Lightning's Trainer refuses it"),
        ({"callbacks": [STOPPING, STOPPING]}, ConfigError, "Lightning's Trainer refuses it: .*state_key"),
    ],
)
def test_what_is_wrong_is_said_before_the_start(
    here: Path, trainer: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        check_parts(config(**trainer), build_parts(config(**trainer), DDP))


def test_what_a_setup_does_not_take(here: Path) -> None:
    assert build_parts(config(gradient_clip_algorithm="value"), DDP).arguments == {"gradient_clip_algorithm": "value"}
    with pytest.raises(ConfigError, match="DeepSpeed clips by norm only"):
        build_parts(config(gradient_clip_algorithm="value"), ZERO2)
    averaging = {"class_path": "lightning.pytorch.callbacks.EMAWeightAveraging"}
    assert build_parts(config(callbacks=[averaging]), ZERO2).callbacks
    with pytest.raises(ParameterError, match="the callback EMAWeightAveraging averages weights"):
        build_parts(config(callbacks=[averaging]), ZERO3)


def test_the_preflight_writes_nothing(here: Path) -> None:
    run = config(logger=["tensorboard", "csv"], callbacks=[STOPPING])
    check_parts(run, build_parts(run, DDP))
    assert [path.name for path in here.iterdir() if path.name != "__pycache__"] == ["trainer_parts_mine.py"]


def test_tensorboard_that_is_not_installed_is_missed_before_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_TENSORBOARD_AVAILABLE", "_TENSORBOARDX_AVAILABLE"):
        monkeypatch.setattr(f"lightning_fabric.loggers.tensorboard.{name}", False)
    run = config(logger="tensorboard")
    with pytest.raises(
        TaskError, match=r"--trainer\.logger TensorBoardLogger cannot be built: [^`]*Neither `tensorboard`"
    ):
        check_parts(run, build_parts(run, DDP))


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return [{name: value for name, value in row.items() if value} for row in csv.DictReader(file)]


def test_loggers_write_into_the_run_folder_and_the_next_attempt_continues(tmp_path: Path) -> None:
    folder, run = RunFolder(tmp_path / "a_run"), config(logger=["csv", "tensorboard"])
    csv_logger, tensorboard = build_loggers(run, folder, resumed_step=0)
    assert isinstance(csv_logger, RunCSVLogger)
    assert isinstance(tensorboard, TensorBoardLogger)
    assert [Path(str(one.log_dir)) for one in (csv_logger, tensorboard)] == [
        folder.path / "csv",
        folder.path / "tensorboard",
    ]
    for step in range(4):
        csv_logger.log_metrics({"loss": 1.0 / (step + 1), "epoch": 0}, step)
    csv_logger.log_metrics({"val": 0.25, "epoch": 0}, 3)
    LoggersSaved([csv_logger]).state_dict()
    assert [row["step"] for row in rows(folder.path / "csv")] == ["0", "1", "2", "3", "3"]
    # an attempt from the checkpoint of step 2
    again = build_loggers(run, folder, resumed_step=2)[0]
    assert [row["step"] for row in rows(folder.path / "csv")] == ["0", "1"]
    for step in (2, 3):
        again.log_metrics({"loss": 9.0 + step, "epoch": 0}, step)
    again.log_metrics({"val": 0.5, "epoch": 0}, 3)
    again.save()
    # and one whose checkpoint was saved before the validation, which comes again
    last = build_loggers(run, folder, resumed_step=4)[0]
    last.log_metrics({"val": 0.5, "epoch": 0}, 3)
    last.log_metrics({"loss": 4.0, "epoch": 1, "new": 1}, 4)
    last.finalize("success")
    found = rows(folder.path / "csv")
    assert [row["step"] for row in found] == ["0", "1", "2", "3", "3", "4"]
    assert [row.get("loss") for row in found] == ["1.0", "0.5", "11.0", "12.0", None, "4.0"]
    assert [row.get("val") for row in found] == [None, None, None, None, "0.5", None]


def test_tensorboard_shows_the_values_of_the_attempt_that_resumed(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = RunFolder(tmp_path / "a_run")
    for resumed_step, value in ((0, 1.0), (2, 2.0)):
        (logger,) = build_loggers(config(logger="tensorboard"), folder, resumed_step=resumed_step)
        for step in range(resumed_step, 4):
            logger.log_metrics({"loss": value}, step)
        logger.finalize("success")
    events = EventAccumulator(str(folder.path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(0, 1.0), (1, 1.0), (2, 2.0), (3, 2.0)]


def test_a_logger_elsewhere_has_the_runs_name(tmp_path: Path) -> None:
    spec = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": str(tmp_path / "logs")}}
    (logger,) = build_loggers(config(logger=spec), RunFolder(tmp_path / "a_run"), resumed_step=0)
    assert Path(str(logger.log_dir)) == tmp_path / "logs" / "lightning_logs" / "a_run"
