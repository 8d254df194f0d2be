"""The suite of odd networks on one rank: weights and buffers at each phase's end."""

from __future__ import annotations

import torch
from engine_runs import Run
from odd_nets import NETS, STEPS, optimizer_of


def run_case(name: str) -> list[dict[str, torch.Tensor]]:
    """Train through all phases: `net-setup`."""
    net, setup = name.split("-")
    run = Run(
        setup,
        NETS[net].phases[0],
        net=NETS[net],
        optimizer_of=lambda task: optimizer_of(net, task),
        schedule=lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 4, 0.7),
    )
    found = []
    for number, layers in enumerate(NETS[net].phases):
        if number:
            run.move(layers)
        run.step(STEPS)
        run.transitions.check()
        found.append({**run.weights(), **{name: buffer.clone() for name, buffer in run.task.named_buffers()}})
    return found
