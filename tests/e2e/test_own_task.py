"""A user's own task, data and strategies, run from the user's folder as their documentation says."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from command import Answer, flash_launch
from own_code import MY_DATA, MY_STRATEGIES, MY_TASK, THEIRS
from safetensors.torch import load_file

pytestmark = pytest.mark.timeout(600)

HEAD, LAST, BODY = 18, 72, 128
"""Elements of MyTask(width=8): top, the body's last layer, the body."""


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A folder with the user's files."""
    for name, text in (("my_task", MY_TASK), ("my_data", MY_DATA), ("my_strategies", MY_STRATEGIES)):
        (tmp_path / f"{name}.py").write_text(text)
    return tmp_path


def run(here: Path, **options: object) -> tuple[Answer, Path]:
    """A run of two ranks, its options in a YAML file."""
    (here / "run.yaml").write_text(yaml.safe_dump({"nodes": 2, **options}))
    answer = flash_launch(here, "--config", "run.yaml", "--output-dir", "run")
    assert answer.code == 0, answer.out + answer.err
    assert answer.alive == ()
    digests = json.loads((here / "run" / "summary.json").read_text())["parameter_digest"]
    assert digests["0"] == digests["1"]
    return answer, here / "run"


def steps(folder: Path) -> list[dict[str, object]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["kind"] == "step"]


def phases(folder: Path, file: str = "summary.json") -> list[tuple[str, int, int, int]]:
    """(name, first epoch, trainable, frozen) of each phase."""
    told = json.loads((folder / file).read_text())["phases"]
    return [(phase["name"], phase["first_epoch"], phase["trainable"], phase["frozen"]) for phase in told]


def module(file: Path) -> ModuleType:
    """The user's file, imported here."""
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def one_cycle(here: Path, total: int) -> list[list[float]]:
    """The learning rates of body and top at each step, as torch itself sets them for MyTask."""
    import torch

    task = module(here / "my_task.py").MyTask()
    groups = [{"params": list(task.body.parameters())}, {"params": list(task.top.parameters())}]
    optimizer = torch.optim.AdamW(groups, lr=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=[0.01, 0.1], total_steps=total)
    rates: list[list[float]] = []
    for _ in range(total):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    return rates


def test_a_task_with_its_own_optimizer_schedule_and_loaders(here: Path) -> None:
    answer, folder = run(
        here,
        task="my_task:MyTask",
        task_args={"width": 8},
        strategy="freeze_unfreeze_deepspeed",
        unfreeze_epoch=2,
        max_epochs=4,
        lr=0.5,
        seed=4,
    )
    assert "MyTask configures its own optimizer: --lr is not used" in answer.out
    assert phases(folder) == phases(folder, "plan.json")
    assert phases(folder) == [("frozen", 0, HEAD, BODY), ("unfrozen", 2, HEAD + BODY, 0)]
    # 64 samples in batches of 8 on two ranks are 4 steps an epoch. The body comes back as a group of its own before
    # the top's, as the optimizer was built, in the middle of its one cycle.
    expected = one_cycle(here, 16)
    rates = [[top] for _, top in expected[:8]] + [[body, top] for body, top in expected[8:]]
    for row, wanted in zip(steps(folder), rates, strict=True):
        assert row["lr"] == pytest.approx(wanted), row["step"]
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["metrics"]["my_accuracy"] > 0.75
    module(here / "my_task.py").MyTask().load_state_dict(load_file(folder / "model.safetensors"), strict=True)


def test_a_strategy_of_ones_own_on_ddp(here: Path) -> None:
    _, folder = run(
        here,
        task="my_task:MyTask",
        strategy="my_strategies:Stepwise",
        strategy_args={"every": 1},
        max_epochs=3,
    )
    plan = json.loads((folder / "plan.json").read_text())
    assert (plan["strategy"], plan["setup"], plan["phases_known"]) == ("my_strategies:Stepwise", "ddp", True)
    expected = [("frozen", 0, HEAD, BODY), ("last", 1, HEAD + LAST, BODY - LAST), ("all", 2, HEAD + BODY, 0)]
    assert phases(folder) == phases(folder, "plan.json") == expected


def callback_run(here: Path, setup: str) -> tuple[Answer, Path]:
    return run(
        here,
        task="my_task:Plain",
        data="my_data:Data",
        data_args={"count": 32},
        strategy="my_strategies:TopDown",
        setup=setup,
        max_epochs=3,
        lr=0.05,
    )


@pytest.mark.slow
def test_a_callback_of_ones_own_on_zero2_and_ddp(here: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    answer, folder = callback_run(here, "zero2")
    plan = json.loads((folder / "plan.json").read_text())
    assert (plan["setup"], plan["phases_known"]) == ("zero2", False)
    assert phases(folder, "plan.json") == [("start", 0, HEAD, BODY)]
    assert "my_strategies:TopDown decides at the start of each epoch" in answer.out
    assert phases(folder) == [
        ("start", 0, HEAD, BODY),
        ("TopDown at epoch 1", 1, HEAD + LAST, BODY - LAST),
        ("TopDown at epoch 2", 2, HEAD + BODY, 0),
    ]
    rates = [row["lr"] for row in steps(folder)]
    assert rates == [[0.05]] * 2 + [[0.05, 0.002]] * 2 + [[0.05, 0.002, 0.05]] * 2
    assert not list(here.glob("lightning_logs"))

    other = tmp_path_factory.mktemp("ddp")
    for file in here.glob("*.py"):
        (other / file.name).write_text(file.read_text())
    _, ddp = callback_run(other, "ddp")
    assert phases(ddp) == phases(folder)
    weights, same = load_file(folder / "model.safetensors"), load_file(ddp / "model.safetensors")
    assert weights.keys() == same.keys()
    for name, value in weights.items():
        assert value.numpy() == pytest.approx(same[name].numpy(), abs=1e-5), name


def test_a_strategy_of_another_package_by_entry_point(tmp_path: Path) -> None:
    installed = tmp_path / "installed"
    (installed / "theirs-1.0.dist-info").mkdir(parents=True)
    (installed / "theirs.py").write_text(THEIRS)
    (installed / "theirs-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (installed / "theirs-1.0.dist-info" / "entry_points.txt").write_text("[flash_strategies]\nlate = theirs:late\n")
    argv = "plan --nodes 2 --strategy late_deepspeed --strategy-args.epoch 3"
    answer = flash_launch(tmp_path, *argv.split(), python_path=installed)
    assert answer.code == 0, answer.err
    lines = answer.out.splitlines()
    assert lines[0] == "late_deepspeed on zero2, 2 ranks, 8 epochs"
    assert lines[1].startswith("data: ")
    assert [line.split("  ")[0] for line in lines[2:4]] == ["epoch 0: frozen", "epoch 3: unfrozen"]

    wrong = flash_launch(tmp_path, *["plan", "--strategy", "late", "--strategy-args.epok", "3"], python_path=installed)
    assert wrong.code == 2
    assert wrong.err == (
        "flash-launch: error: --strategy late cannot be used: KeyError: 'epoch' "
        "(it was given --strategy-args {'epok': 3})\n"
    )
