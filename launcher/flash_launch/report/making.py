"""Makes the report of a run: reads its folder, and writes the page and the picture."""

import os
import time
from collections.abc import Sequence
from pathlib import Path

from flash_launch.report.contents import Report, make_report
from flash_launch.report.curves import gather
from flash_launch.report.page import render_page
from flash_launch.run_folder import RunFolder, write_text
from flash_launch.viewing.metrics_file import MetricsFile, read_steps
from flash_launch.viewing.run_state import JobLine, state_of
from flash_launch.viewing.run_view import read_run

__all__ = ["read_report", "write_page", "write_picture"]


def read_report(folder: RunFolder, jobs: Sequence[JobLine] | None = None, shown: Path | None = None) -> Report:
    """The report of a run as it is now.

    Args:
        folder: the run folder.
        jobs: what Slurm says of its jobs.
        shown: the folder as the user wrote it.
    """
    now = time.time()
    view = read_run(folder, MetricsFile(folder.metrics_jsonl))
    curves = gather(read_steps(folder.metrics_jsonl), view.progress.epochs)
    return make_report(view, curves, state_of(view, now, jobs, shown=shown), now)


def write_page(report: Report, target: Path) -> None:
    """Write the page; a reader meets the old one or the new one.

    Raises:
        OSError: it cannot be written.
    """
    write_text(target, render_page(report))


def write_picture(report: Report, target: Path) -> None:
    """Write the picture, in the same way. Imports matplotlib.

    Raises:
        OSError: it cannot be written.
    """
    from flash_launch.report.picture import render_picture

    picture = render_picture(report)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(picture)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
