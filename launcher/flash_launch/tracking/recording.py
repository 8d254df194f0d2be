"""Records a run at W&B in a thread beside the training, from what stands in the run folder; nothing waits for it."""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm.auto import tqdm

from flash_launch.run_folder import RunFolder, read_json
from flash_launch.tracking import session
from flash_launch.tracking.mode import Login, Mode, find_login, without_key
from flash_launch.tracking.probe import why_unreachable
from flash_launch.tracking.record import Mark, Progress, read_progress, recordings, wandb_folder, write_progress
from flash_launch.tracking.recorded_file import next_step
from flash_launch.tracking.rows import Follower, event_values, flat, metric_values
from flash_launch.tracking.session import SessionOptions

if TYPE_CHECKING:
    from wandb import Run

__all__ = ["FINISH_SECONDS", "Recording"]

FINISH_SECONDS = {"finished": 30.0, "stopped": 10.0, "failed": 2.0}
"""How long a rank waits at its end for W&B, by how it ended; what is not uploaded by then stays in the run folder."""
ARTIFACT_SECONDS = 600.0
"""The same where the weights were asked for as an artifact."""
_POLL_SECONDS = 1.0
_TIMES_BEGUN = 3
_MARGIN_SECONDS = 5.0
_PLACE = {"step", "epoch", "phase"}
_EXIT_CODES = {"finished": 0, "stopped": 75}


