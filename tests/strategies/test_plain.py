"""`Finetuner` in a loop written by hand: DDP, ZeRO-2 and ZeRO-3 on two ranks equal one process without any of them."""

import inspect
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from flash_strategies import (
    Finetuner,
    FlashBaseFinetuning,
    StrategyValueError,
    TransitionError,
    agreement,
)
from flash_strategies.errors import CheckpointError
from flash_strategies.lightning import ScheduledFinetuning

SCRIPT = Path(__file__).with_name("plain_loop.py")
SETUPS = ("ddp", "zero2", "zero3")
# fp32, twelve steps of AdamW: the sum over two halves of a batch is rounded in another order than over the whole
TOLERANCE = 2e-6


@pytest.fixture(scope="module")
def ends(start_ranks: Any, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of the two ranks found, by setup."""
    folder = tmp_path_factory.mktemp("plain")
    for ended in start_ranks([str(SCRIPT), str(folder), *SETUPS], 2, timeout=150):
        assert ended.exit_code == 0, ended.output[-3000:]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The same loop in one process, without a process group."""
    folder = tmp_path_factory.mktemp("alone")
    subprocess.run([sys.executable, "-W", "ignore", str(SCRIPT), str(folder), "ddp"], check=True, timeout=120)
    found: dict[str, Any] = torch.load(folder / "0.pt", weights_only=True)["ddp"]
    return found


@pytest.mark.parametrize("setup", SETUPS)
def test_ranks_are_equal(ends: list[dict[str, Any]], setup: str) -> None:
    first, second = (end[setup] for end in ends)
    assert first["digests"] == second["digests"]
    assert len(set(first["digests"])) == 3
    assert all(torch.equal(first["weights"][name], second["weights"][name]) for name in first["weights"])


@pytest.mark.parametrize("setup", SETUPS)
def test_equals_one_process(ends: list[dict[str, Any]], alone: dict[str, Any], setup: str) -> None:
    found = ends[0][setup]
    assert found["trainable"] == alone["trainable"] == [2, 4, 8]
    for name, expected in alone["weights"].items():
        assert torch.allclose(found["weights"][name], expected, rtol=0, atol=TOLERANCE), name


def task() -> torch.nn.Module:
    module = torch.nn.Module()
    module.backbone = torch.nn.Linear(2, 2)
    module.head = torch.nn.Linear(2, 2)
    return module


def test_freezes_before_the_optimizer_is_built() -> None:
    module = task()
    Finetuner(module, "freeze", max_epochs=2)
    assert [name for name, p in module.named_parameters() if p.requires_grad] == ["head.weight", "head.bias"]


def test_an_engine_must_be_chosen() -> None:
    with pytest.raises(TransitionError, match=r"ddp\(\) or deepspeed\(\)"):
        Finetuner(task(), "freeze").begin_epoch(0)


def test_stage_zero_is_refused() -> None:
    module = task()
    finetuner = Finetuner(module, "freeze")
    with pytest.raises(TransitionError, match="stage"):
        finetuner.deepspeed(torch.optim.SGD(module.parameters(), lr=0.1), {"zero_optimization": {"stage": 0}})


def test_an_epoch_past_the_end_is_refused() -> None:
    with pytest.raises(StrategyValueError, match="7"):
        Finetuner(task(), ("freeze_unfreeze", 7), max_epochs=5)


def test_foreign_parameters_are_refused() -> None:
    module, other = task(), torch.nn.Linear(2, 2)
    finetuner = Finetuner(module, "freeze")
    with pytest.raises(TransitionError, match="not the task's"):
        finetuner.ddp(torch.optim.SGD([*module.parameters(), *other.parameters()], lr=0.1))


def test_parameters_left_out_of_the_optimizer_stay_out() -> None:
    module = task()
    module.extra = torch.nn.Linear(2, 2)
    finetuner = Finetuner(module, ("freeze_unfreeze", 1), max_epochs=2)
    optimizer = torch.optim.SGD([p for n, p in module.named_parameters() if not n.startswith("extra")], lr=0.1)
    finetuner.ddp(optimizer)
    finetuner.begin_epoch(0)
    assert set(finetuner.transitions.trainable) == {"head.weight", "head.bias"}
    finetuner.begin_epoch(1)
    assert set(finetuner.transitions.trainable) == {"backbone.weight", "backbone.bias", "head.weight", "head.bias"}
    assert all(parameter.requires_grad for parameter in module.extra.parameters())


@pytest.mark.parametrize("setup", SETUPS)
def test_goes_on_from_its_own_checkpoint_as_if_it_had_not_stopped(ends: list[dict[str, Any]], setup: str) -> None:
    for end in ends:
        whole, resumed = end[setup], end[f"{setup} from itself"]
        assert resumed["digests"] == whole["digests"][1:]
        assert all(torch.equal(resumed["weights"][name], value) for name, value in whole["weights"].items())


@pytest.mark.parametrize("epoch", [0, 1])
@pytest.mark.parametrize(("setup", "other"), list(zip(SETUPS, [*SETUPS[1:], SETUPS[0]], strict=True)))
def test_goes_on_from_another_setup(ends: list[dict[str, Any]], setup: str, other: str, epoch: int) -> None:
    first, second = (end[f"{setup} from {other} {epoch}"] for end in ends)
    assert first["digests"] == second["digests"]
    for name, expected in ends[0][other]["weights"].items():
        assert torch.allclose(first["weights"][name], expected, rtol=0, atol=TOLERANCE), name


@pytest.mark.parametrize("setup", ["zero2", "zero3"])
def test_deepspeed_compiles_nothing_on_a_cpu(ends: list[dict[str, Any]], setup: str) -> None:
    assert not any(end[setup]["compiles"] for end in ends)


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    """A process group of one, with a time-out of 77 seconds."""
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1, timeout=timedelta(seconds=77))
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_process")
def test_another_ddp_around_or_in_the_task_is_refused() -> None:
    module = task()
    wrapped = DistributedDataParallel(module)
    with pytest.raises(TransitionError, match=r"wrapped in DistributedDataParallel.*give the module inside"):
        Finetuner(wrapped, "freeze")
    holder = task()
    holder.backbone = DistributedDataParallel(torch.nn.Linear(2, 2))
    with pytest.raises(TransitionError, match=r"Module.backbone is wrapped in DistributedDataParallel"):
        Finetuner(holder, "freeze")
    # around the task that the finetuner was given bare
    finetuner = Finetuner(module, ("freeze_unfreeze", 1), max_epochs=2)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    with pytest.raises(TransitionError, match="second DistributedDataParallel"):
        finetuner.ddp(optimizer)
    del wrapped
    model = finetuner.ddp(optimizer)
    # and around the finetuner's own, later
    wrapped = DistributedDataParallel(model)
    with pytest.raises(TransitionError, match=r"Accelerate.*not the model"):
        finetuner.begin_epoch(0)
    del wrapped
    assert finetuner.begin_epoch(1) is not model
    # a second finetuner on the same task is none
    second = Finetuner(module, "no_freeze")
    second.ddp(torch.optim.SGD(module.parameters(), lr=0.1))
    second.begin_epoch(0)


