"""The command `run`: finetune, as the options say; or go on, with --resume auto."""

from collections.abc import Sequence

from flash_launch import __version__
from flash_launch.launching import launch, read_options

__all__ = ["main"]


def main(argv: Sequence[str]) -> int:
    """Prepare, make the run folder, start the ranks, and tell how it ended."""
    if "--version" in argv:
        print(__version__)
        return 0
    return launch(*read_options(argv))
