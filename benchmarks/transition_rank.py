"""One rank of the transition benchmark: does what it is told on stdin, line by line, and answers on a pipe, in JSON.

transition        ours: from half of the model to all of it, and back
initialise_again  peer (a): destroy the engine, initialise it again with its state kept, and back
save FOLDER       peer (b), first half: save as people do; the process is then stopped and a new one started with --load
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
import torch.distributed as dist
from peak_memory import PeakMemory, return_freed_memory
from torch.optim import AdamW
from transition_model import Held, Stack, build, hold, micro_batch, resolved, start_ranks, wrap

from flash_strategies.agreement import ControlGroup
from flash_strategies.deepspeed_private import DeepSpeedEngine, take_down_partitioned
from flash_strategies.engines.ddp import DDPEngine
from flash_strategies.engines.zero12 import Zero12Engine
from flash_strategies.transition import Transitions

Spent = tuple[float, float]
"""Seconds by the clock, and of processor time."""


@dataclass
class Answer:
    """Seconds and bytes of one command on this rank."""

    seconds: float = 0.0
    """The change from half of the model to all of it."""
    cpu_seconds: float = 0.0
    """Processor time of it on this rank, all threads: says more than the clock on a machine that others use too."""
    first_step_seconds: float = 0.0
    """The first step after it, forward to proof."""
    step_seconds: float = 0.0
    """An ordinary step, the second after it."""
    back_seconds: float = 0.0
    """The change back to half of the model."""
    peak_bytes: int | None = None
    """Peak memory of the change, above what was in use before it."""
    held_bytes: int | None = None
    """Memory in use after the change, above what was before."""
    first_step_peak_bytes: int | None = None
    """Peak memory from the change through the first step, where the optimizer makes its state."""
    step_peak_bytes: int | None = None
    """Peak memory of an ordinary step, the second after the change, above what was in use before the change."""
    new_state_bytes: int | None = None
    """Masters and moments that this rank holds more after the first step than before the change."""


class Rank:
    """The rank's model and what can be done with it."""

    def __init__(self, setup: str, parameters: int, device: torch.device, load: Path | None) -> None:
        self.setup, self.device = setup, device
        self.steps = 0
        self.memory = PeakMemory(device)
        self.held: Held
        task = build(parameters, setup, device)
        self.half, self.all = task.half(), [name for name, _ in task.named_parameters()]
        self.rest = [name for name in self.all if name not in set(self.half)]
        if load is not None:
            self._load(load, task)
        else:
            self.held = hold(setup, task, [self.half], device)
        self.transitions = Transitions(self.held.engine, ControlGroup())
        self.began = False

    # ---- training

    def begin(self) -> None:
        """Two steps of the first phase, so that there is Adam state."""
        self.transitions.start("half")
        self.step(None)
        self.step(None)

    def step(self, transitions: Transitions | None) -> None:
        """One optimizer step."""
        held, self.steps = self.held, self.steps + 1
        x, y = micro_batch(held.task, self.steps, self.device)
        loss = torch.nn.functional.cross_entropy(held.runner(x).float(), y)
        if self.setup == "ddp":
            held.optimizer.zero_grad()
            loss.backward()
        else:
            held.runner.backward(loss)
        if transitions is not None:
            transitions.before_step()
        (held.optimizer if self.setup == "ddp" else held.runner).step()
        if transitions is not None:
            transitions.after_step()

    # ---- ours and peer (a)

    def transition(self, *, memory: bool) -> Answer:
        """Ours, agreement and proof included."""
        return self._measured(
            lambda: self._move("all", self.all), lambda: self._move("half", self.half), self.transitions, memory=memory
        )

    def _move(self, phase: str, names: list[str]) -> None:
        self.transitions.move(phase, names, step=self.steps)

    def initialise_again(self, *, memory: bool) -> Answer:
        """Peer (a)."""
        again = self._ddp_again if self.setup == "ddp" else self._deepspeed_again
        return self._measured(lambda: again([self.half, self.rest]), lambda: again([self.half]), None, memory=memory)

    def _measured(
        self,
        forth: Callable[[], Spent | None],
        back: Callable[[], Spent | None],
        transitions: Transitions | None,
        *,
        memory: bool,
    ) -> Answer:
        answer = Answer()
        state = self.held.engine.state_bytes()
        if memory:
            self.memory.begin()
        answer.seconds, answer.cpu_seconds = self._timed(forth)
        if memory:
            answer.peak_bytes, answer.held_bytes = self.memory.peak(), self.memory.now()
            answer.first_step_seconds, _ = self._timed(lambda: self.step(transitions))
            answer.first_step_peak_bytes = self.memory.peak()
            self.memory.restart()
            answer.step_seconds, _ = self._timed(lambda: self.step(transitions))
            answer.step_peak_bytes = self.memory.peak()
            after = self.held.engine.state_bytes()
            answer.new_state_bytes = after.masters + after.moments - state.masters - state.moments
        answer.back_seconds, _ = self._timed(back)
        return answer

    def _timed(self, work: Callable[[], Spent | None]) -> Spent:
        """What the work takes from when all ranks are there; less what it says is not to be counted."""
        self._wait()
        began = _now()
        clock, cpu = work() or (0.0, 0.0)
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        ended = _now()
        return ended[0] - began[0] - clock, ended[1] - began[1] - cpu

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        dist.barrier()

    def _ddp_again(self, groups: list[list[str]]) -> Spent:
        """DistributedDataParallel and AdamW built anew; the state goes through state_dict.

        Returns what was spent on collecting the old wrapper as garbage: not counted, as with DeepSpeed.
        """
        held = self.held
        names = dict(held.task.named_parameters())
        began = _now()
        held.runner = None
        gc.collect()
        ended = _now()
        for name, parameter in names.items():
            parameter.grad = None
            parameter.requires_grad_(any(name in group for group in groups))
        kept = held.optimizer.state_dict()
        kept["param_groups"] = kept["param_groups"][:1]
        first = set(kept["param_groups"][0]["params"])
        kept["state"] = {index: state for index, state in kept["state"].items() if index in first}
        held.optimizer = AdamW([names[name] for name in groups[0]], lr=1e-3)
        held.optimizer.load_state_dict(kept)
        for group in groups[1:]:
            held.optimizer.add_param_group({"params": [names[name] for name in group]})
        wrap(held, resolved(self.setup, held.task, self.device.type == "cuda"), init_sync=True)
        held.engine = DDPEngine(held.task, held.optimizer)
        return ended[0] - began[0], ended[1] - began[1]

    def _deepspeed_again(self, groups: list[list[str]]) -> Spent:
        """destroy() and initialize(); masters, moments and steps are kept by name and copied back, rank by rank.

        Returns what was spent on removing what destroy() leaves behind (hooks, links): not counted, so that the
        peer is not slower than it can be.
        """
        held = self.held
        engine = cast(Zero12Engine, held.engine)
        steps = engine.steps()
        kept = {(kind, chunk.name): chunk for kind, chunk in engine.state()}
        runner = held.runner
        if self.setup == "zero3":
            take_down_partitioned(cast(DeepSpeedEngine, runner))  # more than destroy() does: it would leave its hooks
            runner.optimizer = None
        runner.destroy()
        began = _now()
        runner.optimizer = None
        for module in held.task.modules():
            for hooks in (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks):
                hooks.clear()
        held.runner = runner = None
        gc.collect()
        ended = _now()
        self.held = held = hold(self.setup, held.task, groups, self.device)
        engine = cast(Zero12Engine, held.engine)
        for cohort, group in zip(engine.cohorts, held.optimizer.param_groups, strict=True):
            for flat in group["params"]:
                if cohort.names[0] in steps:
                    held.optimizer.state[flat] = {
                        "step": torch.tensor(steps[cohort.names[0]]),
                        "exp_avg": torch.zeros_like(flat.data),
                        "exp_avg_sq": torch.zeros_like(flat.data),
                    }
        for kind, chunk in engine.state():
            if (kind, chunk.name) in kept:
                chunk.tensor.copy_(kept[kind, chunk.name].tensor)
        return ended[0] - began[0], ended[1] - began[1]

    # ---- peer (b)

    def save(self, folder: Path) -> None:
        """What can be loaded after a change of what trains: all of it with DDP, the weights alone with DeepSpeed."""
        held = self.held
        if self.setup == "zero3":
            held.runner.save_16bit_model(str(folder), "model.pt")
        elif self.setup == "ddp":
            if dist.get_rank() == 0:
                state = {"model": held.task.state_dict(), "optimizer": held.optimizer.state_dict()}
                torch.save(state, folder / "checkpoint.pt")
        else:
            held.runner.save_checkpoint(str(folder), "half")
        self._wait()

    def _load(self, folder: Path, task: Stack) -> None:
        groups = [self.half, self.rest]
        if self.setup == "ddp":
            saved = torch.load(folder / "checkpoint.pt", map_location=self.device)
            task.load_state_dict(saved["model"])
            self.held = hold(self.setup, task, [self.half], self.device)
            self.held.optimizer.load_state_dict(saved["optimizer"])
            for name in self.rest:
                task.get_parameter(name).requires_grad_(True)
            rest = {"params": [task.get_parameter(name) for name in self.rest]}
            self.held.optimizer.add_param_group(rest)
            wrap(self.held, resolved(self.setup, task, self.device.type == "cuda"), init_sync=True)
            self.held.engine = DDPEngine(task, self.held.optimizer)
        elif self.setup == "zero3":
            task.load_state_dict(torch.load(folder / "model.pt", map_location=self.device))
            self.held = hold(self.setup, task, groups, self.device)
        else:
            self.held = hold(self.setup, task, groups, self.device)
            self.held.runner.load_checkpoint(str(folder), "half", load_module_only=True)
        self._wait()


