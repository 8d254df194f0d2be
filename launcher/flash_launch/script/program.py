"""Looks at a script or module before any rank starts: whether it is there, and whether Python can compile it."""

import contextlib
import sys
import warnings
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path

from flash_launch.errors import ConfigError
from flash_launch.script.config import ScriptConfig

__all__ = ["check_program"]


def check_program(config: ScriptConfig) -> None:
    """Check that Python would begin to run it. Nothing of it is run, and nothing imported.

    Raises:
        ConfigError: no such file or module, or a syntax error in it.
    """
    if not Path(config.directory).is_dir():
        raise ConfigError(f"the script was started in {config.directory}, and there is no such folder any more")
    if config.module:
        _check_module(config.module, config.directory)
        return
    path = Path(config.directory) / config.script
    if path.is_dir():
        raise ConfigError(f"{config.script} is a folder: give a Python file, or -m and a module")
    if not path.exists():
        hint = f"; options begin with -- and come before the script, {config.script!r} was taken for it"
        raise ConfigError(f"there is no script {config.script} in {config.directory}{hint}")
    _compile(path, config.script)


def _check_module(name: str, directory: str) -> None:
    parts = name.split(".")
    if not all(part.isidentifier() for part in parts):
        raise ConfigError(f"-m was given {name}, which is no name of a module: give one such as package.module")
    spec = _find(name, directory)
    if spec is not None and spec.submodule_search_locations is not None:
        if (inner := _find(f"{name}.__main__", directory)) is None:
            raise ConfigError(f"-m was given {name}, a package without __main__: give one of its modules")
        spec = inner
    if spec is None:
        raise ConfigError(f"-m was given {name}, and there is no such module in {directory} or where Python looks")
    if spec.origin and spec.origin.endswith(".py"):
        _compile(Path(spec.origin), name)


def _find(name: str, directory: str) -> ModuleSpec | None:
    """Where a module is, without importing the packages it is in, as importlib.util.find_spec would."""
    with _first_on_path(directory):
        found: ModuleSpec | None = None
        where = None
        parts = name.split(".")
        for end in range(1, len(parts) + 1):
            full = ".".join(parts[:end])
            specs = (finder.find_spec(full, where) for finder in sys.meta_path)
            found = next((spec for spec in specs if spec is not None), None)
            if found is None:
                return None
            where = found.submodule_search_locations
            if where is None and end < len(parts):
                return None
        return found


@contextlib.contextmanager
def _first_on_path(directory: str) -> Iterator[None]:
    sys.path.insert(0, directory)
    try:
        yield
    finally:
        sys.path.remove(directory)


def _compile(path: Path, shown: str) -> None:
    try:
        source = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{shown} cannot be read: {error.strerror}") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the ranks say it
            compile(source, str(path), "exec", dont_inherit=True)
    except SyntaxError as error:
        at = f" in line {error.lineno}" if error.lineno else ""
        line = f": {error.text.strip()}" if error.text else ""
        raise ConfigError(f"{shown} has a syntax error{at}, {error.msg}{line}") from error
    except ValueError as error:
        raise ConfigError(f"{shown} is no Python: {error}") from error