class Recording:
    """One attempt's recording. Made on rank 0 only."""

    def __init__(
        self,
        folder: RunFolder,
        options: SessionOptions,
        mode: Mode,
        *,
        step: int,
        artifact: bool,
        told: bool,
    ) -> None:
        """Begin, in the background.

        Args:
            folder: the run folder, whose metrics.jsonl and events.jsonl are recorded while they grow.
            options: who the run is.
            mode: online or offline; online becomes offline where W&B cannot be reached.
            step: optimizer step at which this attempt begins.
            artifact: record the weights at the end.
            told: offline was asked for, so say at the end what to do with it.
        """
        self._folder, self._options, self._mode = folder, options, mode
        self._step, self._artifact, self._told = step, artifact, told
        self._submitted: deque[tuple[int, Mapping[str, object]]] = deque()
        self._configs: deque[Mapping[str, object]] = deque()
        self._sent: dict[str, tuple[object, object]] = {}
        self._closing = threading.Event()
        self._ready = threading.Event()
        self._given_up = self._complained = False
        self._status = "failed"
        self._run: Run | None = None
        # Now, before training appends to what was trimmed to where it goes on from: the rest may take long to begin.
        self._progress = read_progress(folder).trimmed(folder)
        self._next = self._progress.step
        self._thread = threading.Thread(target=self._record, name="wandb", daemon=True)
        self._thread.start()

    @property
    def path(self) -> Path:
        """The run folder."""
        return self._folder.path

    def run(self, seconds: float) -> Run | None:
        """W&B's run, once it has begun; None: it has not within that time, or cannot."""
        self._ready.wait(seconds)
        return self._run

    def complain(self, error: Exception) -> None:
        """Say, once, that W&B did not take what a task gave it itself."""
        if not self._complained:
            self._complained = True
            self._say(f"warning: W&B did not take what the task logs to it: {self._words(error)}")

    def submit(self, values: Mapping[str, object], step: int) -> None:
        """Record more values at an optimizer step; returns at once."""
        self._submitted.append((step, values))

    def submit_config(self, values: Mapping[str, object]) -> None:
        """Add to the configuration that is shown; returns at once."""
        self._configs.append(values)

    def close(self, status: str) -> None:
        """Record how the attempt ended, and wait a bounded time.

        Args:
            status: finished, stopped or failed.
        """
        self._status = status
        seconds = ARTIFACT_SECONDS if self._artifact and status == "finished" else FINISH_SECONDS[status]
        self._closing.set()
        self._thread.join(seconds + _MARGIN_SECONDS * (status != "failed"))
        if self._thread.is_alive():
            self._given_up = True
            session.discard()
            self._thread.join(1)
            if status != "failed":
                self._say(f"W&B was not ready in {seconds:g} s; {self._how_to_sync()}")

    # ---- in the thread

    def _record(self) -> None:
        for again in range(_TIMES_BEGUN - 1, -1, -1):
            try:
                self._run = self._begin()
                self._ready.set()
                self._follow(self._run)
                return
            except Exception as error:
                # In a Slurm job, W&B's own process gets the SIGTERM that asks the ranks to save, and ends of it.
                session.discard()
                if again and self._run is not None and not self._given_up:
                    self._sent.clear()
                    continue
                self._run = None
                self._ready.set()
                if not self._given_up and (self._status != "failed" or not self._closing.is_set()):
                    self._say(f"warning: the run is not recorded at W&B any more, and goes on: {self._words(error)}")
                return

    def _begin(self) -> Run:
        session.prepare_environment(wandb_folder(self._folder), os.environ)
        login = find_login(os.environ)
        if self._mode == "online":
            why = self._why_not_online(login)
            if why is None:
                try:
                    run = session.begin(self._options, "online")
                    if self._run is None:
                        self._say(f"W&B: {run.url}")
                    return run
                except Exception as error:
                    why = self._words(error)
                    session.discard()  # its process may go on trying, and a second run would wait for it
            self._mode, self._told = "offline", False
            self._say(f"W&B: {why}: recorded offline; {self._how_to_sync()}")
        return session.begin(self._options, "offline")

    def _why_not_online(self, login: Login) -> str | None:
        if login.source is None:
            return f"no login for {login.host} here"
        why = why_unreachable(login.server, give_up=self._closing.wait)
        return f"{login.host} cannot be reached ({why})" if why is not None else None

    def _follow(self, run: Run) -> None:
        self._progress = self._progress.held_by(self._steps_held(run))
        metrics = Follower(self._folder.metrics_jsonl, self._progress.metrics)
        events = Follower(self._folder.events_jsonl, self._progress.events)
        self._next = max(self._next, run.step)
        self._note(self._progress)
        if self._mode == "online":  # of attempts that were cut off: what the server lacks of them is told again
            for file in self._earlier(run):
                if not file.parent.name.startswith("offline-"):
                    file.with_name(f"{file.name}.synced").touch()
        while True:
            closing = self._closing.wait(_POLL_SECONDS)
            while self._configs:
                session.add_config(run, self._configs.popleft())
            rows: list[tuple[int, Mapping[str, object]]] = []
            while self._submitted:
                rows.append(self._submitted.popleft())
            rows += [self._placed(event_values(row)) for row in events.rows()]
            rows += [self._placed(metric_values(row)) for row in metrics.rows()]
            if rows:  # before they are recorded: who is killed in between has taken these numbers
                self._note(replace(self._progress, step=self._next + len(rows)))
            for step, values in sorted(rows, key=lambda row: row[0]):
                self._log(run, {**values, "step": step})
            if rows:
                self._progress = self._progress.marked(Mark(self._next, metrics.lines, events.lines))
            if closing:
                break
        self._finish(run)
        self._note(Progress(metrics.lines, events.lines, self._next))

    def _steps_held(self, run: Run) -> int:
        """How many of W&B's steps are safe: at the server, or in the file of the attempt before."""
        if self._mode == "online":
            return run.step
        earlier = self._earlier(run)
        return max(run.step, next_step(earlier[-1])) if earlier else run.step

    def _placed(self, values: Mapping[str, object]) -> tuple[int, Mapping[str, object]]:
        step = values.get("step")
        return step if isinstance(step, int) else self._step, values

    def _log(self, run: Run, values: Mapping[str, object]) -> None:
        """Record values at their step; what both Lightning and the run folder tell of, only once."""
        fresh = {
            name: value
            for name, value in values.items()
            if value is not None and (name in _PLACE or not self._told_before(name, values["step"], value))
        }
        if fresh.keys() <= _PLACE:
            return
        at = max(self._next, run.step)
        run.log(fresh, step=at)
        self._next = at + 1

    def _told_before(self, name: str, step: object, value: object) -> bool:
        if not isinstance(value, (int, float, str)):  # pictures and tensors are told once, and have no plain ==
            return False
        before = self._sent.get(name) == (step, value)
        self._sent[name] = (step, value)
        return before

    def _finish(self, run: Run) -> None:
        summary: object = {}
        with contextlib.suppress(OSError, ValueError):
            summary = read_json(self._folder.summary_json)
        known = summary if isinstance(summary, dict) else {}
        for name, value in known.items():
            if name in ("metrics", "phases"):
                continue  # W&B has the newest metrics by itself
            run.summary.update(flat(name, value))
        for phase in known.get("phases", ()):
            run.summary.update(flat(f"phases/{phase.get('name')}", phase))
        run.summary.update({"status": self._status})
        if self._artifact and self._status == "finished":
            try:
                session.add_weights(run, self._folder.weights, int(known.get("steps", 0)))
            except Exception as error:
                self._say(f"warning: the weights are not recorded at W&B: {self._words(error)}")
        if self._status == "stopped" and self._mode == "online":
            run.mark_preempting()
        done = session.finish(run, _EXIT_CODES.get(self._status, 1))
        if not done:
            self._say(f"W&B has not taken everything in time; {self._how_to_sync()}")
        elif self._mode == "online":
            for file in self._files():  # as `wandb sync` marks what it has uploaded
                file.with_name(f"{file.name}.synced").touch()
        elif self._told and self._status == "finished":
            self._say(f"W&B: recorded offline; {self._how_to_sync()}")

    # ---- words and files

    def _note(self, progress: Progress) -> None:
        write_progress(self._folder, progress)

    def _earlier(self, run: Run) -> list[Path]:
        """The recordings before this one."""
        own = Path(run.dir).parent.name
        return [file for file in recordings(self._folder) if file.parent.name != own]

    def _files(self) -> list[Path]:
        newest = wandb_folder(self._folder) / "latest-run"
        return sorted(newest.glob("*.wandb"))

    def _how_to_sync(self) -> str:
        path = os.path.relpath(self._folder.path)
        return f"upload it with: flash-launch sync {path if not path.startswith('..') else self._folder.path}"

    def _words(self, error: BaseException) -> str:
        text = " ".join(str(error).split()) or type(error).__name__
        return without_key(text, os.environ)[:500]

    def _say(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # the console may be gone
            tqdm.write(text)