def main() -> None:
    """Serve until stdin ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--setup", required=True)
    parser.add_argument("--parameters", type=int, required=True)
    parser.add_argument("--device", choices=("cpu", "cuda"), required=True)
    parser.add_argument("--answers", type=int, required=True, help="file descriptor")
    parser.add_argument("--load", type=Path)
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    with os.fdopen(options.answers, "w", buffering=1) as answers:
        start_ranks(device)
        rank = Rank(options.setup, options.parameters, device, options.load)
        if options.load is None:
            rank.begin()
        answers.write(json.dumps({"parameters": sum(_numel(p) for p in rank.held.task.parameters())}) + "\n")
        for line in sys.stdin:
            command, _, argument = line.strip().partition(" ")
            answer: Answer | None = None
            if command == "save":
                rank.save(Path(argument))
            elif command == "return_freed_memory":
                return_freed_memory()
            else:
                answer = getattr(rank, command)(memory=argument == "memory")
            answers.write(json.dumps(vars(answer) if answer else {}) + "\n")
    dist.barrier()
    dist.destroy_process_group()


def _now() -> Spent:
    return time.perf_counter(), time.process_time()


def _numel(parameter: torch.Tensor) -> int:
    return int(getattr(parameter, "ds_numel", parameter.numel()))


if __name__ == "__main__":
    main()
