"""What a frozen module holds in buffers stands still, whatever its forward pass does, and moves once it is unfrozen."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from flash_strategies import Finetuner
from flash_strategies.agreement import ControlGroup
from flash_strategies.buffers import combined, equalise, kept_types, reduction_of
from flash_strategies.errors import ProofError, StrategyValueError
from flash_strategies.frozen_buffers import FrozenBuffers


class Moving(nn.Module):
    """An average that moves in eval mode too, and a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("average", torch.zeros(3))
        self.register_buffer("constant", torch.arange(3.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.average.data.lerp_(x.detach().mean(dim=0), 0.5)
        return x - self.average + self.constant


class Constant(nn.Module):
    """Tables and masks, as of positions."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.ones(3), persistent=False)
        self.register_buffer("nothing", None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.table


class Task(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(3, 3), Moving(), Constant(), nn.BatchNorm1d(3))
        self.norm = nn.InstanceNorm1d(1, track_running_stats=True)
        self.head = nn.Linear(3, 2)

    def modules_to_freeze(self) -> list[nn.Module]:
        return [self.backbone, self.norm]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.backbone(x)[:, None])[:, 0])


def buffers(task: nn.Module) -> dict[str, torch.Tensor]:
    return {name: buffer.clone() for name, buffer in task.named_buffers()}


def moved(task: nn.Module, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, buffer in task.named_buffers() if not torch.equal(buffer, before[name])}


NORM = {f"backbone.3.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")}
OTHERS = {"backbone.1.average", "norm.running_mean", "norm.running_var"}


@pytest.mark.parametrize("train_bn", [True, False])
def test_frozen_buffers_move_from_the_unfreezing_on(train_bn: bool) -> None:
    task = Task()
    finetuner = Finetuner(task, ("freeze_unfreeze", 2), max_epochs=4, train_bn=train_bn)
    finetuner.ddp(optimizer := torch.optim.SGD(task.parameters(), lr=0.1))
    for epoch in range(4):
        finetuner.begin_epoch(epoch)
        before = buffers(task)
        for _ in range(2):
            task(torch.randn(4, 3)).square().mean().backward()
            finetuner.before_step()
            optimizer.step()
            finetuner.after_step()
            optimizer.zero_grad()
        assert moved(task, before) == (NORM | OTHERS if epoch >= 2 else NORM if train_bn else set())
        finetuner.end_epoch()


def test_the_digest_of_an_epoch_knows_buffers() -> None:
    task = Task()
    finetuner = Finetuner(task, "no_freeze")
    finetuner.ddp(torch.optim.SGD(task.parameters(), lr=0.1))
    before = finetuner.end_epoch()
    task.norm.running_var += 1
    assert finetuner.end_epoch() != before


def test_what_writes_to_a_frozen_buffer_from_outside_is_named() -> None:
    task = Task()
    finetuner = Finetuner(task, "freeze")
    finetuner.ddp(torch.optim.SGD(task.parameters(), lr=0.1))
    finetuner.begin_epoch(0)
    task.backbone[1].average += 1
    with pytest.raises(ProofError, match=r"buffer backbone\.1\.average moved while frozen"):
        finetuner.end_epoch()


def test_constants_are_copied_in_one_forward_pass_only() -> None:
    task = Task()
    held = FrozenBuffers(task)
    held.hold(["backbone.1", "backbone.2"])
    task.eval()
    task(torch.randn(4, 3))  # says nothing of training
    task.train()
    tables = []
    task.backbone[2].register_forward_hook(lambda module, args, output: tables.append(module.table is table))
    table = task.backbone[2].table
    assert [bool(module._forward_hooks) for module in (task.backbone[1], task.backbone[2])] == [True, True]
    for _ in range(2):
        task(torch.randn(4, 3))
    assert len(task.backbone[1]._forward_hooks) == 1
    assert len(task.backbone[2]._forward_hooks) == 1  # this test's
    held.hold([])
    assert not task.backbone[1]._forward_hooks
    assert held.moved() == []


def test_a_forward_pass_that_fails_leaves_the_buffers_as_they_were() -> None:
    task = Task()
    held = FrozenBuffers(task)
    held.hold(["backbone.1"])
    before = task.backbone[1].average
    with pytest.raises(RuntimeError):
        task.backbone[1](torch.randn(4, 5))
    assert task.backbone[1].average is before
    assert held.moved() == []


def test_reductions() -> None:
    one, two = torch.tensor([1.0, -0.0]), torch.tensor([3.0, 2.0])
    assert combined([one, two], "mean").tolist() == [2.0, 1.0]
    assert combined([one, two], "max").tolist() == [3.0, 2.0]
    assert combined([one, two], "min").tolist() == [1.0, 0.0]
    assert combined([one, two], "rank0") is one
    assert combined([torch.tensor(3), torch.tensor(5)], "max").dtype == torch.int64
    assert reduction_of("a.b", one, {}) == "mean"
    assert reduction_of("a.b", torch.tensor(1 + 2j), {}) == "mean"
    assert reduction_of("a.b", torch.tensor(3), {}) == "max"
    assert reduction_of("a.b", torch.tensor([3, 4]), {}) == "rank0"
    assert reduction_of("a.b", torch.tensor(True), {}) == "rank0"
    assert reduction_of("a.b", one, {"a.*": "min"}) == "min"


@pytest.mark.parametrize("given", [{"a": "median"}, ["a"], "mean"])
def test_an_unknown_reduction_is_refused(given: object) -> None:
    task = Task()
    task.buffer_reduction = given
    with pytest.raises(StrategyValueError, match=r"Task.buffer_reduction is .*'mean', 'max', 'min', 'rank0'"):
        equalise(task, ControlGroup())


def test_buffers_that_a_modules_own_hook_writes_to_stand_still() -> None:
    task = Task()
    task.backbone[0] = nn.utils.spectral_norm(nn.Linear(3, 3))
    held = FrozenBuffers(task)
    held.hold(["backbone.0"])
    before = buffers(task)
    task(torch.randn(4, 3))
    assert not moved(task, before) & {"backbone.0.weight_u", "backbone.0.weight_v"}
    assert held.moved() == []
    held.hold([])
    task(torch.randn(4, 3))
    assert {"backbone.0.weight_u", "backbone.0.weight_v"} <= moved(task, before)


def test_a_frozen_scripted_norm_stands_still() -> None:
    task = Task()
    task.backbone[3] = torch.jit.script(nn.BatchNorm1d(3))
    held = FrozenBuffers(task)
    held.hold(["backbone.3"])
    before = buffers(task)
    task(torch.randn(4, 3))
    assert not moved(task, before) & NORM
    assert held.moved() == []
    held.hold([])
    task(torch.randn(4, 3))
    assert moved(task, before) >= NORM


def test_buffers_keep_their_type_through_a_cast() -> None:
    task = nn.Module()
    given = {
        "complex": torch.tensor([1 + 2j]),
        "double": torch.tensor([0.1], dtype=torch.float64),
        "half": torch.tensor([0.5], dtype=torch.float16),
    }
    task.given = nn.Module()
    task.given._buffers.update(given)
    with kept_types(task, torch.float32):
        task.to(torch.float32)
    assert all(buffer is given[name.removeprefix("given.")] for name, buffer in task.named_buffers())
    with kept_types(task, torch.bfloat16):
        task.to(torch.bfloat16)
    types = {name: buffer.dtype for name, buffer in task.given.named_buffers()}
    assert types == {"complex": torch.complex64, "double": torch.bfloat16, "half": torch.bfloat16}
