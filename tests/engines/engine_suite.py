"""The engine suite on one rank: no-op transitions, agreement, proof, leaks, bytes and traffic, one function each."""

from __future__ import annotations

import gc
import time
from collections import Counter
from collections.abc import Callable

import torch
import torch.distributed as dist
from engine_cases import BY_NAME, PHASES, STEPS
from engine_nets import GLOBAL_BATCH, Chain
from engine_runs import RANK, WORLD_SIZE, Run, config, named, over_ranks, same
from torch import nn

from flash_launch.setups import ModelNumbers, RunNumbers, load_setup, resolve_setup
from flash_strategies.agreement import ControlGroup
from flash_strategies.errors import AgreementError, ProofError



def template(setup: str, bf16: bool) -> dict[str, object]:
    """What flash-launch makes of one of its templates for this network."""
    whole = sum(p.numel() for p in Chain().parameters())
    precision = "bf16-mixed" if bf16 else "32-true"
    run = RunNumbers(WORLD_SIZE, WORLD_SIZE, GLOBAL_BATCH // WORLD_SIZE, 1, None, precision, cuda=False)
    model = ModelNumbers(trainable=whole, total=whole, hidden_size=13, largest_layer=13 * 11 + 11)
    return {**resolve_setup(load_setup(setup), run, model), "steps_per_print": 10**9}


def noop(setup: str, precision: str) -> list[list[str]]:
    """The same phases with and without transitions that change nothing between them."""
    bf16 = precision == "bf16"
    # the setups are tried with small buckets, the templates as they are
    settings = template(setup.removeprefix("template_"), bf16) if setup.startswith("template_") else None
    ends = []
    for idle in (False, True):
        run = Run(setup.removeprefix("template_"), PHASES[0], bf16=bf16, config=settings)
        found = []
        for number, layers in enumerate(PHASES):
            if number:
                run.move(layers)
            if idle:
                run.move(layers, phase="the same")
            run.step(2)
            if idle:
                run.move(layers, phase="the same")
            run.step()
            found.append(run.everything())
        ends.append(found)
    return [same(left, right) for left, right in zip(*ends, strict=True)]


def reference(setup: str) -> list[dict[str, torch.Tensor]]:
    """Whole weights at each phase's end, for a comparison with torch's AdamW in one process."""
    settings = template(setup.removeprefix("template_"), bf16=False) if setup.startswith("template_") else None
    run = Run(setup.removeprefix("template_"), PHASES[0], config=settings)
    found = []
    for number, layers in enumerate(PHASES):
        if number:
            run.move(layers)
        run.step(STEPS)
        found.append(run.weights())
    return found


def unused(setup: str, precision: str) -> list[dict[str, tuple[torch.Tensor, torch.Tensor]]]:
    """Moments of the branch, which gets no gradient in the step, before and after that step."""
    bf16 = precision == "bf16"
    settings = template(setup.removeprefix("template_"), bf16) if setup.startswith("template_") else None
    run = Run(setup.removeprefix("template_"), "cde", bf16=bf16, config=settings)
    found = []
    for layers in ("cde", "abcde"):
        if layers != "cde":
            run.move(layers)
        run.step()  # an even one
        before = run.state()
        run.step()
        after = run.state()
        found.append({key: (before[key], after[key]) for key in before if "exp_avg" in key and " e." in key})
    return found


CASES: dict[str, Callable[..., object]] = {"noop": noop, "reference": reference, "unused": unused}


def run_case(name: str) -> object:
    """Run one case of `engine_cases`."""
    case = BY_NAME[name]
    return CASES[case.what](*case.arguments)
