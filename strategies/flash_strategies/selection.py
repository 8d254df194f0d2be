"""Which parameters train: from a module tree and what a phase trains to parameter names, and what a layer is."""

import difflib
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import ceil
from typing import cast

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.parametrize import is_parametrized

from flash_strategies.errors import ModulesToFreezeError, StrategyTypeError, StrategyValueError
from flash_strategies.schedule import Counting, Everything, LastLayers, Matching, Nothing, What


@dataclass(frozen=True)
class Layer:
    """A layer of the backbone: a module that holds parameters itself, with what torch's parametrizations made of them.

    So a weight-normed convolution is one layer, its bias and `parametrizations.weight.*` together.
    """

    name: str
    """The module's name under the task."""
    parameters: tuple[str, ...]
    """Names of the parameters of the layer; empty for the activations and pools of Flash's count."""


@dataclass(frozen=True)
class Selection:
    """What trains in one phase and what does not. Names are those of the task's `named_parameters()`, in its order."""

    trainable: tuple[str, ...]
    """Parameters that train; shared ones once."""
    frozen: tuple[str, ...]
    """All other parameters."""
    layers: tuple[str, ...]
    """The backbone's layers (modules that hold parameters) of which a parameter trains, in module order."""
    eval_batch_norms: tuple[str, ...]
    """Batch norms to hold in eval mode, so that their running statistics stand still; none with train_bn."""
    frozen_buffers: tuple[str, ...] = ()
    """All other frozen modules that hold buffers themselves, which must stand still as well."""

    @property
    def held(self) -> tuple[str, ...]:
        """Modules whose own buffers stand still."""
        return self.eval_batch_norms + self.frozen_buffers


def freezable_modules(task: nn.Module) -> tuple[nn.Module, ...]:
    """The modules a strategy may freeze: what `modules_to_freeze()` gives, flattened, else the task's `backbone`.

    Empty where `modules_to_freeze()` gives None: nothing is frozen.

    Raises:
        ModulesToFreezeError: the task has neither.
        StrategyTypeError: something else than a module, a nested iterable of modules, or None.
        StrategyValueError: a module that is not the task's.
    """
    who = type(task).__name__
    method: object = getattr(task, "modules_to_freeze", None)
    if method is None:
        given: object = getattr(task, "backbone", None)
        source = f"{who}.backbone"
        if given is None:
            children = ", ".join(name for name, _ in task.named_children()) or "no modules at all"
            raise ModulesToFreezeError(
                f"{who} does not say what its backbone is (it has {children}): name the module `self.backbone`, or add "
                "a method modules_to_freeze() that returns the module or modules to freeze, or None to freeze nothing. "
                "The strategy 'no_freeze' does without"
            )
    elif isinstance(method, nn.Module) or not callable(method):
        raise StrategyTypeError(
            f"{who}.modules_to_freeze is {_told(method)}: it must be a method that returns the module or modules"
        )
    else:
        given = method()
        source = f"{who}.modules_to_freeze()"
    modules = () if given is None else tuple(dict.fromkeys(_flattened(given, source)))
    _Names(task).check(modules)
    return modules


def freezable_layers(
    task: nn.Module,
    modules: Sequence[nn.Module],
    counting: Counting = "parameters",
    *,
    always_frozen: frozenset[str] = frozenset(),
) -> tuple[Layer, ...]:
    """The layers of the given modules of the task, first to last.

    With counting="parameters" they are the modules that hold parameters themselves, in module order, shared ones once,
    and but for those of which all is in `always_frozen`. With "flash" they are all modules that hold parameters and all
    leaf modules, as Flash 0.8 counts them, shared ones as often as it does.

    Raises:
        StrategyValueError: a module that is not the task's.
    """
    names = _Names(task)
    names.check(modules)
    return tuple(
        Layer(names.modules.get(module, type(module).__name__), tuple(names.parameters[p] for p in _held(module)))
        for module in _layer_modules(modules, counting, names.named(always_frozen))
    )


def frozen_by_user(task: nn.Module, modules: Sequence[nn.Module]) -> frozenset[str]:
    """Names of parameters of the task, outside of the given modules, that require no gradient now.

    `resolve` keeps them so.
    To be called before the first phase is applied, and kept for all phases. `handed_over` looks inside of the modules
    too, and tells what the user froze from what a fit left frozen.
    """
    inside = frozenset(parameter for module in _submodules(modules) for parameter in _own(module))
    return frozenset(name for name, p in task.named_parameters() if p not in inside and not p.requires_grad)


