"""Cases of the engine suite about the proof: what must raise an alarm, and what must not."""

from __future__ import annotations

import deepspeed
import torch
from engine_nets import Chain, Statistics
from engine_runs import RANK, Run, config, same
from torch import nn

from flash_strategies.checkpoint.engine_state import put_back, take_out
from flash_strategies.errors import AgreementError, ProofError


def alarm(setup: str, how: str) -> str | None:
    """Something goes wrong behind the library's back; what it says."""
    # where small parameters stay gathered at stage 3, ranks hold whole copies of them
    settings = config(3, stage3_param_persistence_threshold=10**5) if how == "copy" else None
    run = Run(setup, "d", config=settings)
    run.step(2)
    try:
        match how:
            case "copy":
                if RANK == 1:
                    run.task.a.weight.data[0, 0] += 1.0
            case "lr":
                run.optimizer.param_groups[0]["lr"] *= 1 + RANK
            case "start":
                run.transitions.start("another" if RANK == 1 else "start")
                return None
            case "frozen_one":
                _one_ulp(run, "a.weight", ranks=(1,))
            case "frozen_all":
                _one_ulp(run, "a.weight", ranks=(0, 1))
            case "ulp":
                _one_ulp(run, "d.bias", ranks=(1,))
            case "stuck":
                _skip(run, "c.weight")
                run.move("cd")
                run.step()
                return None
        run.transitions.check()
    except (AgreementError, ProofError) as error:
        return str(error)
    return None


def _one_ulp(run: Run, name: str, ranks: tuple[int, ...]) -> None:
    """Move one element of what these ranks hold of a parameter to the next number."""
    if RANK in ranks:
        (chunk,) = run.engine.weights([name])
        element = chunk.tensor[0]
        element.copy_(torch.nextafter(element, torch.tensor(100.0)))


def _skip(run: Run, name: str) -> None:
    """Make the optimizer pass over a parameter."""
    step = run.optimizer.step

    def skipping(*args: object) -> object:
        masters = [c.tensor for kind, c in run.engine.state() if kind == "master" and c.name == name]
        held = masters or [c.tensor for c in run.engine.weights([name])]
        before = [tensor.clone() for tensor in held]
        result = step(*args)
        with torch.no_grad():
            for tensor, value in zip(held, before, strict=True):
                tensor.copy_(value)
        return result

    run.optimizer.step = skipping


def calm(setup: str, how: str) -> dict[str, object]:
    """Nothing goes wrong, though some parameters do not move: no error, and whether the proof is through at the end."""

    def no_decay(task: nn.Module) -> torch.optim.Optimizer:
        if how == "shrinks":
            return torch.optim.SGD(task.parameters(), lr=1e-2)
        rate = {"tiny_bf16": 1e-9, "ones_bf16": 1e-4}.get(how, 1e-2)
        return torch.optim.AdamW(task.parameters(), lr=rate, weight_decay=0.0)

    def warm_up(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: 0.0 if how == "warm_up" and s < 4 else 1.0)

    def net() -> nn.Module:
        chain = Chain()
        if how == "ones_bf16":  # as a layer norm's weights, from which bf16 cannot subtract 1e-4
            nn.init.ones_(chain.c.weight)
        return chain

    clipped = config(int(setup[4]), clip=1e-12) if how == "shrinks" and setup != "ddp" else None
    run = Run(setup, "d", optimizer_of=no_decay, schedule=warm_up, bf16=how.endswith("bf16"), net=net, config=clipped)
    run.step()
    run.move("de" if how == "unused" else "cd")
    before = run.weights()
    if how == "shrinks" and setup == "ddp":
        run.optimizer.register_step_pre_hook(lambda *_: nn.utils.clip_grad_norm_(run.task.parameters(), 1e-12) and None)
    if how == "overflow":  # as fp16's, in a parameter that is not newly unfrozen
        run.engine.engine.optimizer.check_grad_overflow = True
        overflow = run.task.d.weight.register_hook(lambda gradient: gradient * float("inf"))
        run.step()
        overflow.remove()
        return {"moved": same(before, run.weights()), "moved_later": (run.step(), same(before, run.weights()))[1]}
    run.step(1, scale={"zero_gradients": 0.0, "ones_bf16": 1e3}.get(how, 1.0))
    moved = same(before, run.weights())
    run.step(4)
    return {"moved": moved, "moved_later": same(before, run.weights())}


# ---- what a transition carries


def linked(setup: str) -> list[str]:
    """Parameters whose moments DeepSpeed's own functions find, when a phase's second step is done."""
    run = Run(setup, "d")
    run.step()
    run.move("cd")
    run.step(2)
    moments = {
        name: deepspeed.utils.safe_get_full_optimizer_state(parameter, "exp_avg")
        for name, parameter in run.task.named_parameters()
        if parameter.requires_grad
    }
    held = {chunk.name: chunk.tensor for kind, chunk in run.engine.state() if kind == "exp_avg"}
    return [name for name, value in moments.items() if torch.equal(value.reshape(-1), held[name])]


def scale(setup: str) -> list[float]:
    """The loss scale before a transition, after it, and in another run that is given the first one's state."""
    run, other = Run(setup, "d"), Run(setup, "d")
    run.engine.engine.optimizer.loss_scaler.cur_scale = 512.0
    scales = [run.engine.loss_scale()["cur_scale"]]
    run.move("cd")
    scales.append(run.engine.loss_scale()["cur_scale"])
    put_back(other.transitions, take_out(run.transitions), lambda slices: None)
    return [*scales, other.engine.loss_scale()["cur_scale"]]


# ---- buffers


def buffers(setup: str) -> dict[str, dict[str, torch.Tensor]]:
    """All buffers at the start, after three steps, made equal, and after three more, proved and made equal again."""
    run = Run(setup, "cd", net=Statistics, find_unused=True, broadcast_buffers=False)
    run.transitions.hold(["b", "frozen"])
    found = {"start": _buffers(run)}
    run.step(3)
    found["apart"] = _buffers(run)
    run.transitions.equalise_buffers()
    found["equal"] = _buffers(run)
    digest = run.transitions.check()
    run.transitions.hold(["b", "frozen"])
    run.step(3)
    run.transitions.equalise_buffers()
    assert run.transitions.check() != digest
    found["end"] = _buffers(run)
    return found


def _buffers(run: Run) -> dict[str, torch.Tensor]:
    return {name: buffer.clone() for name, buffer in run.task.named_buffers()}


def buffer_alarm(setup: str, how: str) -> str | None:
    """A buffer is changed from outside, or differs where that cannot be mended; what it says."""
    run = Run(setup, "cd", net=Statistics, broadcast_buffers=False)
    run.transitions.hold(["b", "frozen"])
    run.step()
    try:
        match how:
            case "frozen":
                run.task.b.running_mean += 1.0
            case "differs":
                run.transitions.equalise_buffers()
                run.task.free.in_place += RANK
            case "shape":
                run.task.free.in_place = torch.zeros(5 + RANK)
                run.transitions.equalise_buffers()
        run.transitions.check()
    except ProofError as error:
        return str(error)
    return None
