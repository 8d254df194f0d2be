"""What every engine does: keep the param groups by name, plan the next ones, and rebuild itself around them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TypeGuard

import torch
from torch import nn
from torch.optim import Optimizer

from flash_strategies.digest import slice_digest
from flash_strategies.errors import CheckpointError, TransitionError
from flash_strategies.handover import set_trainable
from flash_strategies.param_groups import ParamGroups, plain_options
from flash_strategies.plan import GroupPlan, GroupRate, Option, PhasePlan
from flash_strategies.schedulers import Scheduler


@dataclass(frozen=True)
class Chunk:
    """A slice of one flattened parameter's state, as this rank holds it."""

    name: str
    """Name of the parameter."""
    start: int
    """Position of the first element in the flattened parameter."""
    tensor: torch.Tensor
    """The elements, one-dimensional; a view where possible."""


@dataclass(frozen=True)
class StateBytes:
    """Bytes that this rank holds for training, counted from live tensors."""

    masters: int
    """fp32 master weights that are not the weights themselves."""
    moments: int
    """Optimizer state."""
    gradients: int
    """Gradients and gradient buffers."""

    @property
    def total(self) -> int:
        """All of it."""
        return self.masters + self.moments + self.gradients


@dataclass
class Cohort:
    """The names in one live param group; parameters that were unfrozen together."""

    names: tuple[str, ...]
    """Parameter names in the group's order."""
    home: int
    """Index of the group the optimizer was built with."""


@dataclass(frozen=True)
class GroupMemory:
    """What the optimizer remembers of one param group, but for the elements themselves."""

    kinds: dict[str, torch.dtype]
    """Kinds of per-element state and their types."""
    scalars: dict[str, float]
    """Numbers, the same for all of the group's parameters: {"step": 12.0}."""
    factors: dict[str, dict[str, tuple[torch.dtype, tuple[int, ...]]]] = field(default_factory=dict)
    """Tensors of other shapes, by parameter name and kind, where parameters are whole: (type, shape)."""


