"""The command `status`: how a run or a sweep is doing, once or again and again."""

import json
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from flash_launch.cluster.job_file import read_job_file
from flash_launch.command_arguments import Arguments, read_arguments, run_folder
from flash_launch.console import say, usage
from flash_launch.run_folder import RunFolder
from flash_launch.viewing.metrics_file import MetricsFile
from flash_launch.viewing.run_jobs import jobs_of, jobs_of_sweep
from flash_launch.viewing.run_state import JobLine, State, state_of
from flash_launch.viewing.run_view import read_run
from flash_launch.viewing.status_view import as_json, as_rich, as_text, status_lines
from flash_launch.viewing.sweep_view import is_sweep, sweep_table

__all__ = ["main"]

_HELP = """RUN is a run folder, or a folder of run folders: a sweep's, of which a table is shown.
  --watch             show it again every 2 seconds, until the run has ended (in a terminal)
  --json              for scripts: one JSON object
  --markdown          a sweep's table in Markdown"""

_FLAGS = {name: name for name in ("--watch", "--json", "--markdown")}
_SECONDS = 2.0
_ASK_SECONDS = 10.0
_SILENT_SECONDS = 30.0
_OVER = (State.FINISHED, State.FAILED, State.STOPPED, State.DIED)


def main(argv: Sequence[str]) -> int:
    """Show how a run is doing; 0 unless it is no run folder."""
    if not argv or any(argument in ("-h", "--help") for argument in argv):
        print(f"usage: {usage('status')}\n\n{_HELP}")
        return 0
    arguments = read_arguments("status", argv, {}, _FLAGS)
    if not (arguments.run / "config.yaml").exists() and is_sweep(arguments.run):
        return _sweep(arguments)
    return _run(arguments, run_folder("status", arguments.run))


def _run(arguments: Arguments, folder: RunFolder) -> int:
    metrics, slurm = MetricsFile(folder.metrics_jsonl), _Slurm()

    def show() -> tuple[object, bool]:
        now = time.time()
        view = read_run(folder, metrics)
        jobs = slurm(folder)
        state = state_of(view, now, jobs, shown=arguments.run)
        over = state.name in _OVER
        if "--json" in arguments.flags:
            return json.dumps(_finite(as_json(view, state, now, jobs or ())), indent=2), over
        lines = status_lines(view, state, now, jobs or ())
        if sys.stdout.isatty():
            return as_rich(view, state, arguments.run, lines, unicode=_unicode()), over
        return as_text(arguments.run, lines), over

    return _show(show, watch="--watch" in arguments.flags)


def _sweep(arguments: Arguments) -> int:
    slurm = _Slurm(arguments.run)

    def show() -> tuple[object, bool]:
        table = sweep_table(arguments.run, time.time(), slurm)
        over = all(row.state in _OVER for row in table.rows)
        if "--json" in arguments.flags:
            return json.dumps(_finite(table.as_json()), indent=2), over
        return table.as_markdown() if "--markdown" in arguments.flags else table.as_text(), over

    return _show(show, watch="--watch" in arguments.flags)


class _Slurm:
    """Asks Slurm of each run now and then only, and for a while not at all once it does not answer."""

    def __init__(self, sweep: Path | None = None) -> None:
        """Know nothing yet.

        Args:
            sweep: folder of the runs; of the tasks of its array, Slurm is asked all at once.
        """
        self._sweep = sweep
        self._tasks: Mapping[str, Sequence[JobLine]] | None = None
        self._known: dict[Path, tuple[float, Sequence[JobLine] | None]] = {}
        self._silent_until = self._tasks_until = 0.0

    def __call__(self, folder: RunFolder) -> Sequence[JobLine] | None:
        submitted = read_job_file(folder).jobs
        if not submitted:
            return ()
        if self._sweep is not None and time.monotonic() >= max(self._tasks_until, self._silent_until):
            self._tasks = jobs_of_sweep(self._sweep, self._silent)
            self._tasks_until = time.monotonic() + _ASK_SECONDS
        if self._tasks is not None and submitted[-1].job_id in self._tasks:
            return self._tasks[submitted[-1].job_id]
        if "_" in submitted[-1].job_id and self._sweep is not None:
            return () if self._tasks is not None else None
        asked, jobs = self._known.get(folder.path, (-math.inf, None))
        if time.monotonic() < max(asked + _ASK_SECONDS, self._silent_until):
            return jobs
        jobs = jobs_of(folder, self._silent)
        self._known[folder.path] = (time.monotonic(), jobs)
        return jobs

    def _silent(self, why: str) -> None:
        say(why, error=True)
        self._silent_until = time.monotonic() + _SILENT_SECONDS


def _show(show: Callable[[], tuple[object, bool]], *, watch: bool) -> int:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    shown, over = show()
    if not sys.stdout.isatty():
        print(shown)
        return 0
    console = Console(highlight=False)
    if not watch or over:
        console.print(shown, markup=False, soft_wrap=isinstance(shown, str))
        return 0
    with Live(Text(shown) if isinstance(shown, str) else shown, console=console, auto_refresh=False) as live:  # type: ignore[arg-type]
        while not over:
            time.sleep(_SECONDS)
            shown, over = show()
            live.update(Text(shown) if isinstance(shown, str) else shown, refresh=True)  # type: ignore[arg-type]
    return 0


def _unicode() -> bool:
    return (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"


def _finite(value: object) -> object:
    """The same without NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not -float("inf") < value < float("inf") else value
