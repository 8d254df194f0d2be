"""Optimizers and learning rate schedulers of a task by name, function or pair, in the forms that Flash takes."""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch import nn
from torch.optim import Optimizer, lr_scheduler

from flash_launch.errors import TaskError
from flash_launch.setup_keys import nearest

__all__ = [
    "OptimizerSpec",
    "SchedulerSpec",
    "available_lr_schedulers",
    "available_optimizers",
    "build_optimizer",
    "build_scheduler",
    "check_optimizer",
    "check_scheduler",
]

Make = Callable[..., object]
OptimizerSpec = str | Make | tuple[str | Make, Mapping[str, object]]
"""A name, a function of the parameters, or one of these and its arguments."""

SchedulerSpec = (
    str | Make | tuple[str | Make, Mapping[str, object]] | tuple[str | Make, Mapping[str, object], Mapping[str, object]]
)
"""A name, a function of the optimizer, or one of these, its arguments and Lightning's configuration of a scheduler."""

_STEPWISE = {"steplr", "multisteplr", "cosineannealinglr", "cycliclr", "cosineannealingwarmrestarts", "onecyclelr"}
"""What counts optimizer steps by default; other schedulers of torch count epochs."""

_CONFIGURATION = ("interval", "frequency", "monitor", "strict", "name", "reduce_on_plateau")


@dataclass(frozen=True)
class _Chosen:
    """A specification in its parts."""

    make: Make
    """The class or function."""
    name: str
    """In lower case, for messages."""
    arguments: Mapping[str, object]
    """For the function, by name."""
    configuration: Mapping[str, object]
    """Lightning's, of a scheduler."""
    transformers: bool = False
    """Whether it is a schedule of transformers, which wants to know the number of steps."""


def available_optimizers() -> list[str]:
    """Names of torch's optimizers, in lower case, sorted; capital letters are taken, too."""
    return sorted(_optimizers())


def available_lr_schedulers() -> list[str]:
    """Names of torch's schedulers, in lower case, and, where transformers is installed, of its schedules; sorted."""
    return sorted({*_schedulers(), *_transformers_names()})


def check_optimizer(spec: object) -> None:
    """Raise TaskError for what `build_optimizer` would not take."""
    _chosen_optimizer(spec)


def check_scheduler(spec: object) -> None:
    """Raise TaskError for what `build_scheduler` would not take."""
    if spec is not None:
        _chosen_scheduler(spec)


def build_optimizer(spec: object, parameters: Iterable[nn.Parameter], lr: float | None) -> Optimizer:
    """The optimizer over these parameters.

    Args:
        spec: see OptimizerSpec.
        parameters: all of the task's, frozen ones too: a transition can only unfreeze what the optimizer knows.
        lr: learning rate; None: the optimizer's default.

    Raises:
        TaskError: an unknown name, with the nearest one; arguments that it does not take.
    """
    chosen = _chosen_optimizer(spec)
    arguments = dict(chosen.arguments) if lr is None else {"lr": lr} | dict(chosen.arguments)
    if lr is not None and not inspect.isclass(chosen.make) and "lr" not in _parameters(chosen.make):
        raise TaskError(
            f"learning_rate={lr} is given beside a function that makes the optimizer and takes no lr: leave one out"
        )
    made = _call(chosen, list(parameters), arguments, "optimizer")
    if not isinstance(made, Optimizer):
        raise TaskError(f"the function given as optimizer made a {type(made).__name__}, not an optimizer of torch's")
    return made


def build_scheduler(spec: object, optimizer: Optimizer, total_steps: Callable[[], float]) -> dict[str, object]:
    """Lightning's configuration of the scheduler.

    Args:
        spec: see SchedulerSpec.
        optimizer: whose rates it sets.
        total_steps: says how many optimizer steps the fit has, for the schedules of transformers.

    Raises:
        TaskError: an unknown name, with the nearest one; arguments that it does not take.
    """
    chosen = _chosen_scheduler(spec)
    arguments = dict(chosen.arguments)
    if chosen.transformers:
        arguments = _with_steps(chosen, arguments, total_steps)
    made = _call(chosen, optimizer, arguments, "lr_scheduler")
    if not isinstance(made, lr_scheduler.LRScheduler):
        raise TaskError(f"the function given as lr_scheduler made a {type(made).__name__}, not a scheduler of torch's")
    stepwise = chosen.transformers or type(made).__name__.lower() in _STEPWISE
    configuration = {"scheduler": made, "interval": "step" if stepwise else "epoch", **chosen.configuration}
    if isinstance(made, lr_scheduler.ReduceLROnPlateau) and "monitor" not in configuration:
        raise TaskError(
            f"the lr_scheduler {chosen.name} must know what to look at: give it as a third item, as in "
            "('reducelronplateau', {}, {'monitor': 'val_cross_entropy'})"
        )
    return configuration


