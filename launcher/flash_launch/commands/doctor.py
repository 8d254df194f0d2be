"""The command `doctor`: check the machines of a run before it is started."""

import contextlib
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from types import FrameType

from flash_launch.console import usage
from flash_launch.doctor.options import HELP, read_doctor_options

__all__ = ["main"]


def main(argv: Sequence[str]) -> int:
    """Check, show the findings, and return 0 if none is a FAIL, else 1."""
    if any(argument in ("-h", "--help") for argument in argv):
        print(f"usage: {usage('doctor')}\n\n{HELP}")
        return 0
    options = read_doctor_options(argv)
    from flash_launch.doctor.examination import examine
    from flash_launch.doctor.report import exit_code, render_json, show

    began = time.monotonic()
    with _ending_what_was_started():
        findings = examine(options)
    seconds = time.monotonic() - began
    if options.json:
        print(render_json(findings, seconds), end="")
    else:
        show(findings, seconds, sys.stdout)
    return exit_code(findings)


@contextlib.contextmanager
def _ending_what_was_started() -> Iterator[None]:
    """SIGINT and SIGTERM end the programs that threads wait for, so that the threads end, too."""
    from flash_launch.doctor.asking import end_all

    def stop(number: int, frame: FrameType | None) -> None:
        end_all()
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