class Engine(ABC):
    """One way of holding the model over the ranks, able to change its param groups while it lives."""

    def __init__(self, task: nn.Module, optimizer: Optimizer, schedulers: Sequence[Scheduler] = ()) -> None:
        """Take over an optimizer that holds whole parameters of `task`, before any engine is built around it.

        Frozen parameters are taken out of the optimizer, and remembered as belonging to the group they stood in, which
        the schedulers keep seeing.

        Args:
            task: the module whose `named_parameters` give the names.
            optimizer: over parameters of `task`.
            schedulers: the learning-rate schedulers that drive the optimizer.

        Raises:
            TransitionError: the optimizer holds what the task does not, or a scheduler does not hold the optimizer.
        """
        self.task = task
        self.optimizer = optimizer
        self.schedulers = list(schedulers)
        self.parameters: dict[str, nn.Parameter] = dict(task.named_parameters())
        names = {id(parameter): name for name, parameter in self.parameters.items()}
        self.cohorts: list[Cohort] = []
        self._homes: dict[str, int] = {}
        for home, group in enumerate(optimizer.param_groups):
            foreign = [tuple(parameter.shape) for parameter in group["params"] if id(parameter) not in names]
            if foreign:
                raise TransitionError(
                    f"the optimizer holds {len(foreign)} parameters that are not the task's (the first of shape "
                    f"{foreign[0]}), which no engine would keep equal over the ranks: make them parameters of the task"
                )
            members = [names[id(parameter)] for parameter in group["params"]]
            self._homes.update(dict.fromkeys(members, home))
            trainable = tuple(name for name in members if self.parameters[name].requires_grad)
            if trainable:
                self.cohorts.append(Cohort(trainable, home))
        # parameters that require a gradient and that the user left out of the optimizer: not ours to train
        self.left_out = frozenset(n for n, p in self.parameters.items() if p.requires_grad and n not in self._homes)
        self.groups = ParamGroups(optimizer, self.schedulers)
        self.groups.begin({c.home: [(name, self.parameters[name]) for name in c.names] for c in self.cohorts})

    # ---- planning

    def plan(
        self,
        phase: str,
        trainable: Collection[str],
        *,
        number: int,
        step: int,
        lr: Mapping[str, float | GroupRate] | None = None,
    ) -> PhasePlan:
        """The param groups of the coming phase: those that go on, and new ones for what is unfrozen now.

        Args:
            phase: the coming phase's name.
            trainable: names of all parameters that train in it.
            number: how many transitions there were.
            step: optimizer steps done.
            lr: learning rates for newly unfrozen parameters, by name, where they are not their group's.

        Raises:
            TransitionError: nothing would train, or a name is unknown.
        """
        wanted = set(trainable) - self.left_out
        if unknown := sorted(wanted - set(self.parameters)):
            raise TransitionError(f"phase {phase!r} names parameters the task does not have: {', '.join(unknown[:3])}")
        if not wanted:
            raise TransitionError(
                f"in phase {phase!r} nothing would train; a phase needs at least one trainable parameter"
            )
        self.groups.sync()
        groups: list[GroupPlan] = []
        live: set[str] = set()
        for index, cohort in enumerate(self.cohorts):
            live.update(cohort.names)
            if kept := tuple(name for name in cohort.names if name in wanted):
                options, scale = self.groups.options(index), self.groups.scale(index)
                groups.append(self.group_plan(kept, index, cohort.home, options, scale))
        rates = lr or {}
        fresh: dict[tuple[int, str, float | GroupRate | None], list[str]] = {}
        for name, parameter in self.parameters.items():
            if name in wanted and name not in live:
                key = (self._homes.get(name, 0), str(parameter.dtype), rates.get(name))
                fresh.setdefault(key, []).append(name)
        for (home, _, rate), members in fresh.items():
            options = plain_options(self.groups.homes[home])
            if isinstance(rate, (int, float)):  # a schedule goes on in its shape from the rate that was asked for
                rate = GroupRate(float(rate), self.groups.scale_of(home, rate))
            own = {} if rate is None else {"lr": rate.lr}
            scale = 1.0 if rate is None else rate.scale
            groups.append(self.group_plan(tuple(members), None, home, {**options, **own}, scale))
        return PhasePlan(phase, number, step, tuple(sorted(groups, key=lambda group: group.home)))

    def group_plan(
        self, names: tuple[str, ...], source: int | None, home: int, options: Mapping[str, Option], scale: float
    ) -> GroupPlan:
        """A param group of a plan, with what its parameters' shapes and type are."""
        shapes = tuple(self.shape(name) for name in names)
        dtype = str(self.parameters[names[0]].dtype)
        return GroupPlan(names, shapes, dtype, source, home, tuple(sorted(options.items())), scale)

    def home_of(self, name: str) -> int | None:
        """Index of the group the optimizer was built with for a parameter; None where it had none."""
        return self._homes.get(name)

    # ---- the transition

    def rebuild(self, plan: PhasePlan) -> None:
        """Change to the plan's trainable parameters and groups; on all ranks, at an optimizer-step boundary.

        Fp32 masters, optimizer state, learning rates and schedules of what stays trainable survive.
        """
        for parameter in self.parameters.values():
            parameter.grad = None
        self._rebuild(plan)
        self.cohorts = [Cohort(group.names, group.home) for group in plan.groups]

    @abstractmethod
    def _rebuild(self, plan: PhasePlan) -> None:
        """Take state out, change `requires_grad` and groups, build anew, put state back."""

    def apply_trainable(self, plan: PhasePlan) -> None:
        """Set `requires_grad` of every parameter as the plan says."""
        set_trainable(self.task, plan.names, untouched=self.left_out)

    def forget_tensors(self, keep: Collection[int] = ()) -> None:
        """Drop the optimizer's state of parameters and flat tensors, but for ids to keep; what has other keys stays."""
        for key in [key for key in self.optimizer.state if isinstance(key, torch.Tensor) and id(key) not in keep]:
            del self.optimizer.state[key]

    # ---- reading

    def shape(self, name: str) -> tuple[int, ...]:
        """The whole parameter's shape."""
        return tuple(self.parameters[name].shape)

    @abstractmethod
    def weights(self, names: Collection[str]) -> Iterator[Chunk]:
        """The parameters' values as this rank holds them, all ranks together covering each at least once."""

    @abstractmethod
    def state(self) -> Iterator[tuple[str, Chunk]]:
        """(kind, chunk) of fp32 masters ("master") and per-element optimizer state ("exp_avg", ...) on this rank."""

    @abstractmethod
    def gradients(self) -> Iterator[Chunk]:
        """While the torch optimizer steps: the gradients it steps with, as this rank holds them."""

    @abstractmethod
    def memory(self) -> list[GroupMemory]:
        """What the optimizer remembers, by live group.

        Raises:
            CheckpointError: of a kind that cannot be told by group.
        """

    def steps(self) -> dict[str, float]:
        """The optimizer's step count by parameter name, for those that have one."""
        return {
            name: memory.scalars["step"]
            for cohort, memory in zip(self.cohorts, self.memory(), strict=True)
            for name in cohort.names
            if "step" in memory.scalars
        }

    def moments(self) -> list[torch.Tensor]:
        """All tensors of the optimizer's state that have elements to count."""
        states = [state for state in self.optimizer.state.values() if isinstance(state, Mapping)]
        return [v for state in states for v in state.values() if isinstance(v, torch.Tensor) and v.dim()]

    @abstractmethod
    def state_bytes(self) -> StateBytes:
        """Bytes of masters, moments and gradients on this rank, counted from live tensors."""

    @property
    def replicated(self) -> bool:
        """Whether every rank holds every parameter whole."""
        return True

    @property
    def has_masters(self) -> bool:
        """Whether there are masters beside the weights."""
        return True

    def digests(self, names: Collection[str]) -> dict[str, int]:
        """Digest of what this rank holds of each parameter (of all of it where parameters are replicated)."""
        sums: dict[str, torch.Tensor] = {}
        for chunk in self.weights(names):
            digest = slice_digest(chunk.tensor, chunk.start)
            sums[chunk.name] = sums[chunk.name] + digest if chunk.name in sums else digest
        if not sums:
            return {}
        values = torch.stack(list(sums.values())).tolist()
        return dict(zip(sums, values, strict=True))

    def copies(self, names: Collection[str]) -> dict[str, int]:
        """Digest of each parameter that this rank holds whole although it is partitioned."""
        return {}

    def master_digests(self, names: Collection[str]) -> dict[str, int]:
        """As `digests`, of the fp32 masters where there are such, else of the weights."""
        wanted = set(names)
        sums: dict[str, int] = {}
        for kind, chunk in self.state():
            if kind == "master" and chunk.name in wanted:
                digest = int(slice_digest(chunk.tensor, chunk.start).item())
                sums[chunk.name] = sums.get(chunk.name, 0) + digest
        missing = wanted - set(sums)
        return {**self.digests(missing), **sums} if missing and not sums else sums

    def gathered(self, parameter: nn.Parameter) -> AbstractContextManager[object]:
        """While it lasts, a parameter is whole on this rank; all ranks enter it together."""
        return nullcontext()

    def whole_digests(self) -> dict[str, int]:
        """Digest of every whole parameter as this rank sees it, for the proof at the end of a run."""
        found: dict[str, int] = {}
        for name, parameter in self.parameters.items():
            with self.gathered(parameter):
                found[name] = int(slice_digest(parameter).item())
        return found

    # ---- loading

    @abstractmethod
    def allocate(self, memory: Sequence[GroupMemory]) -> None:
        """Make optimizer state of zeros for each live group, as the memory says, to be loaded into `state()`."""

    def before_loading(self) -> None:  # noqa: B027
        """Before `weights()` and `state()` are written to."""

    def after_loading(self) -> None:  # noqa: B027
        """After they were written to."""

    def loss_scale(self) -> dict[str, float]:
        """The state of a loss scaler that belongs to the engine."""
        return {}

    def set_loss_scale(self, state: dict[str, float]) -> None:  # noqa: B027
        """Give it back; of another engine's, what is known here."""

    def before_step(self) -> None:  # noqa: B027
        """When gradients are ready, before the optimizer steps; engines may have something to do."""

    def after_first_step(self) -> None:  # noqa: B027
        """After the first optimizer step of a phase, when every group has state; engines may have something to do."""


