"""Transitions over any engine: agree, rebuild, and prove that the ranks are equal and the right parameters move."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch.utils.hooks import RemovableHandle

from flash_strategies.agreement import ControlGroup
from flash_strategies.digest import combined_digest
from flash_strategies.engines.base import Engine, StateBytes
from flash_strategies.errors import ProofError


@dataclass(frozen=True)
class TransitionReport:
    """What one transition did."""

    phase: str
    """The phase that begins."""
    number: int
    """0 for the start of the run, then 1, 2, ..."""
    step: int
    """Optimizer steps done before it."""
    fingerprint: str
    """SHA-256 of the plan all ranks agreed on."""
    trainable_before: int
    """Trainable elements before, over the whole model."""
    trainable_after: int
    """Trainable elements after."""
    unfrozen: tuple[str, ...]
    """Names of the parameters that train from now on."""
    refrozen: tuple[str, ...]
    """Names of those that no longer do."""
    seconds: float
    """Time it took on this rank, proof included."""
    bytes_before: StateBytes
    """Training state on this rank before."""
    bytes_after: StateBytes
    """Training state on this rank after; moments of newly unfrozen parameters come with their first step."""


class Transitions:
    """Makes transitions on an engine; every rank has one and calls it at the same points."""

    def __init__(self, engine: Engine, control: ControlGroup, *, loss_scaled: bool = False) -> None:
        """Begin with the engine's present groups.

        Args:
            engine: how the ranks hold the model.
            control: for agreement and proof.
            loss_scaled: gradients carry a loss scale (fp16), so their size says nothing.
        """
        self.engine = engine
        self.control = control
        self.number = 0
        self.phase = ""
        self.fingerprint = ""
        self._loss_scaled = loss_scaled
        self._frozen: dict[str, int] = {}
        self._pending: _Watch | None = None

    @property
    def trainable(self) -> tuple[str, ...]:
        """Names of the parameters that train now."""
        return tuple(name for cohort in self.engine.cohorts for name in cohort.names)

    @property
    def frozen(self) -> Mapping[str, int]:
        """Digest of each frozen parameter, since the phase began."""
        return self._frozen

    @property
    def watched(self) -> tuple[str, ...]:
        """Newly unfrozen parameters whose first step is not proved yet."""
        return self._pending.names if self._pending is not None else ()

    def trains(self, names: Collection[str]) -> bool:
        """Whether just these train now, but for what the user left out of the optimizer."""
        return set(names) - self.engine.left_out == set(self.trainable)

    def start(self, phase: str) -> TransitionReport:
        """Agree on the first phase and prove that the ranks begin equal; call it once the engine is built.

        Raises:
            AgreementError, ProofError: the ranks differ.
        """
        began = time.perf_counter()
        plan = self.engine.plan(phase, self.trainable, number=0, step=0)
        fingerprint = self.control.agree(plan)
        self.phase, self.fingerprint = phase, fingerprint
        self._remember_frozen(self.prove_equal())
        names = self.trainable
        count = self._elements(names)
        held = self.engine.state_bytes()
        seconds = time.perf_counter() - began
        return TransitionReport(phase, 0, 0, fingerprint, count, count, names, (), seconds, held, held)

    def move(
        self, phase: str, trainable: Collection[str], *, step: int, lr: Mapping[str, float] | None = None
    ) -> TransitionReport:
        """Change to another set of trainable parameters; at an optimizer-step boundary, on every rank.

        Args:
            phase: the coming phase's name.
            trainable: names of all parameters that train in it.
            step: optimizer steps done.
            lr: learning rates for newly unfrozen parameters, by name; else they take their group's.

        Raises:
            AgreementError: the ranks differ about the plan, or did not come; nothing was changed.
            ProofError: a weight changed that must not have.
        """
        began = time.perf_counter()
        engine, before = self.engine, self.trainable
        plan = engine.plan(phase, trainable, number=self.number + 1, step=step, lr=dict(lr or {}))
        fingerprint = self.control.agree(plan)
        bytes_before = engine.state_bytes()
        # what is frozen has its digest since the phase began
        digests = {**self._frozen, **self.prove_equal([n for n in engine.parameters if n not in self._frozen])}
        self._release_watch()
        engine.rebuild(plan)
        self.number += 1
        self.phase, self.fingerprint = phase, fingerprint
        after = self.prove_equal()
        self._prove_frozen(after)
        if changed := [name for name in digests if after[name] != digests[name]]:
            raise ProofError(f"the transition to phase {phase!r} changed the weights of {_names(changed)}; stopped")
        self._remember_frozen(after)
        unfrozen = tuple(name for name in self.trainable if name not in set(before))
        refrozen = tuple(name for name in before if name not in set(self.trainable))
        self._pending = _Watch(engine, phase, unfrozen, after, loss_scaled=self._loss_scaled)
        return TransitionReport(
            phase,
            self.number,
            step,
            fingerprint,
            self._elements(before),
            self._elements(self.trainable),
            unfrozen,
            refrozen,
            time.perf_counter() - began,
            bytes_before,
            engine.state_bytes(),
        )

    def resume(self, phase: str, number: int, fingerprint: str, watched: Sequence[str] = ()) -> None:
        """Go on in a phase whose groups and state the engine was given back.

        Args:
            phase: its name.
            number: transitions so far.
            fingerprint: of the plan that was agreed on when it began.
            watched: newly unfrozen parameters whose first step is not proved yet.

        Raises:
            ProofError: the ranks are not equal.
        """
        self._release_watch()
        self.phase, self.number, self.fingerprint = phase, number, fingerprint
        digests = self.prove_equal()
        self._remember_frozen(digests)
        if watched:
            self._pending = _Watch(self.engine, phase, watched, digests, loss_scaled=self._loss_scaled)
        elif any(memory.kinds for memory in self.engine.memory()):
            self.engine.after_first_step()

    def before_step(self) -> None:
        """When gradients are ready, before the optimizer steps."""
        self.engine.before_step()
        if self._pending is not None:
            self._pending.note_rates()

    def after_step(self) -> None:
        """After each optimizer step; the first of a phase is proved.

        Raises:
            ProofError: the ranks differ, a frozen parameter moved, or a newly unfrozen one did not; it is named.
        """
        if self._pending is None:
            return
        verdict = self._pending.verdict(self.control)
        if verdict is None:
            return  # the step was skipped (overflow) or had no learning rate: the next one is the first
        phase, stuck = self._pending.phase, verdict
        self._release_watch()
        self.engine.after_first_step()
        self._prove_frozen(self.prove_equal())
        if stuck:
            raise ProofError(
                f"after the first step of phase {phase!r}, {_names(stuck)} did not move although unfrozen, with a "
                "gradient and a learning rate above zero; stopped, because the run would not be what its strategy says"
            )

    def prove_equal(self, names: Sequence[str] | None = None) -> dict[str, int]:
        """Digest of each whole parameter, proved equal on all ranks.

        Args:
            names: the parameters; all of them where it is left out.

        Raises:
            ProofError: names the parameter and the ranks that differ.
        """
        names = list(self.engine.parameters) if names is None else names
        local = self.engine.digests(names)
        values = torch.tensor([local.get(name, 0) for name in names], dtype=torch.int64)
        if not self.engine.replicated:
            # slices add up to the whole; a gathered parameter is the same everywhere since all ranks gather it
            return dict(zip(names, self.control.sum(values).tolist(), strict=True))
        low, high = self.control.min_max(values)
        if differing := (low != high).nonzero().flatten().tolist():
            name = names[differing[0]]
            held = self.control.gather(local[name], "the proof that ranks are equal")
            odd = [rank for rank, digest in enumerate(held) if digest != held[0]]
            more = f" (and {len(differing) - 1} more)" if len(differing) > 1 else ""
            raise ProofError(
                f"the ranks are not equal: parameter {name}{more} on rank{'s' if len(odd) > 1 else ''} "
                f"{', '.join(map(str, odd))} differs from rank 0's; stopped"
            )
        return dict(zip(names, values.tolist(), strict=True))

    def check(self) -> str:
        """Prove that ranks are equal and that nothing frozen moved; the combined digest, in hex.

        Raises:
            ProofError: names what is not as promised.
        """
        digests = self.prove_equal()
        self._prove_frozen(digests)
        return combined_digest(digests)

    def _remember_frozen(self, digests: Mapping[str, int]) -> None:
        live = set(self.trainable)
        self._frozen = {name: digest for name, digest in digests.items() if name not in live}

    def _prove_frozen(self, digests: Mapping[str, int]) -> None:
        if moved := [name for name, digest in self._frozen.items() if digests[name] != digest]:
            raise ProofError(
                f"{_names(moved)} moved while frozen; stopped. Something outside of the optimizer writes to it"
            )

    def _elements(self, names: Sequence[str]) -> int:
        return sum(_product(self.engine.shape(name)) for name in names)

    def _release_watch(self) -> None:
        if self._pending is not None:
            self._pending.release()
            self._pending = None


class _Watch:
    """Watches newly unfrozen parameters through their first step."""

    def __init__(
        self, engine: Engine, phase: str, names: Sequence[str], digests: Mapping[str, int], *, loss_scaled: bool
    ) -> None:
        self.phase = phase
        self._engine = engine
        self.names = tuple(names)
        self._scaled = loss_scaled
        self._before = engine.master_digests(self.names) if engine.has_masters else digests
        self._largest: dict[str, torch.Tensor] = {}
        self._rates: dict[str, float] = {}
        self._hooks = [_hooked(engine.parameters[name], self._hook(name)) for name in self.names]

    def _hook(self, name: str) -> Callable[[torch.Tensor], None]:
        def note(gradient: torch.Tensor) -> None:
            size = gradient.detach().abs().max().float()
            self._largest[name] = torch.maximum(self._largest[name], size) if name in self._largest else size

        return note

    def note_rates(self) -> None:
        for cohort, group in zip(self._engine.cohorts, self._engine.optimizer.param_groups, strict=True):
            self._rates.update(dict.fromkeys(cohort.names, float(group["lr"])))

    def verdict(self, control: ControlGroup) -> list[str] | None:
        """Names that should have moved and did not; None if no step was made that could move them."""
        if not self.names:
            return []
        now = self._engine.master_digests(self.names)
        still = {name for name in self.names if now.get(name) == self._before.get(name)}
        moved = torch.tensor([int(name not in still) for name in self.names])
        sizes = torch.tensor(
            [float(self._largest[n]) if n in self._largest else 0.0 for n in self.names], dtype=torch.float64
        )
        largest = self._largest_weights(still)
        weights = torch.tensor([largest.get(name, 0.0) for name in self.names], dtype=torch.float64)
        finite = torch.isfinite(sizes)
        sizes = torch.where(finite, sizes, torch.zeros_like(sizes))
        facts = torch.stack([moved.double(), (~finite).double(), sizes, weights])
        moved, broken, sizes, weights = control.min_max(facts)[1]
        rates = torch.tensor([self._rates.get(n, 0.0) for n in self.names], dtype=torch.float64)
        pushed = (sizes > 0) & (rates > 0)
        if not bool(moved.any()) and (bool(broken.any()) or not bool(pushed.any())):
            return None if bool(broken.any()) or bool((rates <= 0).all()) else []
        # an update of this part of the largest weight cannot be lost in rounding
        types = [torch.float32 if self._engine.has_masters else self._engine.parameters[n].dtype for n in self.names]
        rounding = torch.tensor([torch.finfo(dtype).eps for dtype in types], dtype=torch.float64)
        if bool(moved.any()):
            if self._scaled:
                return []
            rounding = rounding.clamp(min=2.0**-16)  # far above it: gradients are clipped after they are seen here
        stuck = (moved == 0) & pushed & (rates * sizes.clamp(max=1.0) > weights * rounding)
        return [name for name, bad in zip(self.names, stuck.tolist(), strict=True) if bad]

    def _largest_weights(self, names: Collection[str]) -> dict[str, float]:
        return {
            chunk.name: float(torch.linalg.vector_norm(chunk.tensor, math.inf))
            for chunk in self._engine.weights(names)
            if chunk.tensor.numel()
        }

    def release(self) -> None:
        for hook in self._hooks:
            hook.remove()


def _hooked(parameter: torch.Tensor, note: Callable[[torch.Tensor], None]) -> RemovableHandle:
    return cast(RemovableHandle, parameter.register_hook(note))  # type: ignore[no-untyped-call]


def _names(names: Sequence[str]) -> str:
    shown = ", ".join(names[:3])
    return f"parameter{'s' if len(names) > 1 else ''} {shown}" + (
        f" and {len(names) - 3} more" if len(names) > 3 else ""
    )


def _product(shape: Sequence[int]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product