def resolve(
    task: nn.Module,
    modules: Sequence[nn.Module],
    what: What,
    *,
    train_bn: bool,
    always_frozen: frozenset[str] = frozenset(),
) -> Selection:
    """What trains of the task when `what` trains of its freezable modules. Changes nothing; ignores `requires_grad`.

    What lies outside of the modules trains, and so does a parameter that is shared with an owner which trains.
    Parameters in `always_frozen` (see `handed_over`) never do, nor those of integer type. With `train_bn` the batch
    norms of the frozen part train too; without, they are to be held in eval mode.

    Raises:
        StrategyValueError: nothing would train, more layers than there are, last layers without a parameter, a
            pattern that matches nothing, a name in `always_frozen` or a module that is not the task's.
    """
    names = _Names(task)
    names.check(modules)
    unknown = sorted(always_frozen - names.aliases.keys())
    if unknown:
        raise StrategyValueError(f"always_frozen names {unknown[0]!r}, {_nearest(unknown[0], names.aliases)}")
    if isinstance(what, Matching):
        _check_patterns(what, names)

    inside = tuple(_submodules(modules))
    kept = names.named(always_frozen)
    awake = _awake(inside, modules, what, names, kept)
    trainable = {p for module in awake for p in _own(module)}
    if isinstance(what, Matching):  # of the modules that are awake, only what matches
        trainable &= names.matching(what)
    trainable.update(p for module in names.modules.keys() - set(inside) for p in _own(module))
    asleep = [module for module in inside if module not in awake]
    asleep_batch_norms = [module for module in asleep if isinstance(module, _BatchNorm)]
    buffered = [module for module in asleep if module._buffers and not isinstance(module, _BatchNorm)]
    if train_bn:
        trainable.update(p for module in asleep_batch_norms for p in _own(module))
    trainable = {p for p in trainable - kept if may_train(p)}

    if not trainable:
        raise StrategyValueError(
            f"nothing of {type(task).__name__} would train, all its parameters are frozen"
            f"{_before(always_frozen)}: leave the head out of modules_to_freeze(), or use a strategy that unfreezes "
            "from epoch 0"
        )
    return Selection(
        trainable=tuple(name for p, name in names.parameters.items() if p in trainable),
        frozen=tuple(name for p, name in names.parameters.items() if p not in trainable),
        layers=tuple(
            names.modules[module]
            for module in _layer_modules(modules, "parameters", frozenset())
            if not trainable.isdisjoint(_held(module))
        ),
        eval_batch_norms=() if train_bn else tuple(names.modules[module] for module in asleep_batch_norms),
        frozen_buffers=tuple(names.modules[module] for module in buffered if module in names.modules),
    )


def may_train(parameter: nn.Parameter) -> bool:
    """Whether a parameter can require a gradient at all: not where it holds integers."""
    return parameter.is_floating_point() or parameter.is_complex()


def names_matching(task: nn.Module, pattern: str) -> frozenset[str]:
    """Names of the parameters that can train and of which a name, also one of those it shares, matches a pattern."""
    names = _Names(task)
    return frozenset(names.parameters[p] for p in names.matching(Matching((pattern,))) if may_train(p))


class _Names:
    """The names of a task's modules and parameters, by identity."""

    def __init__(self, task: nn.Module) -> None:
        self.task = task
        self.modules = {module: name for name, module in task.named_modules()}
        # Tensors hash by identity, and a dict compares by identity first: equal values are never taken for the same.
        self.parameters = {parameter: name for name, parameter in task.named_parameters()}
        self.aliases = dict(task.named_parameters(remove_duplicate=False))
        """Every name, those of shared parameters too, in module order."""

    def check(self, modules: Sequence[nn.Module]) -> None:
        """Refuse modules that hold something and are not the task's: freezing them would do nothing, or go unnamed."""
        for module in _submodules(modules):
            if module not in self.modules and (_own(module) or isinstance(module, _BatchNorm)):
                raise StrategyValueError(
                    f"the modules to freeze hold a {type(module).__name__} that is not a module of "
                    f"{type(self.task).__name__}: assign it to an attribute of the task (in a list, use "
                    "nn.ModuleList), and give the task's own modules rather than copies"
                )

    def named(self, given: Iterable[str]) -> frozenset[nn.Parameter]:
        """The parameters of these names."""
        return frozenset(self.aliases[name] for name in given)

    def matching(self, what: Matching) -> set[nn.Parameter]:
        """The parameters of which a name matches."""
        return {p for name, p in self.aliases.items() if _matches(name, what)}


def _awake(
    inside: Sequence[nn.Module],
    modules: Sequence[nn.Module],
    what: What,
    names: _Names,
    kept: frozenset[nn.Parameter],
) -> frozenset[nn.Module]:
    """The freezable modules that `what` lets train, those without parameters included."""
    match what:
        case Nothing():
            return frozenset()
        case Everything():
            return frozenset(inside)
        case Matching():
            matching = names.matching(what)
            # A module without parameters may have buffers, by whose names a pattern can mean it.
            return frozenset(
                module
                for module in inside
                if not matching.isdisjoint(_own(module))
                or any(_matches(f"{names.modules.get(module)}.{name}", what) for name, _ in _own_buffers(module))
            )
        case LastLayers():
            last = _last_layers(inside, modules, what, kept)
            if not last:
                return frozenset()
            # What holds no parameters goes with the layers: it is awake from the first of them on.
            first = min(position for position, module in enumerate(inside) if module in last)
            parts = {part for module in last for part in _parametrizations(module)}
            return frozenset(
                module
                for i, module in enumerate(inside)
                if module in last or module in parts or (i >= first and not _own(module))
            )


