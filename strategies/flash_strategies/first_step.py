"""Watches newly unfrozen parameters through their first optimizer step: with a gradient and a rate, they must move.

The torch optimizer itself says whether a step was made and with which gradients, so that neither a step that a loss
scaler skips nor a gradient that is clipped or masked between backward and the step is taken for a fault.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

import torch
from torch.optim import Optimizer

from flash_strategies.agreement import ControlGroup
from flash_strategies.engines.base import Engine

# An update of this part of a parameter's largest weight is not lost in fp32's rounding (2**-23); sixteen times that,
# since optimizers may scale a step.
_SURE = 2.0**-19


class FirstStep:
    """The first step of a phase."""

    def __init__(self, engine: Engine, phase: str, names: Sequence[str], digests: Mapping[str, int]) -> None:
        """Begin to watch, after the engine was rebuilt.

        Args:
            engine: with the phase's groups.
            phase: its name.
            names: the newly unfrozen parameters.
            digests: of the weights now, by name.
        """
        self.phase = phase
        self.names = tuple(names)
        self._engine = engine
        self._before = engine.master_digests(self.names) if engine.has_masters else digests
        self._largest: dict[str, torch.Tensor] = {}
        self._rates: dict[str, float] = {}
        self._made = False
        hooks = "_optimizer_step_post_hooks" in vars(engine.optimizer)
        self._hook = engine.optimizer.register_step_post_hook(self._stepped) if hooks else None

    def before_step(self) -> None:
        """When gradients are ready; forgets an earlier step that did not count."""
        for cohort, group in zip(self._engine.cohorts, self._engine.optimizer.param_groups, strict=True):
            self._rates.update(dict.fromkeys(cohort.names, float(group["lr"])))
        self._largest.clear()
        self._made = False

    def _stepped(self, optimizer: Optimizer, args: object, kwargs: object) -> None:
        """The torch optimizer has stepped, with gradients as they are now; ZeRO steps it group by group."""
        # torch's GradScaler leaves it to fused optimizers to skip a step
        overflow = getattr(optimizer, "found_inf", None)
        if isinstance(overflow, torch.Tensor) and bool(overflow.any()):
            return
        self._made = True
        self._note_gradients()

    def _note_gradients(self) -> None:
        wanted = set(self.names)
        for chunk in self._engine.gradients():
            if chunk.name in wanted and chunk.tensor.numel():
                size = torch.linalg.vector_norm(chunk.tensor, math.inf).float()
                known = self._largest.get(chunk.name)
                self._largest[chunk.name] = size if known is None else torch.maximum(known, size)

    def verdict(self, control: ControlGroup) -> list[str] | None:
        """Names that should have moved and did not; None if no step was made that could move them."""
        if not self.names:
            return []
        if self._hook is None or not getattr(type(self._engine.optimizer).step, "hooked", False):
            # an optimizer that wraps another may call no hooks: each of its steps is taken for one that was made
            self._stepped(self._engine.optimizer, (), {})
        now = self._engine.master_digests(self.names)
        still = {name for name in self.names if now.get(name) == self._before.get(name)}
        largest = self._largest_weights(still)
        sizes = torch.tensor([float(self._largest.get(name, 0.0)) for name in self.names], dtype=torch.float64)
        finite = torch.isfinite(sizes)
        facts = torch.stack(
            [
                torch.tensor([name not in still for name in self.names]).double(),
                (~finite).double(),
                torch.where(finite, sizes, 0.0),
                torch.tensor([largest.get(name, 0.0) for name in self.names], dtype=torch.float64),
                torch.full_like(sizes, float(self._made)),
            ]
        )
        moved, broken, sizes, weights, made = control.min_max(facts)[1]
        if not bool(made.any()):
            return None
        rates = torch.tensor([self._rates.get(n, 0.0) for n in self.names], dtype=torch.float64)
        pushed = (sizes > 0) & (rates > 0)
        if not bool(moved.any()) and (bool(broken.any()) or not bool(pushed.any())):
            return None if bool(broken.any()) or bool((rates <= 0).all()) else []
        types = [torch.float32 if self._engine.has_masters else self._engine.parameters[n].dtype for n in self.names]
        rounding = torch.tensor([max(torch.finfo(dtype).eps, _SURE) for dtype in types], dtype=torch.float64)
        stuck = (moved == 0) & pushed & (rates * sizes.clamp(max=1.0) > weights * rounding)
        return [name for name, bad in zip(self.names, stuck.tolist(), strict=True) if bad]

    def _largest_weights(self, names: Collection[str]) -> dict[str, float]:
        return {
            chunk.name: float(torch.linalg.vector_norm(chunk.tensor, math.inf))
            for chunk in self._engine.weights(names)
            if chunk.tensor.numel()
        }

    def release(self) -> None:
        """Watch no longer."""
        if self._hook is not None:
            self._hook.remove()