def group_memory(
    states: Sequence[Mapping[str, object]], shapes: Sequence[torch.Size], names: Sequence[str] = ()
) -> GroupMemory:
    """What the states of one group's tensors have in common; and by name what they have not, where names are given.

    Raises:
        CheckpointError: a tensor that is not per element and has no name, or numbers that differ.
    """
    kinds: dict[str, torch.dtype] = {}
    scalars: dict[str, float] = {}
    factors: dict[str, dict[str, tuple[torch.dtype, tuple[int, ...]]]] = {}
    everywhere = set(states[0]).intersection(*states[1:]) if names and states else None
    for index, (state, shape) in enumerate(zip(states, shapes, strict=True)):
        for kind, value in state.items():
            if is_per_element(value, kind, shape) and (everywhere is None or kind in everywhere):
                kinds[kind] = value.dtype
            elif isinstance(value, torch.Tensor) and names and (value.dim() or is_per_element(value, kind, shape)):
                factors.setdefault(names[index], {})[kind] = (value.dtype, tuple(value.shape))
            elif isinstance(value, (bool, int, float)) or (isinstance(value, torch.Tensor) and value.numel() == 1):
                if scalars.setdefault(kind, float(value)) != float(value):
                    raise CheckpointError(f"the optimizer's {kind} differs between parameters of one group")
            elif value is not None:
                raise CheckpointError(
                    f"the optimizer keeps {kind!r} as {_described(value)} for a parameter of shape {tuple(shape)}; "
                    "checkpoints hold state that has an element for each of the parameter's, and numbers"
                )
    return GroupMemory(kinds, scalars, factors)