def _last_layers(
    inside: Sequence[nn.Module], modules: Sequence[nn.Module], what: LastLayers, kept: frozenset[nn.Parameter]
) -> frozenset[nn.Module]:
    if not inside:  # nothing can be frozen, so nothing needs to unfreeze
        return frozenset()
    layers = _layer_modules(modules, what.counting, kept)
    count = what.count if isinstance(what.count, int) else max(1, ceil(what.count * len(layers)))
    if count > len(layers):
        raise StrategyValueError(
            f"the last {count} layers were asked for, the modules to freeze have {len(layers)}"
            f"{_before(kept)} (counting={what.counting!r}): give 1 to {len(layers)}, or a fraction such as "
            "Fraction(1, 4)"
        )
    if not any(_holds_more(module, kept) for module in layers[-count:]):
        needed = next((n for n, module in enumerate(reversed(layers), 1) if _holds_more(module, kept)), None)
        fix = "there is nothing to unfreeze" if needed is None else f"give {needed} or more, or count by 'parameters'"
        raise StrategyValueError(
            f"the last {count} of {len(layers)} layers hold no parameter{_before(kept)} (counting={what.counting!r}; "
            f"the last is a {type(layers[-1]).__name__}), so nothing would unfreeze: {fix}"
        )
    return frozenset(layers[-count:])


def _layer_modules(
    modules: Sequence[nn.Module], counting: Counting, kept: frozenset[nn.Parameter]
) -> tuple[nn.Module, ...]:
    parts = {part for module in _submodules(modules) for part in _parametrizations(module)}
    if counting == "flash":
        return tuple(layer for module in modules for layer in _flash_layers(module) if layer not in parts)
    return tuple(module for module in _submodules(modules) if module not in parts and _holds_more(module, kept))


def _flash_layers(module: nn.Module) -> Iterator[nn.Module]:
    # Flash goes through containers child by child, so it counts a module shared by two of their children twice.
    children = module.values() if isinstance(module, nn.ModuleDict) else module
    if isinstance(children, Iterable):
        for child in children:
            yield from _flash_layers(child)
    else:
        yield from (m for m in module.modules() if _held(m) or next(m.children(), None) is None)


def _submodules(modules: Iterable[nn.Module]) -> Iterator[nn.Module]:
    """All modules under the given ones, parents first, each once."""
    yield from dict.fromkeys(submodule for module in modules for submodule in module.modules())


def _own(module: nn.Module) -> list[nn.Parameter]:
    """The parameters that the module holds itself."""
    return list(module.parameters(recurse=False))


def _parametrizations(module: nn.Module) -> list[nn.Module]:
    """The modules in which torch keeps what a module's parametrized weights are computed from."""
    return [*cast(nn.ModuleDict, module.parametrizations).modules()] if is_parametrized(module) else []


def _held(module: nn.Module) -> list[nn.Parameter]:
    """The parameters of the layer: its module's own, and those its parametrized weights are computed from."""
    return [*_own(module), *(p for part in _parametrizations(module) for p in _own(part))]


def _holds_more(module: nn.Module, kept: frozenset[nn.Parameter]) -> bool:
    return any(parameter not in kept for parameter in _held(module))


def _before(kept: Collection[object]) -> str:
    return " besides those that required no gradient before" if kept else ""


def _own_buffers(module: nn.Module) -> list[tuple[str, object]]:
    return [] if _own(module) else list(module.named_buffers(recurse=False))


def _flattened(given: object, source: str) -> Iterator[nn.Module]:
    if isinstance(given, nn.Module):
        yield given
    elif isinstance(given, Iterable) and not isinstance(given, (str, bytes, dict, nn.Parameter)):
        for item in given:
            yield from _flattened(item, source)
    else:
        raise StrategyTypeError(
            f"{source} gave {_told(given)}: it must give a module, a list of modules (lists may be nested), or None to "
            "freeze nothing; for parameters by name, use a strategy with Matching(patterns)"
        )


def _told(given: object) -> str:
    text = repr(given)
    return f"a {type(given).__name__}, {text if len(text) <= 80 else text[:77] + '...'}"


def _matches(name: str, what: Matching) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in what.patterns)


def _check_patterns(what: Matching, names: _Names) -> None:
    for pattern in what.patterns:
        if not any(fnmatchcase(name, pattern) for name in names.aliases):
            raise StrategyValueError(
                f"the pattern {pattern!r} matches no parameter of {type(names.task).__name__}, "
                f"{_nearest(pattern, names.aliases)}"
            )


def _nearest(given: str, names: Iterable[str]) -> str:
    """The parameters, and the patterns for whole modules, whose names come nearest."""
    possible = [*names]
    possible += dict.fromkeys(f"{prefix}.*" for name in possible for prefix in _prefixes(name))
    nearest = difflib.get_close_matches(given, possible, n=3, cutoff=0.3) or possible[:3]
    return f"the nearest names are {', '.join(nearest)}"


def _prefixes(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:n]) for n in range(1, len(parts))]
