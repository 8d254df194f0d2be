"""ZeRO-1 and ZeRO-2: weights whole on every rank; masters, moments (and at stage 2 gradients) in flat partitions.

A param group lies in one flat buffer, cut into equal partitions, one a rank. A group that goes on unchanged keeps its
buffers. Where a group shrinks, the partition boundaries move, and the ranks exchange just the slices that change hands.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn
from torch.optim import Optimizer

from flash_strategies import deepspeed_private as private
from flash_strategies.engines.base import (
    Chunk,
    Engine,
    GroupMemory,
    StateBytes,
    group_memory,
    optimizer_scalars,
    tensor_bytes,
)
from flash_strategies.engines.elementwise import require_elementwise
from flash_strategies.errors import TransitionError
from flash_strategies.plan import PhasePlan
from flash_strategies.schedulers import Scheduler


@dataclass(frozen=True)
class Span:
    """Where a parameter lies in its group's flat buffer."""

    name: str
    """Parameter name."""
    offset: int
    """Position of its first element."""
    numel: int
    """Its number of elements."""


@dataclass(frozen=True)
class Flat:
    """One group's flat layout and this rank's part of its state."""

    spans: tuple[Span, ...]
    """All parameters of the group, in flat order; the same on every rank."""
    partition: int
    """Elements in one rank's partition."""
    master: torch.Tensor
    """This rank's fp32 master partition, (partition,)."""
    moments: dict[str, torch.Tensor]
    """Per-element optimizer state of the partition, by kind."""
    scalars: dict[str, object]
    """Other optimizer state: step."""

    def pieces(self, rank: int) -> Iterator[tuple[Span, int, int]]:
        """(span, begin, end) of what lies in a rank's partition, in positions of the flattened parameter."""
        low, high = rank * self.partition, (rank + 1) * self.partition
        for span in self.spans:
            begin, end = max(low, span.offset), min(high, span.offset + span.numel)
            if begin < end:
                yield span, begin - span.offset, end - span.offset

    def chunks(self, values: torch.Tensor, rank: int) -> Iterator[Chunk]:
        """A rank's partition of one kind of state, (partition,), by parameter; views."""
        for span, begin, end in self.pieces(rank):
            start = span.offset + begin - rank * self.partition
            yield Chunk(span.name, begin, values[start : start + end - begin])


