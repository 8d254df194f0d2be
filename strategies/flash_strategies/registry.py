"""Strategies by name: Flash's, those registered here, and those other packages bring by entry point. Pure Python."""

import difflib
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import EntryPoint, entry_points

from flash_strategies.errors import StrategyNameError, StrategyTypeError, StrategyValueError
from flash_strategies.freeze import Freeze
from flash_strategies.freeze_unfreeze import FreezeUnfreeze
from flash_strategies.no_freeze import NoFreeze
from flash_strategies.rate import Rate
from flash_strategies.schedule import FinetuningStrategy, Nothing, Phase, validated_phases
from flash_strategies.unfreeze_milestones import UnfreezeMilestones

ENTRY_POINT_GROUP = "flash_strategies"
DEEPSPEED_SUFFIX = "_deepspeed"

StrategyFactory = Callable[[object], FinetuningStrategy]
"""Makes a strategy from the metadata of a pair, None where there are none."""


@dataclass(frozen=True)
class StrategySpec:
    """A strategy as it was asked for."""

    name: str
    """The full name, `_deepspeed` included."""
    strategy: FinetuningStrategy
    """What trains when."""
    deepspeed: bool
    """Whether the `_deepspeed` name was asked for."""


def parse_strategy(spec: object) -> StrategySpec:
    """The strategy that a user asked for.

    `spec` is a name, a pair `(name, metadata)`, also as a list, an object with a name and phases, or a StrategySpec.

    Raises:
        StrategyNameError: a name nobody registered, or an entry point that cannot be imported.
        StrategyTypeError: something else, or metadata of the wrong type or shape; as in Flash, also a pair whose name
            is unknown, and a name whose strategy needs metadata.
        StrategyValueError: metadata of the right type that make no sense.
    """
    if isinstance(spec, StrategySpec):
        return spec
    if isinstance(spec, str):
        if not _known(spec):
            raise StrategyNameError(_unknown(spec))
        return _build(spec, None)
    if isinstance(spec, list):  # YAML, as LightningCLI reads it, has no tuples
        spec = _tuples(spec)
    if isinstance(spec, tuple):
        if len(spec) != 2 or not isinstance(spec[0], str):
            raise StrategyTypeError(_wrong_type(spec))
        name, metadata = spec
        if not _known(name):
            raise StrategyTypeError(_unknown(name))
        return _build(name, metadata)
    if isinstance(spec, type) and isinstance(spec, FinetuningStrategy):  # a class has the attributes of its objects
        raise StrategyTypeError(f"strategy is the class {spec.__name__}: give an object of it, {spec.__name__}(...)")
    if isinstance(spec, FinetuningStrategy):
        strategy = _checked(spec, "the object given as strategy")
        return StrategySpec(strategy.name, strategy, deepspeed=False)
    raise StrategyTypeError(_wrong_type(spec))


def with_rate(strategy: object, rate: Rate) -> StrategySpec:
    """A strategy, in any form that `parse_strategy` takes, whose phases unfreeze with a rate.

    Each phase after the first takes it, but for those that train nothing of the backbone.

    Raises:
        StrategyNameError, StrategyTypeError, StrategyValueError: it is no strategy. From its phases(): it unfreezes
            nothing, or has rates already.
    """
    given: object = rate
    if not isinstance(given, Rate):
        raise StrategyTypeError(f"the rate is {given!r}: give Rate(lr=...) or Rate(ratio=...)")
    spec = parse_strategy(strategy)
    return replace(spec, strategy=_WithRate(spec.strategy, rate))


@dataclass(frozen=True)
class _WithRate:
    strategy: FinetuningStrategy
    rate: Rate

    @property
    def name(self) -> str:
        return self.strategy.name

    def phases(self, max_epochs: int | None) -> tuple[Phase, ...]:
        phases = validated_phases(self.strategy, max_epochs)
        if rated := [phase for phase in phases if phase.rate is not None]:
            raise StrategyValueError(
                f"{self.name}: phase {rated[0].name!r} has a rate already ({rated[0].rate}), and {self.rate} was "
                "given beside it: give one of the two"
            )
        later = [phase for phase in phases[1:] if not isinstance(phase.what, Nothing)]
        if not later:
            raise StrategyValueError(
                f"{self.name}: it unfreezes nothing after the start, and a rate for what it unfreezes was given "
                f"({self.rate}): leave it out, or use a strategy that unfreezes later, such as 'freeze_unfreeze'"
            )
        return tuple(replace(phase, rate=self.rate) if phase in later else phase for phase in phases)


def register_strategy(name: str, factory: StrategyFactory) -> None:
    """Add a strategy under a name; the name with `_deepspeed` comes with it. The same twice changes nothing.

    Raises:
        StrategyTypeError: a name that is not a string, a factory that cannot be called.
        StrategyValueError: a name that is taken, empty, or ends in `_deepspeed`.
    """
    given: object = name
    if not isinstance(given, str):
        raise StrategyTypeError(f"a strategy's name is a string, not {given!r}")
    if not callable(factory):
        raise StrategyTypeError(f"strategy {name!r}: the factory is {factory!r}, it must be called with the metadata")
    if not name.isidentifier():
        raise StrategyValueError(f"strategy name {name!r}: use letters, digits and underscores, as in 'my_schedule'")
    _check_not_twin(name)
    if _registered.get(name, factory) != factory:
        raise StrategyValueError(
            f"strategy name {name!r} is taken by {_registered[name]!r}: choose another than "
            f"{', '.join(strategy_names())}"
        )
    _registered[name] = factory


