"""The schedules: equal to torch's own, above zero at the first step, without a jump for a group that comes later."""

import pickle

import pytest
import torch
from torch.optim import lr_scheduler

from flash_launch.errors import ConfigError
from flash_launch.lr_schedules import (
    Constant,
    Cosine,
    Linear,
    OneCycle,
    Schedule,
    build_schedule,
    build_scheduler,
    schedule_names,
)

LR = 0.3


def optimizer() -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))], lr=LR)


def rates(scheduler: lr_scheduler.LRScheduler, steps: int) -> list[float]:
    rates = []
    for _ in range(steps):
        rates.append(scheduler.optimizer.param_groups[0]["lr"])
        scheduler.optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("total", [2, 3, 7, 10, 100])
def test_one_cycle_is_torchs(total: int) -> None:
    theirs = lr_scheduler.OneCycleLR(optimizer(), max_lr=LR, total_steps=total, cycle_momentum=False)
    ours = build_scheduler(optimizer(), OneCycle(total))
    assert rates(ours, total - 1) == pytest.approx(rates(theirs, total - 1), rel=1e-12)


def test_one_cycle_with_its_own_way_up_is_torchs_with_that_share() -> None:
    theirs = lr_scheduler.OneCycleLR(optimizer(), max_lr=LR, total_steps=50, pct_start=0.1, cycle_momentum=False)
    assert rates(build_scheduler(optimizer(), OneCycle(50, 5)), 49) == pytest.approx(rates(theirs, 49), rel=1e-12)


def test_cosine_and_linear_without_warmup_are_torchs() -> None:
    cosine = lr_scheduler.CosineAnnealingLR(optimizer(), T_max=20, eta_min=0.1 * LR)
    assert rates(build_scheduler(optimizer(), Cosine(20, final=0.1)), 20) == pytest.approx(rates(cosine, 20), rel=1e-9)
    linear = lr_scheduler.LinearLR(optimizer(), start_factor=1.0, end_factor=0.2, total_iters=20)
    assert rates(build_scheduler(optimizer(), Linear(20, final=0.2)), 20) == pytest.approx(rates(linear, 20), rel=1e-9)


@pytest.mark.parametrize("name", schedule_names())
@pytest.mark.parametrize("warmup", [0, 1, 4])
def test_every_schedule_moves_at_its_first_step_and_never_above_its_peak(name: str, warmup: int) -> None:
    schedule = build_schedule(name, total_steps=20, warmup_steps=warmup)
    factors = [schedule(step) for step in range(40)]
    assert factors[0] > 0
    assert max(factors) == pytest.approx(1.0)
    assert min(factors) >= 0
    assert len(set(factors[20:])) == 1, "after the last step it stays"


def test_warmup_rises_by_equal_steps_from_the_first() -> None:
    expected = [0.25, 0.5, 0.75, 1.0, 1.0]
    assert [Constant(4)(step) for step in range(5)] == expected
    assert [Linear(8, 4)(step) for step in range(5)] == expected
    assert Cosine(8, 4)(6) == pytest.approx(0.5)


@pytest.mark.parametrize("schedule", [Constant(3), Cosine(9, 2), Linear(9), OneCycle(9)])
def test_schedules_survive_pickling_and_a_schedulers_state(schedule: Schedule) -> None:
    assert pickle.loads(pickle.dumps(schedule)) == schedule
    first = build_scheduler(optimizer(), schedule)
    rates(first, 4)
    second = build_scheduler(optimizer(), schedule)
    second.load_state_dict(first.state_dict())
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    assert rates(second, 4) == rates(first, 4)


def test_one_function_serves_all_groups() -> None:
    both = torch.optim.SGD([{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (1.0, 0.1)], lr=1.0)
    scheduler = build_scheduler(both, Cosine(10))
    rates(scheduler, 3)
    assert scheduler.lr_lambdas[0] is scheduler.lr_lambdas[1]
    assert both.param_groups[0]["lr"] == pytest.approx(10 * both.param_groups[1]["lr"])


@pytest.mark.parametrize(
    ("name", "total", "warmup", "told"),
    [
        ("cosin", 10, 0, "did you mean 'cosine'"),
        ("cosine", None, 0, "--lr-schedule constant"),
        ("linear", 10, 10, "--warmup-steps 10 leaves nothing"),
        ("one_cycle", 10, -1, "0 or more"),
        ("cosine", 0, 0, "at least 1"),
    ],
)
def test_what_makes_no_sense_is_refused(name: str, total: int | None, warmup: int, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        build_schedule(name, total_steps=total, warmup_steps=warmup)
