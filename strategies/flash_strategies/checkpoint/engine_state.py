"""What a live engine must have on both sides of a stop, and how it is taken out and put back, on any engine and ranks.

The large part are slices of masters and moments by parameter name; the small part, `EngineState`, is the same on every
rank and says which cohorts there are, with their options and step counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field

import torch

from flash_strategies.checkpoint.chunks import Slice, share
from flash_strategies.engines.base import Chunk, Engine, GroupMemory
from flash_strategies.errors import CheckpointError
from flash_strategies.param_groups import plain_options
from flash_strategies.plan import Option, PhasePlan
from flash_strategies.transition import Transitions

WEIGHT = "weight"
"""Kind of a weight: of its fp32 master where there is one."""

Read = Callable[[Sequence[Slice]], None]


@dataclass(frozen=True)
class GroupState:
    """One live param group."""

    names: tuple[str, ...]
    """Parameter names, in the order in which they lie in the group."""
    home: int
    """Index of the param group the optimizer was built with."""
    options: dict[str, Option]
    """lr, initial_lr, weight_decay, ..."""
    kinds: dict[str, str]
    """Kinds of per-element optimizer state and their types: {"exp_avg": "float32"}; empty before the first step."""
    scalars: dict[str, float]
    """Other optimizer state: {"step": 12.0}."""
    scale: float
    """Its learning rate over that of its home."""
    factors: dict[str, dict[str, tuple[str, tuple[int, ...]]]] = field(default_factory=dict)
    """State of other shapes than the parameter's, by name and kind: {"w": {"row_var": ("float32", (3, 1))}}."""


@dataclass(frozen=True)
class EngineState:
    """The small part of an engine's state, the same on every rank; of plain values, so that JSON holds it."""

    phase: str
    """Name of the phase that trains."""
    number: int
    """Transitions so far."""
    fingerprint: str
    """SHA-256 of the plan that all ranks agreed on when the phase began."""
    groups: tuple[GroupState, ...]
    """The live param groups, in order."""
    homes: tuple[dict[str, Option], ...]
    """Options of the param groups the optimizer was built with, as schedulers see them, in order."""
    watched: tuple[str, ...] = ()
    """Newly unfrozen parameters whose first step is not proved yet."""
    loss_scale: dict[str, float] = field(default_factory=dict)
    """DeepSpeed's loss scaler."""
    first_shares: dict[str, float] = field(default_factory=dict)
    """By phase, the share of the head's rate with which what it unfroze began."""
    ramped: int = -1
    """The last epoch whose step of the phases' ramps was taken."""

    @property
    def trainable(self) -> tuple[str, ...]:
        """Names of all parameters that train."""
        return tuple(name for group in self.groups for name in group.names)

    def to_json(self) -> dict[str, object]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, object]) -> EngineState:
        """What `to_json` gave, read back from JSON.

        Raises:
            CheckpointError: other keys.
        """
        try:
            given = dict(values)
            groups = tuple(
                GroupState(**{**group, "names": tuple(group["names"]), "options": _options(group["options"])})
                for group in given.pop("groups")  # type: ignore[attr-defined]
            )
            homes = tuple(_options(home) for home in given.pop("homes"))  # type: ignore[attr-defined]
            watched: tuple[str, ...] = tuple(given.pop("watched"))  # type: ignore[arg-type]
            return cls(groups=groups, homes=homes, watched=watched, **given)  # type: ignore[arg-type]
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"the checkpoint's engine state is not of this version: {error}") from error


def _options(given: Mapping[str, object]) -> dict[str, Option]:
    return {key: _option(value) for key, value in given.items()}


def _option(value: object) -> Option:
    """JSON has lists where options are tuples."""
    return tuple(map(_option, value)) if isinstance(value, (list, tuple)) else value  # type: ignore[return-value]


# ---- out


def take_out(transitions: Transitions) -> EngineState:
    """The small part; at an optimizer-step boundary.

    Raises:
        CheckpointError: the optimizer keeps state that is neither per element nor a number per group.
    """
    engine = transitions.engine
    engine.groups.sync()
    groups = tuple(
        GroupState(
            cohort.names,
            cohort.home,
            engine.groups.options(index),
            {kind: str(dtype).removeprefix("torch.") for kind, dtype in memory.kinds.items()},
            memory.scalars,
            engine.groups.scale(index),
            {
                name: {kind: (str(dtype).removeprefix("torch."), shape) for kind, (dtype, shape) in kinds.items()}
                for name, kinds in memory.factors.items()
            },
        )
        for index, (cohort, memory) in enumerate(zip(engine.cohorts, engine.memory(), strict=True))
    )
    return EngineState(
        transitions.phase,
        transitions.number,
        transitions.fingerprint,
        groups,
        tuple(map(plain_options, engine.groups.homes)),
        transitions.watched,
        engine.loss_scale(),
        dict(transitions.first_shares),
        transitions.ramped,
    )


def trainable_slices(engine: Engine, rank: int, world_size: int) -> Iterator[Slice]:
    """This rank's part of the weights that train and of their optimizer state; views, not copies.

    All ranks together give each element once, in its highest precision.
    """
    whole = {name: math.prod(engine.shape(name)) for cohort in engine.cohorts for name in cohort.names}
    held = [_state_slice(engine, kind, chunk, whole) for kind, chunk in engine.state()]
    if engine.has_masters:
        yield from held
    else:
        weights = (_slice(WEIGHT, chunk, whole) for chunk in engine.weights(whole))
        yield from share([*weights, *held], rank, world_size)


