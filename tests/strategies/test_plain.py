"""`Finetuner` in a loop written by hand: DDP, ZeRO-2 and ZeRO-3 on two ranks equal one process without any of them."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from flash_strategies import Finetuner, StrategyValueError, TransitionError

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
