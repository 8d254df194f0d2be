"""The command `report`: one page and one picture of a run, to look at and to show."""

import os
from collections.abc import Sequence
from pathlib import Path

from flash_launch.command_arguments import read_arguments, run_folder
from flash_launch.console import say, usage
from flash_launch.errors import ConfigError
from flash_launch.viewing.run_jobs import jobs_of

__all__ = ["main"]

_HELP = """RUN is a run folder; the run may be going on. What is written:
  --to FILE.html      one page that needs nothing else, no network either; default: RUN/report.html
  --png FILE.png      a picture of the curves; default: RUN/report.png"""

_VALUES = {
    "--to": "a file, for example --to report.html",
    "--png": "a file, for example --png report.png",
}


def main(argv: Sequence[str]) -> int:
    """Write the report of a run."""
    if not argv or any(argument in ("-h", "--help") for argument in argv):
        print(f"usage: {usage('report')}\n\n{_HELP}")
        return 0
    arguments = read_arguments("report", argv, _VALUES, {})
    folder = run_folder("report", arguments.run)
    page = _target(arguments.values.get("--to"), arguments.run / "report.html", "--to")
    picture = _target(arguments.values.get("--png"), arguments.run / "report.png", "--png")
    from flash_launch.report.making import read_report, write_page, write_picture

    report = read_report(folder, jobs_of(folder), arguments.run)
    try:
        write_page(report, page)
        write_picture(report, picture)
    except OSError as error:
        raise ConfigError(f"the report cannot be written, {error.filename}: {error.strerror}") from error
    say(f"wrote {page} ({page.stat().st_size / 1000:,.0f} kB) and {picture}")
    return 0


def _target(given: str | None, default: Path, option: str) -> Path:
    target = Path(given) if given is not None else default
    if target.suffix.lower() != default.suffix:
        raise ConfigError(f"{option} was given {target}: it must end with {default.suffix}")
    if target.is_dir():
        raise ConfigError(f"{option} was given {target}, which is a folder: give a file")
    above = target.absolute().parent
    if not above.is_dir():
        raise ConfigError(f"{option} was given {target}, but there is no folder {above}: make it, or give another file")
    if not os.access(above, os.W_OK | os.X_OK):
        raise ConfigError(f"{target} cannot be written, {above} is read-only: give another file with {option}")
    return target