@pytest.mark.usefixtures("one_process")
def test_the_time_out_is_the_process_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agreement, "_many", lambda: True)
    assert agreement.ControlGroup()._timeout == timedelta(seconds=77)
    assert agreement.ControlGroup(5)._timeout == timedelta(seconds=5)
    monkeypatch.setattr(agreement, "_many", lambda: False)
    assert agreement.ControlGroup()._timeout == timedelta(minutes=30)
    assert inspect.signature(Finetuner).parameters["timeout"].default is None
    assert all(callback().timeout is None for callback in (ScheduledFinetuning, FlashBaseFinetuning))


def test_a_save_that_was_cut_off_leaves_nothing_in_the_next(tmp_path: Path) -> None:
    module = task()
    finetuner = Finetuner(module, "freeze")
    finetuner.ddp(torch.optim.SGD(module.parameters(), lr=0.1))
    finetuner.save(tmp_path / "whole")
    left = tmp_path / ".again.tmp"
    shutil.copytree(tmp_path / "whole", left)
    for file in left.glob("*.safetensors"):
        file.rename(left / f"of_other_ranks_{file.name}")
    (left / "junk").write_text("cut off")
    finetuner.save(tmp_path / "again")
    assert sorted(p.name for p in (tmp_path / "again").iterdir()) == sorted(
        p.name for p in (tmp_path / "whole").iterdir()
    )
    finetuner.load(tmp_path / "again")
    left.write_text("a file in the way")
    shutil.rmtree(tmp_path / "again")
    with pytest.raises(CheckpointError, match="left over from a save that was cut off"):
        finetuner.save(tmp_path / "again")
