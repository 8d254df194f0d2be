"""ZeRO-3: weights, gradients, masters and moments all partitioned, parameter by parameter.

Each rank holds an equal slice of every parameter, so a transition never moves state between ranks.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn

from flash_strategies import deepspeed_private as private
from flash_strategies.digest import slice_digest
from flash_strategies.engines.base import Chunk, GroupMemory, StateBytes, group_memory, tensor_bytes
from flash_strategies.engines.zero12 import Zero12Engine
from flash_strategies.plan import PhasePlan


@dataclass(frozen=True)
class Held:
    """One sub-group as this rank holds it."""

    group: int
    """Index of its param group."""
    spans: dict[str, tuple[int, int]]
    """Parameter name -> (offset, elements with padding) in the flat tensors."""
    master: torch.Tensor
    """Flat fp32 masters, (elements,); in fp32 training the weights themselves."""
    state: dict[str, object]
    """The torch optimizer's state for it."""
    is_weights: bool
    """Whether the masters share memory with the weights."""

    @property
    def names(self) -> tuple[str, ...]:
        """Its parameters, in flat order."""
        return tuple(self.spans)

    @property
    def moments(self) -> dict[str, torch.Tensor]:
        """Per-element optimizer state, by kind."""
        return {k: v for k, v in self.state.items() if isinstance(v, torch.Tensor) and v.dim()}

    @property
    def scalars(self) -> dict[str, object]:
        """Other optimizer state: step."""
        return {k: v for k, v in self.state.items() if k not in self.moments}

    def adopt(self, master: torch.Tensor) -> dict[str, object]:
        """Give a new sub-group of the same parameters this one's masters and state, without a copy."""
        if not self.is_weights:
            master.data = self.master.data
        return self.state


