"""The rates of a strategy's phases at work: at the unfreeze, and at the start of each epoch while they are ramped."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

from torch import nn

from flash_strategies.engines.base import Engine
from flash_strategies.phases import ResolvedPhase, phase_at
from flash_strategies.plan import GroupRate
from flash_strategies.reporting import say
from flash_strategies.schedule import Phase
from flash_strategies.selection import freezable_modules
from flash_strategies.transition import Transitions


class PhaseRates:
    """Knows by which phase each parameter was unfrozen, so that groups that train on keep that phase's rate."""

    def __init__(self, task: nn.Module, phases: Sequence[ResolvedPhase]) -> None:
        """Look at what each phase unfreezes.

        Args:
            task: that the phases were resolved on.
            phases: all of the run's.
        """
        self._phases = tuple(phases)
        self._any = any(one.phase.rate is not None for one in phases)
        inside = {id(p) for module in (freezable_modules(task) if self._any else ()) for p in module.parameters()}
        self._heads = [name for name, parameter in task.named_parameters() if id(parameter) not in inside]

    def at_unfreeze(self, transitions: Transitions, epoch: int) -> Mapping[str, GroupRate]:
        """Rates for `Transitions.move` at the start of an epoch, by name; where no phase has any, none.

        Also of what continues: `move` looks at those that are newly unfrozen.
        """
        return {
            name: rate
            for phase, names in self._rated(epoch)
            for name in names
            for rate in [self._rate(transitions, phase, transitions.engine.home_of(name) or 0, epoch)]
        }

    def begin_epoch(self, transitions: Transitions, epoch: int) -> None:
        """After the epoch's transition, if it had one: take the ramps' next step, once an epoch."""
        if transitions.ramped == epoch:  # resumed in its middle
            return
        transitions.ramped = epoch
        groups = transitions.engine.groups
        for phase, names in self._rated(epoch):
            rate = phase.rate
            if rate is None or rate.ramp is None or epoch <= phase.first_epoch:
                continue
            members = frozenset(names)
            for index, cohort in enumerate(transitions.engine.cohorts):
                if members.issuperset(cohort.names):
                    groups.set_rate(index, self._rate(transitions, phase, cohort.home, epoch))
            first = transitions.first_shares.get(phase.name, rate.first_share(1.0))
            then, now = (rate.share(first, phase.first_epoch, one) for one in (epoch - 1, epoch))
            if rate.align and then < now == 1:
                say(f"epoch {epoch}: the learning rate of what phase {phase.name} unfroze has reached the head's")

    def _rated(self, epoch: int) -> Iterator[tuple[Phase, list[str]]]:
        """Phases up to an epoch that have a rate, each with the names that trained ever since it unfroze them."""
        if not self._any:
            return
        since: dict[str, Phase] = {}
        reached = [one for one in self._phases if one.phase.first_epoch <= epoch]
        for before, now in pairwise(reached):
            since.update(dict.fromkeys(now.unfreezes(before), now.phase))
        trains = set(phase_at(self._phases, epoch).selection.trainable)
        for one in reached:
            if one.phase.rate is not None:
                yield one.phase, [name for name, phase in since.items() if phase is one.phase and name in trains]

    def _rate(self, transitions: Transitions, phase: Phase, home: int, epoch: int) -> GroupRate:
        assert phase.rate is not None
        engine, rate = transitions.engine, phase.rate
        head = self._head(engine)
        if phase.name not in transitions.first_shares:
            transitions.first_shares[phase.name] = rate.first_share(engine.groups.home_lr(head))
        share = rate.share(transitions.first_shares[phase.name], phase.first_epoch, epoch)
        found = engine.groups.rate_beside(home, head, share)
        if rate.lr is not None and epoch == phase.first_epoch:
            return GroupRate(rate.lr, found.scale)  # to the last bit
        return found

    def _head(self, engine: Engine) -> int:
        """The group the optimizer was built with in which the first parameter outside of the backbone stands."""
        return next((home for name in self._heads if (home := engine.home_of(name)) is not None), 0)
