"""The option --trainer: what reaches Lightning's Trainer, what is refused and by which reason; without torch."""

import inspect
import subprocess
import sys
from pathlib import Path

import pytest
import pytorch_lightning as pl

from flash_launch.config import RunConfig
from flash_launch.continuation import continued
from flash_launch.errors import ConfigError
from flash_launch.option_parser import parse_run_options
from flash_launch.trainer_options import REFUSED, TAKEN, callback_specs, given, logger_specs

TENSORBOARD = {"class_path": "pytorch_lightning.loggers.TensorBoardLogger"}
CSV = {"class_path": "pytorch_lightning.loggers.CSVLogger"}


def config(**trainer: object) -> RunConfig:
    return RunConfig(trainer=trainer)


def test_every_argument_of_lightnings_trainer_is_known_with_its_default() -> None:
    """Lists them again when Lightning changes."""
    parameters = dict(inspect.signature(pl.Trainer.__init__).parameters)
    del parameters["self"]
    assert {*TAKEN, *REFUSED} == set(parameters)
    assert not set(TAKEN) & set(REFUSED)
    assert {name: default for name, (default, _) in REFUSED.items()} == {
        name: parameters[name].default for name in REFUSED
    }


@pytest.mark.parametrize(
    ("trainer", "message"),
    [
        ({"max_epochs": 3}, r"--trainer\.max_epochs 3 is not taken: .* give --max-epochs"),
        ({"strategy": "ddp"}, r"--trainer\.strategy ddp .* give --setup"),
        ({"devices": 2}, r"give --procs-per-node"),
        ({"num_nodes": 2}, r"give --nodes"),
        ({"precision": "bf16-mixed"}, r"give --precision"),
        ({"accelerator": "gpu"}, r"give --accelerator"),
        ({"enable_checkpointing": False}, r"give --checkpoint-every"),
        ({"use_distributed_sampler": False}, r"the run deals the samples out"),
        ({"accumulate_grad_batches": 2}, r"give --accumulate"),
        ({"gradient_clip_val": 1.0}, r"give --gradient-clip"),
        ({"default_root_dir": "here"}, r"give --output-dir"),
        ({"determinstic": True}, r"did you mean --trainer\.deterministic\?"),
        ({"logger": False}, r"give --wandb disabled"),
        ({"logger": "tensorbord"}, None),
        (
            {"logger": {"class_path": "lightning.pytorch.loggers.WandbLogger"}},
            r"--trainer\.logger WandbLogger .*--wandb",
        ),
        (
            {"callbacks": [{"class_path": "lightning.pytorch.callbacks.ModelCheckpoint"}]},
            r"ModelCheckpoint .*--keep-best",
        ),
        ({"callbacks": [{"class_path": "BackboneFinetuning"}]}, r"BackboneFinetuning is not taken: .* give --strategy"),
        ({"callbacks": [{"init_args": {"patience": 3}}]}, r"give a class_path and init_args"),
    ],
)
def test_what_contradicts_is_refused_by_name(trainer: dict[str, object], message: str | None) -> None:
    if message is None:
        config(**trainer).check()  # no class of ours: looked for in the preflight
        return
    with pytest.raises(ConfigError, match=message):
        config(**trainer).check()


def test_lightnings_defaults_are_not_given() -> None:
    """As a LightningCLI file has them that was written by --print_config."""
    everything = {
        name: parameter.default for name, parameter in inspect.signature(pl.Trainer.__init__).parameters.items()
    }
    del everything["self"]
    config(**everything).check()
    kept = given(config(**everything))
    assert not set(kept) & set(REFUSED)
    assert "deterministic" not in kept  # null


def test_keep_best_needs_a_validation_in_each_epoch() -> None:
    run = RunConfig(trainer={"check_val_every_n_epoch": 2}, keep_best="val_accuracy")
    with pytest.raises(ConfigError, match="--keep-best val_accuracy needs a value in each epoch"):
        run.check()


def test_loggers_by_their_short_names() -> None:
    assert logger_specs(config(logger="csv")) == [CSV]
    assert logger_specs(config(logger=["tensorboard", "csv"])) == [TENSORBOARD, CSV]
    assert logger_specs(config(logger=True)) == [TENSORBOARD]
    assert logger_specs(config(logger={"class_path": "mine:Log"})) == [{"class_path": "mine.Log"}]
    assert logger_specs(config()) == []


def test_the_command_line_adds_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(
        "trainer: {log_every_n_steps: 5, callbacks: {class_path: my_callbacks.Mine, init_args: {name: '7'}}}\n"
    )
    typed = ("--trainer.log-every-n-steps", "3", "--trainer.deterministic=true", "--trainer.max_time", "00:01:00:00")
    found = parse_run_options(["--config", str(tmp_path / "run.yaml"), *typed], "usage")
    assert given(found) == {"log_every_n_steps": 3, "deterministic": True, "max_time": "00:01:00:00"}
    assert callback_specs(found) == [{"class_path": "my_callbacks.Mine", "init_args": {"name": "7"}}]
    assert RunConfig.from_yaml(found.to_yaml()) == found


def test_a_run_may_resume_with_other_callbacks() -> None:
    old, new = config(logger="csv"), config(logger="csv", callbacks=[{"class_path": "my.Callback"}])
    assert continued(old, new) == new


def test_the_launcher_imports_no_class_path(tmp_path: Path) -> None:
    """They are imported by the preflight and the ranks: neither torch nor the user's code is the launcher's."""
    (tmp_path / "lit.yaml").write_text(
        "model: {class_path: my_task.MyTask, init_args: {net: {class_path: torch.nn.ReLU}}}\n"
        "trainer: {callbacks: [{class_path: lightning.pytorch.callbacks.LearningRateMonitor}]}\n"
    )
    code = (
        "import sys; from flash_launch.option_parser import parse_run_options\n"
        f"found = parse_run_options(['--config', {str(tmp_path / 'lit.yaml')!r}], 'usage'); found.check()\n"
        "assert found.task_args == {'net': {'class_path': 'torch.nn.ReLU'}}, found\n"
        "assert not {'torch', 'lightning', 'pytorch_lightning', 'my_task'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