class Zero12Engine(Engine):
    """A DeepSpeed engine at stage 1 or 2."""

    def __init__(self, task: nn.Module, optimizer: Optimizer, schedulers: Sequence[Scheduler] = ()) -> None:
        """As `Engine`, before `deepspeed.initialize`; `attach` takes the engine afterwards."""
        private.check_version()
        require_elementwise(optimizer)
        super().__init__(task, optimizer, schedulers)
        for parameter in self.parameters.values():  # DeepSpeed broadcasts and flattens memory as it lies
            if parameter.data.stride() != torch.empty(parameter.shape, device="meta").stride():
                # not contiguous(): a 1x1 kernel is both channels-last and contiguous
                parameter.data = parameter.data.clone(memory_format=torch.contiguous_format)
        self._engine: private.DeepSpeedEngine | None = None

    def attach(self, engine: private.DeepSpeedEngine) -> None:
        """Take the engine that `deepspeed.initialize` made of the task and the optimizer."""
        self._engine = engine
        private.forget_gradients(engine.optimizer)

    @property
    def engine(self) -> private.DeepSpeedEngine:
        """The attached engine."""
        if self._engine is None:
            raise TransitionError("no DeepSpeed engine is attached yet; call attach(engine) after deepspeed.initialize")
        return self._engine

    def take_down(self) -> None:
        """Undo what the engine did to the task, which then can be given to another; weights have memory of their own.

        After it, this engine and DeepSpeed's are of no use.
        """
        if self._engine is None:
            return
        self.engine.optimizer.destroy()
        private.release_replicas([self.parameters[name] for cohort in self.cohorts for name in cohort.names])
        self.forget_tensors()
        private.detach(self.engine)
        self._engine = None

    def _rebuild(self, plan: PhasePlan) -> None:
        engine, old_cohorts = self.engine, self.cohorts
        wrapper = engine.optimizer
        group, rank = wrapper.dp_process_group, dist.get_rank(wrapper.dp_process_group)
        old = [self._flat(index) for index in range(len(old_cohorts))]
        kept = [
            private.Kept(
                tuple(wrapper.round_robin_bit16_groups[g.source]),
                wrapper.single_partition_of_fp32_groups[g.source].detach(),
                wrapper.bit16_groups_flat[g.source],
            )
            for g in plan.groups
            if g.source is not None and g.names == old_cohorts[g.source].names
        ]
        memory = private.carried(wrapper)
        wrapper.destroy()
        wanted = set(plan.names)
        private.release_replicas([self.parameters[n] for c in old_cohorts for n in c.names if n not in wanted])
        self.apply_trainable(plan)
        self.groups.replace(plan.groups, self.parameters)
        self.forget_tensors()
        private.detach(engine)
        with private.sparing(kept):
            wrapper = private.build(engine, self.optimizer, memory)
        for index, group_plan in enumerate(plan.groups):
            if group_plan.source is None or not set(group_plan.names) <= set(old_cohorts[group_plan.source].names):
                continue  # newly unfrozen: its master is its weights, it has no moments and its step is 0
            before = old[group_plan.source]
            flat = wrapper.single_partition_of_fp32_groups[index]
            if group_plan.names == old_cohorts[group_plan.source].names:
                flat.data = before.master.data
                moments = before.moments
            else:
                after = Flat(self._spans(wrapper, index), flat.numel(), flat, {}, {})
                relocate(before, after, before.master, flat.data, group, rank)
                moments = {}
                for kind, source in before.moments.items():
                    moments[kind] = torch.zeros_like(flat.data, dtype=source.dtype)
                    relocate(before, after, source, moments[kind], group, rank)
            if before.moments or before.scalars:
                self.optimizer.state[flat] = {**before.scalars, **moments}
        wrapper._hp_optimizer_states_linked = False
        wrapper._link_all_hp_params()

    def after_first_step(self) -> None:
        """Link the fp32 fragments again: DeepSpeed does so after group 0's step only, when the others have no state."""
        self.engine.optimizer._hp_optimizer_states_linked = False

    def _spans(self, wrapper: private.ZeroWrapper, index: int) -> tuple[Span, ...]:
        names = {id(parameter): name for name, parameter in self.parameters.items()}
        members = zip(wrapper.round_robin_bit16_groups[index], private.offsets(wrapper, index), strict=True)
        return tuple(Span(names[id(parameter)], offset, parameter.numel()) for parameter, offset in members)

    def _flat(self, index: int) -> Flat:
        wrapper = self.engine.optimizer
        master = wrapper.single_partition_of_fp32_groups[index]
        state = self.optimizer.state.get(master, {})
        moments = {
            k: v for k, v in state.items() if isinstance(v, torch.Tensor) and v.shape == master.shape and v.dim()
        }
        scalars = {k: v for k, v in state.items() if k not in moments}
        return Flat(self._spans(wrapper, index), master.numel(), master, moments, scalars)

    def weights(self, names: Collection[str]) -> Iterator[Chunk]:
        """Every parameter, whole."""
        wanted = set(names)
        for name, parameter in self.parameters.items():
            if name in wanted:
                yield Chunk(name, 0, parameter.detach().reshape(-1))

    def state(self) -> Iterator[tuple[str, Chunk]]:
        """Views of this rank's partitions of masters and moments."""
        rank = dist.get_rank(self.engine.optimizer.dp_process_group)
        for index in range(len(self.cohorts)):
            flat = self._flat(index)
            for kind, values in {"master": flat.master.detach(), **flat.moments}.items():
                yield from ((kind, chunk) for chunk in flat.chunks(values, rank))

    def gradients(self) -> Iterator[Chunk]:
        """Of the group that is stepped: unscaled and clipped, in this rank's partition."""
        rank = dist.get_rank(self.engine.optimizer.dp_process_group)
        for index, master in enumerate(self.engine.optimizer.single_partition_of_fp32_groups):
            if master.grad is not None:
                yield from self._flat(index).chunks(master.grad, rank)

    def memory(self) -> list[GroupMemory]:
        """From the state of each group's partition."""
        masters = self.engine.optimizer.single_partition_of_fp32_groups
        return [group_memory([self.optimizer.state.get(flat, {})], [flat.shape]) for flat in masters]

    def allocate(self, memory: Sequence[GroupMemory]) -> None:
        """State for each group's partition."""
        wrapper = self.engine.optimizer
        self.forget_tensors()
        for index, flat in enumerate(wrapper.single_partition_of_fp32_groups):
            self._allocate(flat, index, memory[index])
        wrapper._hp_optimizer_states_linked = False
        wrapper._link_all_hp_params()

    def _allocate(self, flat: torch.Tensor, index: int, remembered: GroupMemory) -> None:
        if remembered.kinds or remembered.scalars:
            group = self.optimizer.param_groups[index]
            self.optimizer.state[flat] = optimizer_scalars(self.optimizer, group, remembered) | {
                kind: torch.zeros_like(flat.data, dtype=dtype) for kind, dtype in remembered.kinds.items()
            }

    def loss_scale(self) -> dict[str, float]:
        """DeepSpeed's loss scaler."""
        return private.loss_scale(self.engine.optimizer)

    def set_loss_scale(self, state: dict[str, float]) -> None:
        """DeepSpeed's loss scaler."""
        private.set_loss_scale(self.engine.optimizer, state)

    def state_bytes(self) -> StateBytes:
        """Counted from the flat partitions, the optimizer's state and the live gradient buffers."""
        wrapper = self.engine.optimizer
        masters = [flat.detach() for flat in wrapper.single_partition_of_fp32_groups]
        moments = self.moments()
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        gradients += [flat.grad for flat in wrapper.single_partition_of_fp32_groups if flat.grad is not None]
        gradients += [g for parts in wrapper.averaged_gradients.values() for g in parts or []]
        return StateBytes(tensor_bytes(masters), tensor_bytes(moments), tensor_bytes(gradients))