def _with_steps(chosen: _Chosen, arguments: dict[str, object], total_steps: Callable[[], float]) -> dict[str, object]:
    """Number of steps, and a share of them as warm-up, filled in for a schedule of transformers."""
    parameters = inspect.signature(chosen.make).parameters
    if "num_training_steps" in parameters and "num_training_steps" not in arguments:
        total = total_steps()
        if total == float("inf"):
            raise TaskError(f"the lr_scheduler {chosen.name} must know how many steps there are: give max_epochs")
        arguments["num_training_steps"] = int(total)
    warmup = arguments.get("num_warmup_steps")
    if isinstance(warmup, float):
        if not 0 <= warmup <= 1:
            raise TaskError(f"num_warmup_steps={warmup}: a share of the steps is from 0 to 1; else give a whole number")
        steps = arguments.get("num_training_steps")
        arguments["num_warmup_steps"] = int(warmup * (steps if isinstance(steps, int) else total_steps()))
    return arguments


def _parameters(function: Make) -> Mapping[str, object]:
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):  # made in C
        return {}


def _call(chosen: _Chosen, first: object, arguments: Mapping[str, object], what: str) -> object:
    try:
        return chosen.make(first, **arguments)
    except (TypeError, ValueError) as error:
        raise TaskError(f"{what} {chosen.name} cannot be built with {dict(arguments)}: {error}") from error


def _chosen_optimizer(spec: object) -> _Chosen:
    return _chosen(spec, "optimizer", _optimizers(), longest=2)


def _chosen_scheduler(spec: object) -> _Chosen:
    first = spec[0] if isinstance(spec, tuple | list) and spec else spec
    named = first.lower() if isinstance(first, str) else None
    known = _schedulers()
    if named is not None and named not in known and named in _transformers_names():
        import transformers

        made: Make = getattr(transformers, f"get_{named}")
        parts = (named, *spec[1:]) if isinstance(spec, tuple | list) else named
        chosen = _chosen(parts, "lr_scheduler", {named: made}, longest=3)
        return _Chosen(made, named, chosen.arguments, chosen.configuration, transformers=True)
    return _chosen(spec, "lr_scheduler", known, longest=3)


def _chosen(spec: object, what: str, known: Mapping[str, Make], *, longest: int) -> _Chosen:
    parts: Sequence[object] = spec if isinstance(spec, tuple | list) else (spec,)
    first, *rest = parts if parts else (None,)
    if len(parts) > longest or not all(isinstance(part, Mapping) for part in rest):
        form = "(name, {arguments})" + ", or (name, {arguments}, {Lightning's configuration})" * (longest == 3)
        raise TaskError(f"{what} is {spec!r}: give a name, a function, or {form}")
    arguments, configuration = [*rest, {}, {}][:2]
    assert isinstance(arguments, Mapping)
    assert isinstance(configuration, Mapping)
    if unknown := [key for key in configuration if key not in _CONFIGURATION]:
        raise TaskError(
            f"{what}: Lightning's configuration has no {unknown[0]!r}{nearest(str(unknown[0]), _CONFIGURATION)}: it "
            f"has {', '.join(_CONFIGURATION)}"
        )
    if isinstance(first, str):
        if first.lower() not in known:
            raise TaskError(
                f"there is no {what} {first!r}{nearest(first.lower(), known)}. There are {', '.join(sorted(known))}"
            )
        return _Chosen(known[first.lower()], first, arguments, configuration)
    if not callable(first) or isinstance(first, Optimizer):
        raise TaskError(f"{what} is {spec!r}: give a name, or a function that makes one")
    return _Chosen(first, getattr(first, "__name__", repr(first)), arguments, configuration)


def _optimizers() -> dict[str, Make]:
    return {
        name.lower(): value
        for name, value in vars(torch.optim).items()
        if inspect.isclass(value) and issubclass(value, Optimizer) and value is not Optimizer
    }


def _schedulers() -> dict[str, Make]:
    kinds = (lr_scheduler.LRScheduler, lr_scheduler.ReduceLROnPlateau)
    return {
        name.lower(): value
        for name, value in vars(lr_scheduler).items()
        if inspect.isclass(value) and issubclass(value, kinds) and not name.startswith("_") and value is not kinds[0]
    }


def _transformers_names() -> list[str]:
    """The schedules of transformers, without `get_`; nothing is imported unless it is installed."""
    if find_spec("transformers") is None:
        return []
    from transformers import optimization

    return [name[4:] for name in vars(optimization) if name.startswith("get_") and "schedule" in name]
