"""The reference: the same training in one process, in plain torch. Nothing of ours runs here but the table of names.

What it knows is from the literature: AdamW (Loshchilov and Hutter) and SGD are torch's; a frozen parameter is in no
optimizer and loses its state; one that is unfrozen joins its param group without state; gradients are averaged over
ranks; a trainable parameter that took no part in a loss has gradient zero; a batch norm on several ranks normalises by
each rank's own batch, keeps each rank's own running statistics, and these are averaged when the epoch ends.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field

import torch
from parity_cases import BATCHES_PER_EPOCH, EPOCHS, GLOBAL_BATCH, Case, held_batch_norms, trains
from parity_models import NETS, data
from torch import nn

LR, HEAD_LR, DECAY, HEAD_DECAY, MOMENTUM = 1e-2, 3e-2, 0.1, 0.01, 0.9
EPS = 1e-4  # not 1e-8: where a gradient nearly cancels, Adam would make a large step of nothing but rounding


@dataclass
class Epoch:
    """The end of an epoch."""

    weights: dict[str, torch.Tensor] = field(default_factory=dict)
    buffers: dict[str, torch.Tensor] = field(default_factory=dict)
    moments: dict[tuple[str, str], torch.Tensor] = field(default_factory=dict)
    """(kind, parameter name) -> whole moment."""
    steps: dict[str, float] = field(default_factory=dict)


def steps_per_epoch(case: Case) -> int:
    """Optimizer steps: the last accumulation of an epoch may be incomplete."""
    return math.ceil(BATCHES_PER_EPOCH / case.accumulate)


def factor(case: Case, step: int) -> float:
    """The schedule: the learning rate of a step (from 0) in units of the group's own."""
    total = EPOCHS * steps_per_epoch(case)
    if case.schedule == "lambda":
        return 0.5 * (1 + math.cos(math.pi * step / total))
    # Smith and Topin, as in torch: from 1/25 up during 30 % of the steps, then down to 1/25e4, both along a cosine
    peak = 0.3 * total - 1
    if step <= peak:
        start, end, part = 1 / 25, 1.0, step / peak
    else:
        start, end, part = 1.0, 1 / 25e4, (step - peak) / (total - 1 - peak)
    return end + (start - end) / 2 * (1 + math.cos(math.pi * part))


def rate(case: Case, name: str) -> float:
    """The learning rate of a parameter before the schedule."""
    return HEAD_LR if case.groups and name.startswith("head.") else LR


def run(case: Case) -> list[Epoch]:
    """Train; the state at the end of each epoch."""
    net = NETS[case.net]()
    parameters = dict(net.named_parameters())
    shards = case.world_size if case.net == "conv" else 1
    replicas = [copy.deepcopy(net) for _ in range(shards)]
    inputs, classes = data(case.net)
    live = [name for name in parameters if name in trains(case, 0)]
    optimizer = _optimizer(case, parameters, live)
    ends: list[Epoch] = []
    step = 0
    for epoch in range(EPOCHS):
        now = [name for name in parameters if name in trains(case, epoch)]
        for name in set(live) - set(now):  # frozen again: out of the optimizer, and its state with it
            for group in optimizer.param_groups:
                group["params"] = [p for p in group["params"] if p is not parameters[name]]
            optimizer.state.pop(parameters[name], None)
        for name in now:
            if name not in live:
                optimizer.param_groups[_group(case, name)]["params"].append(parameters[name])
        live = now
        for name, parameter in parameters.items():
            parameter.requires_grad_(name in live)
            parameter.grad = None
        for replica in replicas:
            replica.train()
            for norm in held_batch_norms(case, epoch):
                replica.get_submodule(norm).eval()
        for batch in range(BATCHES_PER_EPOCH):
            rows = slice(batch * GLOBAL_BATCH, (batch + 1) * GLOBAL_BATCH)
            for shard, replica in enumerate(replicas):
                for own, shared in zip(replica.parameters(), parameters.values(), strict=True):
                    own.data.copy_(shared.data)
                    own.requires_grad_(shared.requires_grad)
                    own.grad = None
                output = replica(inputs[rows][shard::shards], epoch)
                loss = nn.functional.cross_entropy(output, classes[rows][shard::shards])
                (loss / case.accumulate).backward()
                for own, shared in zip(replica.parameters(), parameters.values(), strict=True):
                    if shared.requires_grad:
                        gradient = torch.zeros_like(shared) if own.grad is None else own.grad / shards
                        shared.grad = gradient if shared.grad is None else shared.grad + gradient
            if (batch + 1) % case.accumulate and batch + 1 < BATCHES_PER_EPOCH:
                continue
            if case.clip:
                nn.utils.clip_grad_norm_([parameters[name] for name in live], case.clip)
            for group in optimizer.param_groups:
                group["lr"] = group["own_lr"] * factor(case, step)
            optimizer.step()
            optimizer.zero_grad()
            step += 1
        _average_statistics(replicas)
        ends.append(_end(parameters, live, replicas[0], optimizer))
    return ends


def _optimizer(case: Case, parameters: dict[str, nn.Parameter], live: list[str]) -> torch.optim.Optimizer:
    groups: list[dict[str, object]] = [{"params": [], "own_lr": LR, "weight_decay": DECAY}]
    if case.groups:
        groups.append({"params": [], "own_lr": HEAD_LR, "weight_decay": HEAD_DECAY})
    for name in live:
        groups[_group(case, name)]["params"].append(parameters[name])
    if case.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=LR, momentum=MOMENTUM)
    return torch.optim.AdamW(groups, lr=LR, eps=EPS)


def _group(case: Case, name: str) -> int:
    return int(case.groups and name.startswith("head."))


@torch.no_grad()
def _average_statistics(replicas: list[nn.Module]) -> None:
    for buffers in zip(*(replica.buffers() for replica in replicas), strict=True):
        if buffers[0].is_floating_point():
            mean = torch.stack(buffers).mean(dim=0)
            for buffer in buffers:
                buffer.copy_(mean)


def _end(
    parameters: dict[str, nn.Parameter], live: list[str], replica: nn.Module, optimizer: torch.optim.Optimizer
) -> Epoch:
    end = Epoch()
    end.weights = {name: p.detach().clone() for name, p in parameters.items()}
    end.buffers = {n: b.clone() for n, b in replica.named_buffers() if b.is_floating_point()}
    for name in live:
        for kind, value in optimizer.state[parameters[name]].items():
            if kind == "step":
                end.steps[name] = float(value)
            elif isinstance(value, torch.Tensor):
                end.moments[kind, name] = value.clone()
    return end
