"""Registry: functions by name, with the calls of Flash's; tasks keep user-defined backbones in one."""

import difflib
from collections.abc import Callable, Mapping
from typing import TypeVar, overload

from flash_launch.errors import TaskError

__all__ = ["Registry"]

F = TypeVar("F", bound=Callable[..., object])


class Registry:
    """Functions by name.

    Register as `registry(function, name="mine")` or with the decorator `@registry(name="mine")`; the name of the
    function is the default.

    Args:
        name: what is registered, for messages: "backbones".
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._functions: dict[str, Callable[..., object]] = {}
        self._metadata: dict[str, Mapping[str, object]] = {}

    @overload
    def __call__(self, fn: F, name: str | None = None, override: bool = False, **metadata: object) -> F: ...

    @overload
    def __call__(
        self, fn: None = None, name: str | None = None, override: bool = False, **metadata: object
    ) -> Callable[[F], F]: ...

    def __call__(
        self, fn: F | None = None, name: str | None = None, override: bool = False, **metadata: object
    ) -> F | Callable[[F], F]:
        """Register a function, or give the decorator that does.

        Args:
            fn: what to register.
            name: under which; None: its own.
            override: take the place of another of that name.
            metadata: kept beside it; see `get`.

        Raises:
            TaskError: what cannot be called, a name that is no string, or one that is taken.
        """
        given: object = name
        if given is not None and not isinstance(given, str):
            raise TaskError(f"a name in {self.name} is a string, not {given!r}")
        if fn is None:
            return lambda function: self(function, name, override, **metadata)
        if not callable(fn):
            raise TaskError(f"{fn!r} cannot be registered in {self.name}: give a function")
        key = name or fn.__name__
        if key in self._functions and not override:
            raise TaskError(f"{self.name} has {key!r} already: choose another name, or give override=True")
        self._functions[key], self._metadata[key] = fn, metadata
        return fn

    def get(self, key: str) -> Callable[..., object]:
        """The function of that name.

        Raises:
            TaskError: there is none; gives the nearest names.
        """
        if key not in self._functions:
            near = difflib.get_close_matches(key, self._functions, n=4, cutoff=0.4)
            known = ", ".join(near or self.available_keys()) or "nothing"
            raise TaskError(f"{self.name} has no {key!r}: it has {known}")
        return self._functions[key]

    def metadata(self, key: str) -> Mapping[str, object]:
        """What was given beside the function of that name."""
        self.get(key)
        return self._metadata[key]

    def remove(self, key: str) -> None:
        """Take a function out.

        Raises:
            TaskError: there is none of that name.
        """
        self.get(key)
        del self._functions[key], self._metadata[key]

    def available_keys(self) -> list[str]:
        """All names, sorted."""
        return sorted(self._functions)

    def __contains__(self, key: object) -> bool:
        return key in self._functions

    def __len__(self) -> int:
        return len(self._functions)
