"""What of a task was frozen when it was handed over: by its user, who means it, or by an earlier fit, which is over.

What a fit freezes is noted in the module that holds the parameter: the note survives a copy of the module, its use in
another task, and pickling. All else that requires no gradient was frozen by the user, and stays so in every phase.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from flash_strategies.schedule import Matching, Nothing, Phase
from flash_strategies.selection import may_train, names_matching

_NOTE = "_frozen_by_flash_strategies"
"""Attribute of a module: names of its own parameters that a fit froze."""


@dataclass(frozen=True)
class Handover:
    """The parameters that required no gradient, by name; of those that could require one."""

    kept: tuple[str, ...] = ()
    """Frozen by the user: they stay frozen in every phase."""
    named: tuple[str, ...] = ()
    """Frozen by the user, and what the schedule unfreezes: they train as it says."""
    left: tuple[str, ...] = ()
    """Left frozen by an earlier fit: they train as the schedule says."""

    @property
    def messages(self) -> tuple[str, ...]:
        """What the user should know of it, a sentence each."""
        said = []
        if self.kept:
            said.append(
                f"{_listed(self.kept)} required no gradient when the task was handed over: frozen in every phase "
                "(to train it with the rest, let it require a gradient before; to unfreeze it later, name it in a "
                "phase's Matching(...))"
            )
        if self.named:
            said.append(
                f"{_listed(self.named)} required no gradient when the task was handed over, and the strategy unfreezes "
                "nothing else there: trained as the strategy says (to keep it frozen, use the strategy 'freeze')"
            )
        if self.left:
            said.append(f"{_listed(self.left)} left frozen by an earlier fit: trained as the strategy says now")
        return tuple(said)


def handed_over(
    task: nn.Module, modules: Sequence[nn.Module], phases: Sequence[Phase] = (), *, train_bn: bool = True
) -> Handover:
    """What of a task is frozen, before the first phase is applied.

    What the user froze is named by a schedule where a phase can mean nothing else: a pattern all of whose parameters
    (batch norms aside, where those train anyway) the user froze, or any unfreezing of modules in which nothing else is.

    Args:
        task: not changed.
        modules: that the schedule freezes and unfreezes; none where it freezes nothing.
        phases: the schedule.
        train_bn: the batch norms of the frozen part train.
    """
    left = _noted(task)
    frozen = [name for name, p in task.named_parameters() if not p.requires_grad and may_train(p)]
    users = frozenset(frozen) - left
    norms = _of_batch_norms(task) if train_bn else frozenset()
    named: set[str] = set()
    for what in (phase.what for phase in phases if modules):
        if isinstance(what, Nothing):
            continue
        patterns = what.patterns if isinstance(what, Matching) else None
        meant = [names_matching(task, p) for p in patterns] if patterns else [_inside(task, modules)]
        named.update(*(names & users for names in meant if names - norms and names - norms <= users))
    return Handover(
        kept=tuple(name for name in frozen if name in users - named),
        named=tuple(name for name in frozen if name in named),
        left=tuple(name for name in frozen if name in left),
    )


def set_trainable(task: nn.Module, trainable: Collection[str], *, untouched: Collection[str] = ()) -> None:
    """Let just these parameters require a gradient, and note which ones that froze.

    Args:
        task: whose `named_parameters` give the names.
        trainable: names of those that train.
        untouched: names of those to leave as they are.
    """
    wanted, fixed = set(trainable), set(untouched)
    first = {parameter: name for name, parameter in task.named_parameters()}
    frozen: set[nn.Parameter] = set()
    for parameter, name in first.items():
        if name not in fixed:
            if parameter.requires_grad and name not in wanted:
                frozen.add(parameter)
            parameter.requires_grad_(name in wanted)
    for module in task.modules():
        before: frozenset[str] = module.__dict__.get(_NOTE, frozenset())
        own = dict(module.named_parameters(recurse=False, remove_duplicate=False))
        noted = frozenset(n for n, p in own.items() if p in frozen or (n in before and not p.requires_grad))
        if noted:
            module.__dict__[_NOTE] = noted
        else:
            module.__dict__.pop(_NOTE, None)


def _noted(task: nn.Module) -> frozenset[str]:
    """Names of the parameters that a fit froze and that nobody unfroze since."""
    noted = {
        parameter
        for module in task.modules()
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False)
        if name in module.__dict__.get(_NOTE, ()) and not parameter.requires_grad
    }
    return frozenset(name for name, parameter in task.named_parameters() if parameter in noted)


def _inside(task: nn.Module, modules: Sequence[nn.Module]) -> frozenset[str]:
    inside = {p for module in modules for p in module.parameters()}
    return frozenset(name for name, p in task.named_parameters() if p in inside and may_train(p))


def _of_batch_norms(task: nn.Module) -> frozenset[str]:
    held = {p for module in task.modules() if isinstance(module, _BatchNorm) for p in module.parameters(recurse=False)}
    return frozenset(name for name, p in task.named_parameters() if p in held)


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return f"{len(names)} parameter{'s' * (len(names) != 1)} ({shown})"


__all__ = ["Handover", "handed_over", "set_trainable"]
