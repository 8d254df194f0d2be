"""Classes of the user's own, named as module:Class and found from the folder the command is run in."""

import contextlib
import difflib
import importlib
import importlib.util
import inspect
import os
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import TypeVar

import flash_launch
import flash_strategies.lightning  # before a user's code: from then on Lightning's two names are one
from flash_launch.errors import FlashLaunchError, TaskError

__all__ = ["build_own", "load_class", "load_named", "users_code", "users_fault"]

T = TypeVar("T")


def load_class(spec: str, kind: type[T]) -> type[T]:
    """The class that "module:Class" names, with the current folder first on the path.

    Args:
        spec: for example "my_task:MyTask" or "package.module:MyTask".
        kind: what it must be a subclass of, LightningModule or LightningDataModule.

    Raises:
        TaskError: no colon, no such module, an error while it is imported (told with its line), no such class, or a
            class of another kind.
    """
    found, module = load_named(
        spec, lambda value: inspect.isclass(value) and issubclass(value, kind) and value is not kind, kind.__name__
    )
    if not inspect.isclass(found) or not issubclass(found, kind):
        raise TaskError(f"{spec} in {_file(module)} is not a {kind.__name__}")
    return found


def load_named(spec: str, fits: Callable[[object], bool], wanted: str) -> tuple[object, ModuleType]:
    """What "module:Name" names, whatever it is, and its module; the current folder is first on the path.

    Args:
        spec: for example "my_task:MyTask".
        fits: whether something else in the module may have been meant, for the answer where there is no such name.
        wanted: what that is in words.

    Raises:
        TaskError: no colon, no such module, an error while it is imported (told with its line), or no such name.
    """
    module_name, colon, name = spec.partition(":")
    if not colon or not module_name or not name:
        raise TaskError(f"{spec!r} does not name a class: write module:Class, for example my_task:MyTask")
    module = _import(spec, module_name)
    found: object = getattr(module, name, None)
    if found is None:
        possible = [key for key, value in vars(module).items() if fits(value)]
        near = difflib.get_close_matches(name, possible, n=1, cutoff=0.0)
        hint = f", the nearest is {module_name}:{near[0]}" if near else f": it has no {wanted}"
        raise TaskError(f"{_file(module)} has no class {name!r}{hint}")
    return found, module


@contextlib.contextmanager
def users_code(what: str) -> Iterator[None]:
    """Around a call of the user's code: what goes wrong in it is the user's to mend, and told with its line.

    Raises:
        TaskError: an error from inside; `what` begins the message.
    """
    try:
        yield
    except FlashLaunchError:
        raise
    except (Exception, SystemExit) as error:
        raise TaskError(f"{what}: {_told(error)}") from error


def users_fault(error: BaseException) -> str | None:
    """An error that came from, or through, a file of the user's own, with its line; None where none took part."""
    frames = traceback.extract_tb(error.__traceback__)
    installed = (*(sysconfig.get_paths()[kind] for kind in ("stdlib", "purelib", "platlib")), "<")
    ours = tuple(str(Path(str(package.__file__)).parent) for package in (flash_launch, flash_strategies))
    if isinstance(error, SyntaxError) or any(not frame.filename.startswith((*installed, *ours)) for frame in frames):
        return _told(error)
    return None


def build_own(own: type[T], args: Mapping[str, object], option: str = "--task-args") -> T:
    """Build the user's class with these arguments, which `option` gave.

    Raises:
        TaskError: arguments that are missing or unknown, or an error in its constructor (told with its line).
    """
    parameters = inspect.signature(own).parameters
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    named = {
        name: parameter
        for name, parameter in parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }
    unknown = [name for name in args if name not in named and not takes_all]
    if unknown:
        raise TaskError(
            f"{own.__name__} takes no argument {', '.join(map(repr, unknown))} ({option}.{unknown[0]}): it takes "
            f"{', '.join(named) or 'none'}"
        )
    missing = [name for name, parameter in named.items() if parameter.default is parameter.empty and name not in args]
    if missing:
        raise TaskError(
            f"{own.__name__} needs the argument {', '.join(map(repr, missing))}: give it with "
            f"{option}.{missing[0]} or in the YAML file, or give it a default"
        )
    with users_code(f"{own.__name__} cannot be built"):
        return own(**{name: _instantiated(value) for name, value in args.items()})


def _instantiated(value: object) -> object:
    """An argument, with an object in place of each class_path with init_args, as LightningCLI has it."""
    if isinstance(value, list):
        return [_instantiated(one) for one in value]
    if not isinstance(value, Mapping):
        return value
    path = value.get("class_path")
    if not isinstance(path, str) or set(value) - {"class_path", "init_args"}:
        return {name: _instantiated(one) for name, one in value.items()}
    module, _, name = path.replace(":", ".").rpartition(".")
    found, _ = load_named(f"{module}:{name}", inspect.isclass, "class")
    arguments = {name: _instantiated(one) for name, one in (value.get("init_args") or {}).items()}
    assert callable(found)
    return found(**arguments)


def _import(spec: str, module_name: str) -> ModuleType:
    folder = os.getcwd()
    if folder not in sys.path:
        sys.path.insert(0, folder)
    importlib.invalidate_caches()
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # Only where the module itself, or a package it is in, is missing; else it is an import inside the user's file.
        if error.name is not None and f"{module_name}.".startswith(f"{error.name}."):
            here = [name.removesuffix(".py") for name in os.listdir(folder) if name.endswith(".py")]
            near = difflib.get_close_matches(module_name, here, n=1, cutoff=0.4)
            hint = f", the nearest is {near[0]}:{spec.partition(':')[2]}" if near else ""
            raise TaskError(
                f"{spec}: no module {module_name!r} in {folder} or among the installed packages{hint}"
            ) from error
        raise TaskError(f"{spec} cannot be imported: {_told(error)}") from error
    except (Exception, SystemExit) as error:
        raise TaskError(f"{spec} cannot be imported: {_told(error)}") from error


def _told(error: BaseException) -> str:
    """An error and the line of the user's code that it came from, outside installed packages where possible."""
    text = f"{type(error).__name__}: {error}".rstrip(": ")
    if isinstance(error, SyntaxError):  # its message names file and line
        return text
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename not in (__file__, contextlib.__file__) and not frame.filename.startswith("<frozen")
    ]
    installed = tuple(sysconfig.get_paths()[kind] for kind in ("stdlib", "purelib", "platlib"))
    own = [frame for frame in frames if not frame.filename.startswith(installed)]
    chosen = (own or frames)[-1:]
    return text + "".join(f" ({frame.filename}, line {frame.lineno}: {frame.line})" for frame in chosen)


def _file(module: ModuleType) -> str:
    return getattr(module, "__file__", None) or module.__name__