def frozen_slices(engine: Engine, names: Collection[str], rank: int, world_size: int) -> Iterator[Slice]:
    """This rank's part of frozen weights; views."""
    whole = {name: math.prod(engine.shape(name)) for name in names}
    slices = (_slice(WEIGHT, chunk, whole) for chunk in engine.weights(whole))
    yield from share(slices, rank, world_size) if engine.replicated else slices


def _slice(kind: str, chunk: Chunk, whole: Mapping[str, int]) -> Slice:
    return Slice(f"{kind}/{chunk.name}", chunk.start, chunk.tensor, whole[chunk.name])


def _state_slice(engine: Engine, kind: str, chunk: Chunk, whole: Mapping[str, int]) -> Slice:
    # where there are no masters, state is whole on every rank, and may have other elements than its parameter
    elements = whole if engine.has_masters else {chunk.name: chunk.tensor.numel()}
    return _slice(WEIGHT if kind == "master" else kind, chunk, elements)


# ---- back


def put_back(transitions: Transitions, state: EngineState, read: Read) -> None:
    """Bring an engine that was just built, with any groups, to a state that was taken out; on every rank.

    The engine is rebuilt around the state's cohorts, in their order, so that on as many ranks flat partitions are as
    they were, bit for bit. Then every rank reads what it holds.

    Args:
        transitions: started, no step made yet.
        state: what `take_out` gave, on any engine.
        read: fills slices whose keys are kind/name.

    Raises:
        CheckpointError: the model or the optimizer is another, or something cannot be read.
        ProofError: the ranks are not equal afterwards.
    """
    engine = transitions.engine
    _check_fits(engine, state)
    engine.groups.restore(state.homes)
    engine.rebuild(_plan(engine, state))
    engine.allocate(
        [
            GroupMemory(
                {kind: getattr(torch, dtype) for kind, dtype in group.kinds.items()},
                group.scalars,
                {
                    name: {kind: (getattr(torch, dtype), tuple(shape)) for kind, (dtype, shape) in kinds.items()}
                    for name, kinds in group.factors.items()
                },
            )
            for group in state.groups
        ]
    )
    engine.before_loading()
    read(list(_targets(engine)))
    engine.after_loading()
    engine.set_loss_scale(state.loss_scale)
    transitions.first_shares, transitions.ramped = dict(state.first_shares), state.ramped
    transitions.resume(state.phase, state.number, state.fingerprint, state.watched)


def _targets(engine: Engine) -> Iterator[Slice]:
    whole = {name: math.prod(engine.shape(name)) for name in engine.parameters}
    seen: set[int] = set()
    for chunk in engine.weights(engine.parameters):
        if chunk.tensor.numel():
            seen.add(chunk.tensor.data_ptr())
            yield _slice(WEIGHT, chunk, whole)
    for kind, chunk in engine.state():
        # where training is in fp32, ZeRO-3's masters are the weights themselves
        if chunk.tensor.numel() and chunk.tensor.data_ptr() not in seen:
            yield _state_slice(engine, kind, chunk, whole)


def _check_fits(engine: Engine, state: EngineState) -> None:
    unknown = [name for name in state.trainable if name not in engine.parameters]
    if unknown:
        raise CheckpointError(
            f"the checkpoint trains {unknown[0]}{f' and {len(unknown) - 1} more' * (len(unknown) > 1)}, which this "
            "model does not have: resume with the task and the model that the run was started with"
        )
    homes = [plain_options(home) for home in engine.groups.homes]
    if len(homes) != len(state.homes):
        raise CheckpointError(
            f"the checkpoint's optimizer had {len(state.homes)} param groups and this one has {len(homes)}: resume "
            "with the optimizer that the run was started with"
        )
    for saved, options in zip(state.homes, homes, strict=True):
        if set(saved) != set(options):
            other = ", ".join(sorted(set(saved) ^ set(options)))
            raise CheckpointError(
                f"the checkpoint's optimizer is another one, their options differ in {other}: resume with the "
                "optimizer that the run was started with"
            )


def _plan(engine: Engine, state: EngineState) -> PhasePlan:
    groups = tuple(
        engine.group_plan(group.names, None, group.home, group.options, group.scale) for group in state.groups
    )
    return PhasePlan(state.phase, state.number, 0, groups)


def restore_schedulers(engine: Engine, states: Sequence[Mapping[str, object]]) -> None:
    """Give the schedulers back what their `state_dict` gave; after `put_back`.

    Raises:
        CheckpointError: other schedulers.
    """
    if len(states) != len(engine.schedulers):
        raise CheckpointError(
            f"the checkpoint has {len(states)} learning-rate schedules and this run {len(engine.schedulers)}: resume "
            "with the schedule that the run was started with"
        )
    for scheduler, saved in zip(engine.schedulers, states, strict=True):
        scheduler.load_state_dict(dict(saved))


__all__ = [
    "WEIGHT",
    "EngineState",
    "GroupState",
    "frozen_slices",
    "put_back",
    "restore_schedulers",
    "take_out",
    "trainable_slices",
]