class Zero3Engine(Zero12Engine):
    """A DeepSpeed engine at stage 3."""

    def take_down(self) -> None:
        """As Zero12Engine; every rank holds whole weights again. All ranks call it."""
        if self._engine is None:
            return
        private.take_down_partitioned(self.engine)
        private.make_whole(self.engine.module)
        self.forget_tensors()
        private.detach(self.engine)
        self._engine = None

    def _rebuild(self, plan: PhasePlan) -> None:
        engine = self.engine
        old = {held.names: held for held in self._held()}
        old_cohorts, wanted = self.cohorts, set(plan.names)
        memory = private.carried(engine.optimizer)
        private.take_down_partitioned(engine)
        for name in (name for names in old for name in names if name not in wanted):
            # memory of its own, so that the old flat buffer can go
            partition = private.partition_of(self.parameters[name])
            partition.data = partition.data.clone()
        self.apply_trainable(plan)
        self.groups.replace(plan.groups, self.parameters)
        self.forget_tensors()
        private.detach(engine)
        unchanged = {old_cohorts[g.source].names for g in plan.groups if g.source is not None} & {
            g.names for g in plan.groups
        }
        kept = [
            private.Kept(tuple(self.parameters[name] for name in names), held.master.detach())
            for names, held in old.items()
            if not held.is_weights and old_cohorts[held.group].names in unchanged
        ]
        with private.sparing(kept):
            private.build(engine, self.optimizer, memory)
        slices = {name: held for held in old.values() for name in held.names}
        for new in self._held():
            group = plan.groups[new.group]
            if group.source is None or not set(group.names) <= set(old_cohorts[group.source].names):
                continue  # newly unfrozen: its master is its weights, it has no moments and its step is 0
            state = old.pop(new.names).adopt(new.master) if new.names in old else _gathered(new, slices)
            if state:
                self.optimizer.state[new.master] = state

    def after_first_step(self) -> None:
        """Nothing: stage 3 reads its state through the parameters."""

    def _held(self) -> Iterator[Held]:
        """This rank's state, sub-group by sub-group."""
        wrapper = self.engine.optimizer
        names = {id(parameter): name for name, parameter in self.parameters.items()}
        for index, members in enumerate(wrapper.fp16_groups):
            flat = wrapper.fp32_partitioned_groups_flat[index]
            spans: dict[str, tuple[int, int]] = {}
            offset = 0
            for parameter in members:
                numel = private.partition_of(parameter).ds_numel
                spans[names[id(parameter)]] = (offset, numel)
                offset += numel
            weights = wrapper.fp16_partitioned_groups_flat[index]
            shared = weights is not None and weights.data_ptr() == flat.data_ptr()
            state = dict(self.optimizer.state.get(flat, {}))
            yield Held(wrapper.sub_group_to_group_id[index], spans, flat, state, shared)

    def shape(self, name: str) -> tuple[int, ...]:
        """The whole parameter's shape."""
        return private.whole_shape(self.parameters[name])

    @property
    def replicated(self) -> bool:
        """False: a rank holds a slice of every parameter."""
        return False

    def gathered(self, parameter: nn.Parameter) -> AbstractContextManager[object]:
        """All-gather one parameter."""
        return private.gathered(parameter)

    def _bounds(self, name: str, numel: int) -> tuple[int, int]:
        """(start, elements without padding) of this rank's slice in the flattened parameter."""
        rank = dist.get_rank(self.engine.optimizer.dp_process_group)
        whole = math.prod(self.shape(name))
        start = min(rank * numel, whole)
        return start, min(numel, whole - start)

    def weights(self, names: Collection[str]) -> Iterator[Chunk]:
        """This rank's slice of every parameter."""
        wanted = set(names)
        for name, parameter in self.parameters.items():
            if name in wanted:
                partition = private.partition_of(parameter)
                start, numel = self._bounds(name, partition.ds_numel)
                yield Chunk(name, start, partition.data.detach().reshape(-1)[:numel])

    def state(self) -> Iterator[tuple[str, Chunk]]:
        """Views of this rank's slices of masters and moments."""
        for held in self._held():
            for kind, values in {"master": held.master.detach(), **held.moments}.items():
                yield from ((kind, chunk) for chunk in self._chunks(held, values))

    def gradients(self) -> Iterator[Chunk]:
        """Of the sub-group that is stepped: unscaled and clipped, this rank's slices."""
        for held in self._held():
            if held.master.grad is not None:
                yield from self._chunks(held, held.master.grad)

    def _chunks(self, held: Held, values: torch.Tensor) -> Iterator[Chunk]:
        for name, (offset, padded) in held.spans.items():
            start, numel = self._bounds(name, padded)
            yield Chunk(name, start, values[offset : offset + numel])

    def copies(self, names: Collection[str]) -> dict[str, int]:
        """Of parameters that stay gathered, since they are small, or are so just now."""
        whole = {name: private.gathered_copy(self.parameters[name]) for name in names}
        digests = {name: slice_digest(copy) for name, copy in whole.items() if copy is not None}
        values = torch.stack(list(digests.values())).tolist() if digests else []
        return dict(zip(digests, values, strict=True))

    def memory(self) -> list[GroupMemory]:
        """From the state of each sub-group's flat tensor."""
        held = [[one for one in self._held() if one.group == index] for index in range(len(self.cohorts))]
        return [group_memory([one.state for one in group], [one.master.shape for one in group]) for group in held]

    def allocate(self, memory: Sequence[GroupMemory]) -> None:
        """State for each sub-group's flat tensor."""
        self.forget_tensors()
        for held in self._held():
            self._allocate(held.master, held.group, memory[held.group])

    def before_loading(self) -> None:
        """Give back what is gathered or copied of parameters."""
        private.prepare_for_loading(self.engine)

    def state_bytes(self) -> StateBytes:
        """Counted from the flat partitions (where they are not the weights themselves), state and gradient buffers."""
        wrapper = self.engine.optimizer
        weights = {t.data_ptr() for t in wrapper.fp16_partitioned_groups_flat if t is not None}
        masters = [f.detach() for f in wrapper.fp32_partitioned_groups_flat if f.data_ptr() not in weights]
        moments = self.moments()
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        gradients.append(wrapper.grad_partitions_flat_buffer)
        return StateBytes(tensor_bytes(masters), tensor_bytes(moments), tensor_bytes(gradients))


def _gathered(new: Held, old: dict[str, Held]) -> dict[str, object]:
    """State for a sub-group that lost members, copied slice by slice; the master is filled in place."""
    first = old[new.names[0]]
    state = {kind: v.clone() if isinstance(v, torch.Tensor) else v for kind, v in first.scalars.items()}
    moments = {kind: torch.zeros_like(new.master.data, dtype=v.dtype) for kind, v in first.moments.items()}
    for name, (offset, numel) in new.spans.items():
        source = old[name]
        begin = source.spans[name][0]
        if not new.is_weights:
            new.master.data[offset : offset + numel].copy_(source.master.data[begin : begin + numel])
        for kind, values in moments.items():
            values[offset : offset + numel].copy_(source.moments[kind][begin : begin + numel])
    return {**state, **moments}
