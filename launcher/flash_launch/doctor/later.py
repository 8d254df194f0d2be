"""Facts that may take long, gathered beside each other, each with a time limit: a dead file server holds nobody."""

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from flash_launch.doctor.findings import Finding, fail

__all__ = ["Later", "checked"]

T = TypeVar("T")


class Later(Generic[T]):
    """What a function gives, once it does; it runs in a thread that does not keep the process from ending."""

    def __init__(self, gather: Callable[[], T], seconds: float, what: str) -> None:
        """Begin.

        Args:
            gather: the function.
            seconds: how long it may take, from now.
            what: what is waited for, in words.
        """
        self._end, self._seconds, self._what = time.monotonic() + seconds, seconds, what
        self._found: list[T] = []
        self._error: list[Exception] = []
        self._done = threading.Event()
        threading.Thread(target=self._run, args=(gather,), daemon=True).start()

    def result(self) -> T:
        """What it gave.

        Raises:
            TimeoutError: it did not in time. Exception: whatever it raised.
        """
        if not self._done.wait(max(0.0, self._end - time.monotonic())):
            raise TimeoutError(f"{self._what} did not answer within {self._seconds:g} s")
        if self._error:
            raise self._error[0]
        return self._found[0]

    def result_or(self, default: T) -> T:
        """What it gave, or something else if it gave nothing."""
        try:
            return self.result()
        except Exception:
            return default

    def _run(self, gather: Callable[[], T]) -> None:
        try:
            self._found.append(gather())
        except Exception as error:
            self._error.append(error)
        self._done.set()


def checked(group: str, check: Callable[[], list[Finding]]) -> list[Finding]:
    """The findings of a check; that it took too long, or is wrong itself, is a finding, too, and not the end of all."""
    try:
        return check()
    except TimeoutError as error:
        fix = "see whether that file system or service hangs (ls, df, mount); nothing that needs it would go on"
        return [fail(group, str(error), fix)]
    except Exception as error:
        text = f"this could not be checked: {type(error).__name__}: {error}"
        return [fail(group, text, "if nothing here explains it, tell the authors of flash-launch")]
