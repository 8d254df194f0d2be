"""DDP: every rank holds everything; DistributedDataParallel is wrapped anew so that it averages what trains now.

DDP registers only the parameters that require a gradient when it is built, so one that is unfrozen later would never
be averaged. Wrapping anew without the initial broadcast is enough: the ranks are equal, and that is proved.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Collection, Iterator, Sequence

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from flash_strategies.engines.base import (
    Chunk,
    Engine,
    GroupMemory,
    StateBytes,
    group_memory,
    is_per_element,
    optimizer_scalars,
    tensor_bytes,
)
from flash_strategies.parameter_checks import check_optimizer
from flash_strategies.plan import PhasePlan
from flash_strategies.schedulers import Scheduler
from flash_strategies.sparse_gradients import memory_of, no_gradient, sparse_parameters


class DDPEngine(Engine):
    """Parameters, gradients and optimizer state whole on every rank."""

    def __init__(
        self,
        task: nn.Module,
        optimizer: Optimizer,
        schedulers: Sequence[Scheduler] = (),
        *,
        rewrap: Callable[[], None] | None = None,
        wrapped: Callable[[], nn.Module | None] | None = None,
    ) -> None:
        """As `Engine`.

        Args:
            task: the module inside of DDP.
            optimizer: over its parameters.
            schedulers: that drive the optimizer.
            rewrap: builds DistributedDataParallel anew around `task`; None on one rank without DDP.
            wrapped: gives the present DistributedDataParallel, whose buffers are then freed before the new one is
                built; without it they are freed afterwards, by garbage collection.
        """
        check_optimizer(task, optimizer)
        super().__init__(task, optimizer, schedulers)
        self._sparse = {id(self.parameters[name]) for name in sparse_parameters(task)}
        self._rewrap = rewrap
        self._wrapped = wrapped
        self._formats: dict[str, torch.Tensor] = {}

    def _rebuild(self, plan: PhasePlan) -> None:
        kept = {id(self.parameters[name]) for name in plan.names}
        self.apply_trainable(plan)
        self.groups.replace(plan.groups, self.parameters)
        live = {id(self.parameters[n]) for cohort in self.cohorts for n in cohort.names}
        self.forget_tensors(keep=kept & live)
        if self._rewrap is None:
            return
        old = self._wrapped() if self._wrapped is not None else None
        if isinstance(old, DistributedDataParallel):
            _empty(old)
        self._rewrap()
        if old is None:
            gc.collect()  # the old wrapper is in reference cycles, and its reducer's buckets with it

    @property
    def has_masters(self) -> bool:
        """False: the weights are their own."""
        return False

    @torch.no_grad()
    def before_step(self) -> None:
        """Give a trainable parameter without a gradient one of zeros: the arithmetic of ZeRO's flat groups."""
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    parameter.grad = no_gradient(parameter, sparse=id(parameter) in self._sparse)

    def weights(self, names: Collection[str]) -> Iterator[Chunk]:
        """Every parameter, whole."""
        wanted = set(names)
        for name, parameter in self.parameters.items():
            if name in wanted:
                yield Chunk(name, 0, parameter.detach().reshape(-1))

    def state(self) -> Iterator[tuple[str, Chunk]]:
        """Whole moments; the weights are their own masters."""
        for cohort in self.cohorts:
            for name in cohort.names:
                parameter = self.parameters[name]
                for kind, value in self.optimizer.state.get(parameter, {}).items():
                    per_element = is_per_element(value, kind, parameter.shape)
                    if per_element or (isinstance(value, torch.Tensor) and value.dim()):
                        yield kind, Chunk(name, 0, value.reshape(-1))

    def gradients(self) -> Iterator[Chunk]:
        """Whole gradients; of a sparse one, the values that are there."""
        for cohort in self.cohorts:
            for name in cohort.names:
                gradient = self.parameters[name].grad
                if gradient is not None:
                    values = gradient.coalesce().values() if gradient.is_sparse else gradient
                    yield Chunk(name, 0, values.detach().reshape(-1))

    def memory(self) -> list[GroupMemory]:
        """From the state of each parameter."""
        found = []
        for cohort in self.cohorts:
            stepped = {n: self.parameters[n] for n in cohort.names if self.optimizer.state.get(self.parameters[n])}
            states = [self.optimizer.state[parameter] for parameter in stepped.values()]
            found.append(group_memory(states, [p.shape for p in stepped.values()], list(stepped)))
        return found

    def allocate(self, memory: Sequence[GroupMemory]) -> None:
        """State for each parameter."""
        self.forget_tensors()
        for cohort, group, remembered in zip(self.cohorts, self.optimizer.param_groups, memory, strict=True):
            some = remembered.kinds or remembered.scalars or remembered.factors
            for name, parameter in zip(cohort.names, group["params"], strict=True) if some else ():
                self.optimizer.state[parameter] = optimizer_scalars(self.optimizer, group, remembered) | {
                    kind: torch.zeros(parameter.shape, dtype=dtype, device=parameter.device)
                    for kind, dtype in remembered.kinds.items()
                }
                self.optimizer.state[parameter] |= {
                    kind: torch.zeros(shape, dtype=dtype, device=parameter.device)
                    for kind, (dtype, shape) in remembered.factors.get(name, {}).items()
                }

    def before_loading(self) -> None:
        """Give weights that do not lie in their logical order (channels_last) such memory, to be written to."""
        self._formats = {name: p.data for name, p in self.parameters.items() if not p.is_contiguous()}
        for name in self._formats:
            self.parameters[name].data = self.parameters[name].data.contiguous()

    @torch.no_grad()
    def after_loading(self) -> None:
        """Give them, and their moments, their order back."""
        for name, data in self._formats.items():
            parameter = self.parameters[name]
            data.copy_(parameter.data)
            parameter.data = data
            state = self.optimizer.state.get(parameter, {})
            for kind, value in state.items():
                if is_per_element(value, kind, parameter.shape):
                    state[kind] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
        self._formats = {}

    def state_bytes(self) -> StateBytes:
        """Counted from the optimizer's state and the parameters' gradients."""
        moments = self.moments()
        gradients = [part for p in self.parameters.values() if p.grad is not None for part in memory_of(p.grad)]
        return StateBytes(0, tensor_bytes(moments), tensor_bytes(gradients))


def _empty(wrapper: DistributedDataParallel) -> None:
    """Free a wrapper's gradient buckets and hooks: both belong to its reducer, which its logger holds too."""
    for name in ("reducer", "logger"):
        wrapper.__dict__.pop(name, None)
