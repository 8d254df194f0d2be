"""Transitions over any engine: agree, rebuild, and prove that the ranks are equal and the right parameters move."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from flash_strategies.agreement import ControlGroup
from flash_strategies.buffers import Reduction, equalise, prove_buffers_equal
from flash_strategies.digest import combined_digest
from flash_strategies.engines.base import Engine, StateBytes
from flash_strategies.errors import ProofError
from flash_strategies.first_step import FirstStep
from flash_strategies.frozen_buffers import FrozenBuffers
from flash_strategies.plan import GroupRate
from flash_strategies.proof import named, prove_equal
from flash_strategies.reporting import NOTES, say


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
    rates: tuple[float, ...] = ()
    """Learning rates with which what was unfrozen begins, each once, ascending; none at the start of the run."""


class Transitions:
    """Makes transitions on an engine; every rank has one and calls it at the same points."""

    def __init__(self, engine: Engine, control: ControlGroup, *, users_frozen: Collection[str] = ()) -> None:
        """Begin with the engine's present groups.

        Args:
            engine: how the ranks hold the model.
            control: for agreement and proof.
            users_frozen: names of parameters that the user froze and may write to, as to a teacher that follows the
                backbone by momentum: that is reported, and no fault.
        """
        self.engine = engine
        self.control = control
        self.number = 0
        self.phase = ""
        self.fingerprint = ""
        self.first_shares: dict[str, float] = {}
        """By phase, the share of the head's rate with which what it unfroze began; see phase_rates."""
        self.ramped = -1
        """The last epoch whose step of the phases' ramps was taken."""
        self._frozen: dict[str, int] = {}
        self._users = frozenset(users_frozen)
        self._pending: FirstStep | None = None
        self._buffers = FrozenBuffers(engine.task)
        self._said: set[str] = set()

    @property
    def trainable(self) -> tuple[str, ...]:
        """Names of the parameters that train now."""
        return tuple(name for cohort in self.engine.cohorts for name in cohort.names)

    def frozen(self) -> Mapping[str, int]:
        """Digest of each frozen parameter as it is now; to be read on all ranks at once."""
        if users := [name for name in self._frozen if name in self._users]:
            self._prove_frozen({**self._frozen, **self.prove_equal(users)})
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
        self._say_once(equalise(self.engine.task, self.control, as_rank_0=True), "at the start")
        names = self.trainable
        count = self._elements(names)
        held = self.engine.state_bytes()
        seconds = time.perf_counter() - began
        return TransitionReport(phase, 0, 0, fingerprint, count, count, names, (), seconds, held, held)

    def move(
        self,
        phase: str,
        trainable: Collection[str],
        *,
        step: int,
        lr: Mapping[str, float | GroupRate] | None = None,
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
        plan = engine.plan(phase, trainable, number=self.number + 1, step=step, lr=lr)
        fingerprint = self.control.agree(plan)
        bytes_before = engine.state_bytes()
        # what is frozen has its digest since the phase began
        known = self.frozen()
        digests = {**known, **self.prove_equal([n for n in engine.parameters if n not in known])}
        self._release_watch()
        engine.rebuild(plan)
        self.number += 1
        self.phase, self.fingerprint = phase, fingerprint
        after = self.prove_equal()
        self._prove_frozen(after)
        if changed := [name for name in digests if after[name] != digests[name]]:
            raise ProofError(f"the transition to phase {phase!r} changed the weights of {named(changed)}; stopped")
        self._remember_frozen(after)
        unfrozen = tuple(name for name in self.trainable if name not in set(before))
        refrozen = tuple(name for name in before if name not in set(self.trainable))
        self._pending = FirstStep(engine, phase, unfrozen, after)
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
            plan.fresh_rates,
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
            self._pending = FirstStep(self.engine, phase, watched, digests)
        elif any(memory.kinds for memory in self.engine.memory()):
            self.engine.after_first_step()

    def before_step(self) -> None:
        """When gradients are ready, before the optimizer steps."""
        self.engine.before_step()
        if self._pending is not None:
            self._pending.before_step()

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
                f"after the first step of phase {phase!r}, {named(stuck)} did not move although unfrozen, with a "
                "gradient and a learning rate above zero; stopped, because the run would not be what its strategy says"
            )

    def prove_equal(self, names: Sequence[str] | None = None) -> dict[str, int]:
        """Digest of each whole parameter, proved equal on all ranks; see proof.prove_equal.

        Raises:
            ProofError: names what differs and the ranks.
        """
        return prove_equal(self.engine, self.control, names)

    def hold(self, modules: Collection[str]) -> None:
        """Let the buffers of frozen modules stand still from now on, and of no others; in training mode.

        Args:
            modules: their names; each is meant for itself, not for those below it.
        """
        self._buffers.hold(modules)

    def equalise_buffers(self) -> None:
        """Make buffers equal that a forward pass changed by what each rank saw; see buffers.equalise.

        Raises:
            ProofError: a buffer is of another shape or type on another rank.
        """
        self._say_once(equalise(self.engine.task, self.control), "after training on each rank's own samples")

    def check(self) -> str:
        """Prove that ranks are equal, buffers included, and that nothing frozen moved; the combined digest, in hex.

        Raises:
            ProofError: names what is not as promised.
        """
        digests = self.prove_equal()
        self._prove_frozen(digests)
        return combined_digest({**digests, **prove_buffers_equal(self.engine.task, self.control)})

    def _say_once(self, treated: Mapping[str, Reduction], when: str) -> None:
        """Report how buffers that differed were made equal."""
        fresh = {name: way for name, way in treated.items() if name not in self._said}
        self._said |= set(fresh)
        for way in sorted(set(fresh.values())):
            names = named([name for name, its in fresh.items() if its == way], "buffer")
            made = {"mean": "their mean", "max": "the largest", "min": "the smallest", "rank0": "rank 0's"}[way]
            say(
                f"{names} differed between ranks {when}: all ranks have {made} now. The task's buffer_reduction can "
                "say otherwise",
                NOTES,
            )

    def _remember_frozen(self, digests: Mapping[str, int]) -> None:
        live = set(self.trainable)
        self._frozen = {name: digest for name, digest in digests.items() if name not in live}

    def _prove_frozen(self, digests: Mapping[str, int]) -> None:
        moved = [name for name, digest in self._frozen.items() if digests[name] != digest]
        if users := [name for name in moved if name in self._users]:
            self._frozen.update({name: digests[name] for name in users})
            if fresh := [name for name in users if name not in self._said]:
                self._said |= set(fresh)
                say(f"the task itself writes to {named(fresh)}, frozen from the start: equal on all ranks", NOTES)
        if moved := [name for name in moved if name not in self._users]:
            raise ProofError(
                f"{named(moved)} moved while frozen; stopped. Something outside of the optimizer writes to it"
            )
        if moved := self._buffers.moved():
            raise ProofError(
                f"{named(moved, 'buffer')} moved while frozen; stopped. Something outside of its module's forward pass "
                "writes to it, or a forward pass that does so only now and then: leave it alone while the module's "
                "parameters require no gradient, or register it outside of what is frozen"
            )

    def _elements(self, names: Sequence[str]) -> int:
        return sum(_product(self.engine.shape(name)) for name in names)

    def _release_watch(self) -> None:
        if self._pending is not None:
            self._pending.release()
            self._pending = None


def _product(shape: Sequence[int]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product
