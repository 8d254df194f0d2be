"""Plans of a phase: groups that go on and new ones; fingerprints, and the first difference in words."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from flash_strategies.engines.ddp import DDPEngine
from flash_strategies.errors import TransitionError
from flash_strategies.plan import GroupPlan, PhasePlan, first_difference

HEAD, BACKBONE = {"lr": 0.3, "weight_decay": 0.01}, {"lr": 0.02, "weight_decay": 0.5}


class Task(nn.Module):
    """A backbone of three layers, the first in another type, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(2, 2).double(), nn.Linear(2, 2), nn.Linear(2, 2))
        self.head = nn.Linear(2, 1)


def names(task: nn.Module, *parts: str) -> list[str]:
    return [name for name, _ in task.named_parameters() if name.startswith(parts)]


def engine(*trainable: str, groups: bool = True) -> DDPEngine:
    """On one rank, over a user's own optimizer that holds all parameters, frozen ones too."""
    task = Task()
    for name, parameter in task.named_parameters():
        parameter.requires_grad_(name.startswith(trainable))
    if groups:
        own = [{"params": task.head.parameters(), **HEAD}, {"params": task.backbone.parameters(), **BACKBONE}]
        return DDPEngine(task, torch.optim.AdamW(own, betas=(0.8, 0.9)))
    return DDPEngine(task, torch.optim.AdamW(task.parameters(), lr=0.1))


def plan(of: DDPEngine, *parts: str, **options: object) -> PhasePlan:
    return of.plan("next", names(of.task, *parts), number=1, step=5, **options)


def rebuilt(of: DDPEngine, *parts: str, **options: object) -> list[dict[str, object]]:
    of.rebuild(plan(of, *parts, **options))
    return of.optimizer.param_groups


def steps(of: DDPEngine) -> None:
    for parameter in of.task.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.ones_like(parameter)
    of.optimizer.step()


# ---- groups


def test_frozen_parameters_are_taken_out_of_the_users_optimizer() -> None:
    of = engine("head")
    assert [cohort.names for cohort in of.cohorts] == [("head.weight", "head.bias")]
    (group,) = of.optimizer.param_groups
    assert len(group["params"]) == 2
    assert group["lr"] == HEAD["lr"]


def test_a_group_comes_back_with_its_own_rate_and_weight_decay() -> None:
    of = engine("head")
    head, single, double = rebuilt(of, "head", "backbone")
    assert (head["lr"], head["weight_decay"]) == (0.3, 0.01)
    for group in (single, double):  # one group for each type of weights
        assert (group["lr"], group["weight_decay"], group["betas"]) == (0.02, 0.5, (0.8, 0.9))
    assert {str(p.dtype) for p in single["params"]} != {str(p.dtype) for p in double["params"]}
    steps(of)
    (head,) = rebuilt(of, "head")
    assert head["lr"] == 0.3
    assert [group["weight_decay"] for group in rebuilt(of, "head", "backbone.2")] == [0.01, 0.5]


def test_what_is_unfrozen_later_joins_the_rate_of_its_home_and_not_of_the_first_group() -> None:
    of = engine("head", "backbone.2")
    assert [group["lr"] for group in rebuilt(of, "head", "backbone.1", "backbone.2")] == [0.3, 0.02, 0.02]
    assert [cohort.names for cohort in of.cohorts] == [
        ("head.weight", "head.bias"),
        ("backbone.2.weight", "backbone.2.bias"),
        ("backbone.1.weight", "backbone.1.bias"),
    ]


def test_rates_of_their_own_for_several_parts_of_a_frozen_group() -> None:
    of = engine("head")
    rates = {**dict.fromkeys(names(of.task, "backbone.1"), 0.5), **dict.fromkeys(names(of.task, "backbone.2"), 0.7)}
    groups = rebuilt(of, "head", "backbone.1", "backbone.2", lr=rates)
    assert [(group["lr"], group["weight_decay"]) for group in groups] == [(0.3, 0.01), (0.5, 0.5), (0.7, 0.5)]


def test_a_rate_of_its_own_holds_through_a_schedule_within_schedules() -> None:
    task = Task()
    for name, parameter in task.named_parameters():
        parameter.requires_grad_(name.startswith("head"))
    optimizer = torch.optim.AdamW(task.parameters(), lr=0.1)
    halves = [torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step) for _ in range(2)]
    of = DDPEngine(task, optimizer, [torch.optim.lr_scheduler.SequentialLR(optimizer, halves, milestones=[9])])
    steps(of)
    of.schedulers[0].step()
    rebuilt(of, "head", "backbone.2", lr=dict.fromkeys(names(task, "backbone.2"), 4.0))
    of.schedulers[0].step()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.1 * 0.25, 4.0 * 0.5])