def relocate(
    before: Flat, after: Flat, source: torch.Tensor, target: torch.Tensor, group: dist.ProcessGroup, rank: int
) -> None:
    """Move one kind of state from the old layout to the new one; ranks exchange only what changes hands.

    Args:
        before: the old layout.
        after: the new layout, of a subset of the old parameters.
        source: this rank's old partition, (before.partition,).
        target: this rank's new partition, (after.partition,); filled.
        group: the ranks that share the partitions.
        rank: this rank's number in `group`.
    """
    world = dist.get_world_size(group)
    sends: list[list[torch.Tensor]] = [[] for _ in range(world)]
    receives: list[list[tuple[int, int]]] = [[] for _ in range(world)]
    owners = {r: {span.name: (span, a, b) for span, a, b in before.pieces(r)} for r in range(world)}
    for to in range(world):
        for span, begin, end in after.pieces(to):
            for owner in range(world):
                if span.name not in owners[owner]:
                    continue
                old, low, high = owners[owner][span.name]
                a, b = max(begin, low), min(end, high)
                if a >= b or rank not in (owner, to):
                    continue
                here = old.offset + a - owner * before.partition
                there = span.offset + a - to * after.partition
                if owner == to:
                    target[there : there + b - a].copy_(source[here : here + b - a])
                elif rank == owner:
                    sends[to].append(source[here : here + b - a])
                else:
                    receives[owner].append((there, b - a))
    device = torch.device("cuda") if dist.get_backend(group) == "nccl" else torch.device("cpu")
    outgoing = torch.cat([part for parts in sends for part in parts] or [source[:0]]).to(device)
    incoming = torch.empty(sum(n for parts in receives for _, n in parts), dtype=source.dtype, device=device)
    dist.all_to_all_single(
        incoming,
        outgoing,
        [sum(n for _, n in parts) for parts in receives],
        [sum(part.numel() for part in parts) for parts in sends],
        group=group,
    )
    position = 0
    for parts in receives:
        for there, numel in parts:
            target[there : there + numel].copy_(incoming[position : position + numel])
            position += numel