def strategy_names() -> tuple[str, ...]:
    """All names that can be asked for: Flash's first, then those of others; each followed by its `_deepspeed` twin."""
    others = sorted(point.name for point in _entry_points() if not point.name.endswith(DEEPSPEED_SUFFIX))
    return tuple(twin for name in dict.fromkeys([*_registered, *others]) for twin in (name, name + DEEPSPEED_SUFFIX))


def _without_metadata(strategy: FinetuningStrategy) -> StrategyFactory:
    def factory(metadata: object) -> FinetuningStrategy:
        if metadata is not None:
            raise StrategyTypeError(
                f"{strategy.name}: takes no metadata and was given {metadata!r}: write strategy={strategy.name!r}, "
                f"or, to unfreeze at an epoch, strategy=('freeze_unfreeze', 7)"
            )
        return strategy

    return factory


_registered: dict[str, StrategyFactory] = {
    NoFreeze.name: _without_metadata(NoFreeze()),
    Freeze.name: _without_metadata(Freeze()),
    FreezeUnfreeze.name: FreezeUnfreeze.from_metadata,
    UnfreezeMilestones.name: UnfreezeMilestones.from_metadata,
}


def _build(name: str, metadata: object) -> StrategySpec:
    base = name.removesuffix(DEEPSPEED_SUFFIX)
    factory = _registered.get(base)
    strategy = _checked((factory or _load(base))(metadata), f"what strategy {base!r}'s factory gave")
    return StrategySpec(name, strategy, deepspeed=name != base)


def _checked(given: object, who: str) -> FinetuningStrategy:
    # isinstance of a protocol only looks for the attributes, so their types are looked at here.
    if isinstance(given, type) or not isinstance(given, FinetuningStrategy) or not callable(given.phases):
        raise StrategyTypeError(f"{who} is {given!r}: a strategy is an object with `name` and `phases(max_epochs)`")
    name: object = given.name
    if not isinstance(name, str) or not name:
        raise StrategyTypeError(f"{who} has the name {name!r}: a strategy's name is a string")
    return given


def _entry_points() -> tuple[EntryPoint, ...]:
    # Not kept: reading the list loads nothing, and is only done for a name that is not registered, or for a message.
    return tuple(entry_points(group=ENTRY_POINT_GROUP))


def _known(name: str) -> bool:
    base = name.removesuffix(DEEPSPEED_SUFFIX)
    return base in _registered or any(point.name in (base, name) for point in _entry_points())


def _load(name: str) -> StrategyFactory:
    """The factory that another package brings."""
    points = list(dict.fromkeys(point for point in _entry_points() if point.name == name))
    if not points:  # the name is known, so an entry point has the `_deepspeed` name alone
        _check_not_twin(name + DEEPSPEED_SUFFIX)
    told = " and ".join(sorted(f"{point.value!r}{_package(point)}" for point in points))
    if len(points) > 1:
        raise StrategyNameError(f"strategy {name!r} is brought by more than one package, {told}: uninstall all but one")
    try:
        factory: object = points[0].load()
    except Exception as error:  # another package's import can fail in any way, and its user must hear which it was
        raise StrategyNameError(
            f"strategy {name!r} could not be imported from {told}: {type(error).__name__}: {error}: repair or "
            "uninstall that package, or use another strategy"
        ) from error
    if not callable(factory):
        raise StrategyTypeError(
            f"strategy {name!r} is {factory!r}, from {told}: its entry point must name a function that takes the "
            "metadata and gives a strategy"
        )
    return factory


def _package(point: EntryPoint) -> str:
    return "" if point.dist is None else f" of the package {point.dist.name}"


def _check_not_twin(name: str) -> None:
    if name.endswith(DEEPSPEED_SUFFIX):
        raise StrategyValueError(
            f"strategy name {name!r}: the {DEEPSPEED_SUFFIX} name comes by itself, register "
            f"{name.removesuffix(DEEPSPEED_SUFFIX)!r}"
        )


def _unknown(name: str) -> str:
    names = strategy_names()
    nearest = difflib.get_close_matches(name.lower(), names, n=1)
    meant = f", did you mean {nearest[0]!r}?" if nearest else "."
    return f"no strategy is named {name!r}{meant} Use one of {', '.join(names)}"


def _tuples(value: object) -> object:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _wrong_type(spec: object) -> str:
    return (
        f"strategy is {spec!r}: give a name, a pair (name, metadata), or an object with `name` and "
        f"`phases(max_epochs)`, for example 'freeze' or ('freeze_unfreeze', 7). Names: {', '.join(strategy_names())}"
    )