def test_state_of_what_goes_on_survives_and_that_of_what_freezes_is_dropped() -> None:
    of = engine("head", "backbone.2")
    steps(of)
    kept = {c.name: c.tensor.clone() for kind, c in of.state() if kind == "exp_avg" and c.name.startswith("head")}
    rebuilt(of, "head")
    assert {c.name for _, c in of.state()} == set(kept)
    rebuilt(of, "head", "backbone.2")
    assert of.steps() == dict.fromkeys(kept, 1.0)
    for kind, chunk in of.state():
        assert chunk.name in kept
        assert kind != "exp_avg" or torch.equal(chunk.tensor, kept[chunk.name])
    steps(of)
    assert of.steps() == {**dict.fromkeys(kept, 2.0), "backbone.2.weight": 1.0, "backbone.2.bias": 1.0}


def test_an_unknown_name_and_an_empty_phase_are_refused() -> None:
    of = engine("head")
    with pytest.raises(TransitionError, match=r"does not have: backbone\.7\.weight"):
        of.plan("next", ["head.weight", "backbone.7.weight"], number=1, step=0)
    with pytest.raises(TransitionError, match="nothing would train"):
        of.plan("next", [], number=1, step=0)


# ---- fingerprints


def group(**changes: object) -> GroupPlan:
    plain = GroupPlan(("a", "b"), ((2, 3), (3,)), "torch.float32", 0, 0, (("lr", 0.1), ("weight_decay", 0.0)))
    return replace(plain, **changes)


PLAN = PhasePlan("unfrozen", 2, 100, (group(), group(names=("c",), shapes=((4,),))))


def changed(**changes: object) -> PhasePlan:
    return replace(PLAN, groups=(group(), group(**{"names": ("c",), "shapes": ((4,),), **changes})))


DIFFERENCES = {
    "phase": (replace(PLAN, phase="frozen"), "plan.phase is 'unfrozen' here and 'frozen' there"),
    "number": (replace(PLAN, number=3), "plan.number is 2 here and 3 there"),
    "step": (replace(PLAN, step=101), "plan.step is 100 here and 101 there"),
    "name": (changed(names=("d",)), "plan.groups[1].names[0] is 'c' here and 'd' there"),
    "shape": (changed(shapes=((5,),)), "plan.groups[1].shapes[0][0] is 4 here and 5 there"),
    "type": (
        changed(dtype="torch.bfloat16"),
        "plan.groups[1].dtype is 'torch.float32' here and 'torch.bfloat16' there",
    ),
    "rate": (
        changed(options=(("lr", 0.2), ("weight_decay", 0.0))),
        "plan.groups[1].options.lr is 0.1 here and 0.2 there",
    ),
    "a name more": (
        changed(names=("c", "e"), shapes=((4,), (1,))),
        "plan.groups[1].names has 1 entries here and 2 there, the first extra one 'e'",
    ),
    "a group less": (replace(PLAN, groups=PLAN.groups[:1]), "plan.groups has 2 entries here and 1 there"),
    "phase before names": (replace(changed(names=("d",)), phase="frozen"), "plan.phase is 'unfrozen'"),
}


@pytest.mark.parametrize("what", DIFFERENCES)
def test_the_first_difference_is_told_in_words(what: str) -> None:
    other, words = DIFFERENCES[what]
    assert other.fingerprint() != PLAN.fingerprint()
    told = first_difference(json.loads(PLAN.to_json()), json.loads(other.to_json()))
    assert told is not None
    assert told.startswith(words)


def test_equal_plans_have_equal_fingerprints_and_no_difference() -> None:
    other = PhasePlan("unfrozen", 2, 100, (group(), group(names=("c",), shapes=((4,),))))
    assert other.fingerprint() == PLAN.fingerprint()
    assert first_difference(json.loads(PLAN.to_json()), json.loads(other.to_json())) is None
    assert other.names == ("a", "b", "c")


def test_a_plan_is_the_same_whatever_the_order_in_which_names_are_asked_for() -> None:
    of = engine("head")
    asked = names(of.task, "head", "backbone")
    prints = {of.plan("next", order, number=1, step=5).fingerprint() for order in (asked, asked[::-1], set(asked))}
    assert len(prints) == 1
