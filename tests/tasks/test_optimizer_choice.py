"""Optimizers and schedulers by name, function or pair; faults are told with the nearest name."""

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from flash_launch.errors import TaskError
from flash_launch.tasks.optimizer_choice import (
    available_lr_schedulers,
    available_optimizers,
    build_optimizer,
    build_scheduler,
)


def parameters() -> list[nn.Parameter]:
    return [nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3), requires_grad=False)]


def steps() -> float:
    return 40


def test_an_optimizer_by_name_has_its_default_rate_and_holds_frozen_parameters_too() -> None:
    for name in ("Adam", "adam"):
        optimizer = build_optimizer(name, parameters(), None)
        assert type(optimizer) is torch.optim.Adam
        assert optimizer.param_groups[0]["lr"] == 1e-3
        assert [p.numel() for p in optimizer.param_groups[0]["params"]] == [2, 3]


def test_an_optimizer_with_arguments_and_by_function() -> None:
    sgd = build_optimizer(("SGD", {"momentum": 0.9}), parameters(), 0.5)
    assert (type(sgd), sgd.defaults["lr"], sgd.defaults["momentum"]) == (torch.optim.SGD, 0.5, 0.9)
    assert build_optimizer(("sgd", {"lr": 0.25}), parameters(), 0.5).defaults["lr"] == 0.25
    assert build_optimizer(torch.optim.AdamW, parameters(), 0.5).defaults["lr"] == 0.5
    assert build_optimizer(lambda ps: torch.optim.SGD(ps, 0.125), parameters(), None).defaults["lr"] == 0.125


def test_a_rate_beside_a_function_that_takes_none_is_refused() -> None:
    with pytest.raises(TaskError, match=r"learning_rate=0.5 .*function"):
        build_optimizer(lambda ps: torch.optim.SGD(ps, 0.125), parameters(), 0.5)


def test_schedulers_count_epochs_or_steps_as_flashs_do() -> None:
    optimizer = build_optimizer("sgd", parameters(), 0.1)
    plain = build_scheduler(("ExponentialLR", {"gamma": 0.5}), optimizer, steps)
    assert (type(plain["scheduler"]), plain["interval"]) == (lr_scheduler.ExponentialLR, "epoch")
    step = build_scheduler(("steplr", {"step_size": 3}), optimizer, steps)
    assert (type(step["scheduler"]), step["interval"]) == (lr_scheduler.StepLR, "step")
    third = build_scheduler(("steplr", {"step_size": 3}, {"interval": "epoch", "frequency": 2}), optimizer, steps)
    assert (third["interval"], third["frequency"]) == ("epoch", 2)
    made = build_scheduler(lambda o: lr_scheduler.ConstantLR(o, 0.5), optimizer, steps)
    assert type(made["scheduler"]) is lr_scheduler.ConstantLR


def test_faults() -> None:
    optimizer = build_optimizer("sgd", parameters(), 0.1)
    with pytest.raises(TaskError, match=r"there is no optimizer 'sgdd'; did you mean 'sgd'\?"):
        build_optimizer("sgdd", parameters(), None)
    with pytest.raises(TaskError, match=r"there is no lr_scheduler 'StepLr2'; did you mean 'steplr'\?"):
        build_scheduler("StepLr2", optimizer, steps)
    with pytest.raises(TaskError, match=r"optimizer is \('sgd', 0.1\): give a name, a function, or \(name, \{argum"):
        build_optimizer(("sgd", 0.1), parameters(), None)
    with pytest.raises(TaskError, match=r"optimizer sgd cannot be built with \{'momentums': 1\}"):
        build_optimizer(("sgd", {"momentums": 1}), parameters(), None)
    with pytest.raises(TaskError, match=r"no 'intervall'; did you mean 'interval'\?"):
        build_scheduler(("steplr", {"step_size": 3}, {"intervall": "epoch"}), optimizer, steps)
    with pytest.raises(TaskError, match="must know what to look at"):
        build_scheduler("ReduceLROnPlateau", optimizer, steps)
    with pytest.raises(TaskError, match="made a int, not an optimizer"):
        build_optimizer(lambda _: 3, parameters(), None)
    with pytest.raises(TaskError, match="made a int, not a scheduler"):
        build_scheduler(lambda _: 3, optimizer, steps)


def test_names() -> None:
    assert {"adam", "adamw", "sgd", "rmsprop"} <= set(available_optimizers())
    assert "optimizer" not in available_optimizers()
    assert {"steplr", "onecyclelr", "reducelronplateau", "lambdalr"} <= set(available_lr_schedulers())
    assert not {"lrscheduler", "_lrscheduler"} & set(available_lr_schedulers())
