"""Shows rank 0 on the console while it runs: what is added to its log, up to where it failed."""

import contextlib
from pathlib import Path
from typing import BinaryIO

from flash_launch.rank_guard import TRACEBACK_MARK

__all__ = ["Echo"]


class Echo:
    """Copies what is added to a log to the console, byte by byte, so that progress bars look as they were written."""

    def __init__(self, log: Path, console: BinaryIO) -> None:
        self._log, self._console = log, console
        self._position = log.stat().st_size if log.exists() else 0
        self._held = b""
        self._open = True
        self._last = b"\n"

    def pump(self, *, last: bool = False) -> None:
        """Show what is new."""
        with contextlib.suppress(FileNotFoundError), self._log.open("rb") as file:
            file.seek(self._position)
            new = file.read()
            self._position += len(new)
            text, mark, _ = (self._held + new).partition(b"\n" + TRACEBACK_MARK.encode())
            # A mark that is only half written yet is held back.
            cut = len(text) if mark or last else len(text) - _overlap(text, b"\n" + TRACEBACK_MARK.encode())
            self._held = b"" if mark else text[cut:]
            self._write(text[:cut])
            self._open = self._open and not mark

    def finish(self) -> None:
        """Show the rest, and end the line."""
        self.pump(last=True)
        self._open = True
        if self._last != b"\n":
            self._write(b"\n")

    def _write(self, data: bytes) -> None:
        if data and self._open:
            self._last = data[-1:]
            try:
                self._console.write(data)
                self._console.flush()
            except (OSError, ValueError):  # nobody reads any more: the run goes on, the log has it
                self._open = False


def _overlap(text: bytes, mark: bytes) -> int:
    """How many bytes at the end of the text are the beginning of the mark."""
    return next(
        (length for length in range(min(len(text), len(mark) - 1), 0, -1) if mark.startswith(text[-length:])), 0
    )