_NUMBERS = frozenset({"step", "mu_product", "mu", "eta"})
"""What torch's optimizers keep as 0-dimensional tensors that are no elements, also for 0-dimensional parameters."""


def is_per_element(value: object, kind: str, shape: torch.Size) -> TypeGuard[torch.Tensor]:
    """Whether a tensor of the optimizer's state has an element for each of the parameter's."""
    return isinstance(value, torch.Tensor) and value.shape == shape and (value.dim() > 0 or kind not in _NUMBERS)


def optimizer_scalars(optimizer: Optimizer, group: Mapping[str, object], memory: GroupMemory) -> dict[str, object]:
    """Numbers as the optimizer keeps them: torch's own as tensors, on the device where they are captured or fused."""
    if not type(optimizer).__module__.startswith("torch.optim"):
        return {kind: int(value) if value == int(value) else value for kind, value in memory.scalars.items()}
    parameters = group["params"]
    assert isinstance(parameters, list)
    on_device = group.get("capturable") or group.get("fused")
    device = parameters[0].device if on_device and parameters else torch.device("cpu")
    return {kind: torch.tensor(value, dtype=torch.float32, device=device) for kind, value in memory.scalars.items()}


def _described(value: object) -> str:
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else type(value).__name__


def tensor_bytes(tensors: Iterator[torch.Tensor] | Sequence[torch.Tensor]) -> int:
    """Bytes of the tensors' distinct storages' viewed elements, each storage range counted once."""
    seen: set[tuple[int, int]] = set()
    total = 0
    for tensor in tensors:
        key = (tensor.data_ptr(), tensor.numel())
        if tensor.numel() and key not in seen:
            seen.add(key)
            total += tensor.numel() * tensor.element_size()
    return total
