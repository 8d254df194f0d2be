"""A run folder read into plain data, for those who look at it: a pure reading, of whatever is there by now."""

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from flash_launch.checkpoint.attempts import Attempt, read_attempts
from flash_launch.checkpoint.manifest import read as read_manifest
from flash_launch.checkpoint.store import Store
from flash_launch.errors import CheckpointError
from flash_launch.run_folder import RunFolder, read_jsonl
from flash_launch.script.config import describes_script
from flash_launch.viewing.json_fields import flag, integer, items, number, read_mapping, text
from flash_launch.viewing.metrics_file import MetricsFile, Progress

__all__ = ["AttemptView", "CheckpointView", "Event", "PhaseView", "RunView", "read_run"]


@dataclass(frozen=True)
class PhaseView:
    """A phase: as planned, as it began, and as it was measured; None for what is not known (yet)."""

    name: str
    """Its name."""
    first_epoch: int
    """The epoch in which it begins."""
    trainable: int
    """Trainable elements."""
    frozen: int
    """Frozen elements."""
    layers: int | None = None
    """Layers of the backbone that train."""
    first_step: int | None = None
    """Optimizer steps done when it began; None: it did not begin yet."""
    measured: Mapping[str, object] | None = None
    """Its entry in summary.json: step_seconds, peak_bytes, bytes_sent_per_step, state_bytes."""


@dataclass(frozen=True)
class AttemptView:
    """One start of the run, and how it ended."""

    attempt: Attempt
    """What its file says."""
    exit_code: int | None = None
    """The launcher's exit code; None: it runs, or nobody could tell."""
    ended: float | None = None
    """When, in seconds since 1970."""
    verdict: str | None = None
    """Who failed first, and why."""
    hosts: tuple[str, ...] = ()
    """Hosts of its nodes, where it says so."""
    job_id: str | None = None
    """Slurm's job."""
    restarts: int | None = None
    """How often Slurm had requeued the job by then."""


@dataclass(frozen=True)
class CheckpointView:
    """A checkpoint that is there."""

    name: str
    """The folder's name."""
    step: int
    """Optimizer steps done in it."""
    epoch: int | None
    """The epoch; None: its manifest cannot be read."""
    time: float | None
    """When it was saved."""


@dataclass(frozen=True)
class Event:
    """A line of events.jsonl."""

    kind: str
    """launch, start, transition, checkpoint, checkpoint_failed, resume, stop, ..."""
    time: float
    """When."""
    step: int | None
    """Optimizer steps done."""
    facts: Mapping[str, object]
    """The whole line."""


@dataclass(frozen=True)
class RunView:
    """All that is looked at of a run folder."""

    path: Path
    """The folder."""
    config: Mapping[str, object]
    """The options, by name."""
    plan: Mapping[str, object]
    """plan.json: strategy, setup, world_size, task, data, phases."""
    phases: tuple[PhaseView, ...]
    """In their order. Of a callback of the user's own, those that have begun."""
    phases_known: bool
    """Whether the phases to come are known."""
    progress: Progress
    """How far it is."""
    events: tuple[Event, ...]
    """All events, also of steps that were done again."""
    lineage: tuple[Event, ...]
    """Only those that count: not what an attempt did beyond where the next one went on from."""
    attempts: tuple[AttemptView, ...]
    """In their order."""
    checkpoints: tuple[CheckpointView, ...]
    """The newest first."""
    summary: Mapping[str, object]
    """summary.json."""
    wandb: Mapping[str, object]
    """Who it is at W&B: id, project, entity; empty where it is not recorded there."""
    jobs: tuple[str, ...]
    """Ids of the Slurm jobs that were submitted for it."""
    now_at: Mapping[str, object]
    """What rank 0 of the newest attempt last told of itself: epoch, step, where, time."""
    last_sign: float | None
    """When anything of the newest attempt was last written."""

    @property
    def is_script(self) -> bool:
        """Whether a script of the user's runs, and not flash-launch's own training."""
        return describes_script(self.config)

    @property
    def max_epochs(self) -> int | None:
        """How many epochs it has."""
        return integer(self.config, "max_epochs")

    @property
    def world_size(self) -> int | None:
        """Ranks of the newest attempt."""
        return integer(self.plan, "world_size")

    @property
    def verdict(self) -> str | None:
        """The newest attempt's."""
        newest = self.attempts[-1].verdict if self.attempts else None
        return newest or (text(self.summary, "verdict") if self.attempts and self.attempts[-1].exit_code else None)


def read_run(folder: RunFolder, metrics: MetricsFile | None = None) -> RunView:
    """Read a run folder; what is missing, or is just being written, is left empty.

    Args:
        folder: the run folder.
        metrics: reads on where it was, for those who look again and again.
    """
    config, plan = _yaml(folder.config_yaml), read_mapping(folder.plan_json)
    summary = read_mapping(folder.summary_json)
    attempts = tuple(_attempt(folder, one) for one in read_attempts(folder.attempts))
    events = tuple(_events(folder.events_jsonl))
    lineage = tuple(_lineage(events, [one.attempt for one in attempts]))
    progress = (metrics or MetricsFile(folder.metrics_jsonl)).progress()
    newest = attempts[-1].attempt if attempts else None
    return RunView(
        folder.path,
        config,
        plan,
        _phases(plan, summary, lineage, progress),
        flag(plan, "phases_known", True),
        progress,
        events,
        lineage,
        attempts,
        tuple(_saved_by_script(folder) if describes_script(config) else _checkpoints(folder)),
        summary,
        read_mapping(folder.path / "wandb" / "run.json"),
        tuple(job for row in items(read_mapping(folder.path / "slurm.json"), "jobs") if (job := text(row, "job_id"))),
        read_mapping(folder.ends_of(newest.number) / "node0_rank0.progress") if newest is not None else {},
        _last_sign(folder, newest),
    )


def _yaml(path: Path) -> Mapping[str, object]:
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return value if isinstance(value, dict) else {}


def _attempt(folder: RunFolder, attempt: Attempt) -> AttemptView:
    own = folder.ends_of(attempt.number)
    end, slurm = read_mapping(own / "end.json"), read_mapping(own / "slurm.json")
    nodes = [read_mapping(path) for path in sorted(own.glob("node*.json"))]
    listed = slurm.get("nodes")
    hosts = [host for node in nodes if (host := text(node, "host"))]
    if not hosts and isinstance(listed, list):
        hosts = [str(one) for one in listed]
    return AttemptView(
        attempt,
        integer(end, "exit_code"),
        number(end, "time"),
        text(end, "verdict"),
        tuple(hosts),
        text(slurm, "job_id"),
        integer(slurm, "restart_count"),
    )


def _events(path: Path) -> Iterator[Event]:
    for row in read_jsonl(path):
        kind, time = (text(row, "event"), number(row, "time")) if isinstance(row, dict) else (None, None)
        if kind is not None and time is not None:
            yield Event(kind, time, integer(row, "step"), row)


def _lineage(events: Sequence[Event], attempts: Sequence[Attempt]) -> list[Event]:
    """Events of steps that no later attempt did again, each transition once."""
    kept: dict[object, Event] = {}
    for index, event in enumerate(events):
        if event.step is not None and any(
            one.began > event.time and one.resumed_step < event.step for one in attempts[1:]
        ):
            continue
        # a checkpoint taken at an epoch's start is before its transition, which a resume makes again
        once = event.kind in ("start", "transition")
        kept[(event.kind, event.facts.get("phase"), event.step) if once else index] = event
    return list(kept.values())


def _phases(
    plan: Mapping[str, object], summary: Mapping[str, object], lineage: Sequence[Event], progress: Progress
) -> tuple[PhaseView, ...]:
    began = [event for event in lineage if event.kind in ("start", "transition")]
    measured = items(summary, "phases")
    planned = items(plan, "phases")
    total = sum(integer(planned[0], key) or 0 for key in ("trainable", "frozen")) if planned else 0
    found: list[PhaseView] = []
    for event in began:
        trainable = integer(event.facts, "trainable_after") or 0
        first_epoch = integer(event.facts, "epoch") or 0
        found.append(
            PhaseView(text(event.facts, "phase") or "?", first_epoch, trainable, total - trainable, None, event.step)
        )
    known = {(phase.name, phase.first_epoch): phase for phase in found}
    if flag(plan, "phases_known", True):
        found = []
        for row in planned:
            name, first_epoch = text(row, "name") or "?", integer(row, "first_epoch") or 0
            at = known.get((name, first_epoch))
            layers = row.get("layers")
            found.append(
                PhaseView(
                    name,
                    first_epoch,
                    integer(row, "trainable") or 0,
                    integer(row, "frozen") or 0,
                    len(layers) if isinstance(layers, list) else None,
                    at.first_step if at is not None else 0 if first_epoch == 0 and progress.newest else None,
                )
            )
    by_name = {(text(row, "name"), integer(row, "first_epoch")): row for row in measured}
    return tuple(
        PhaseView(
            phase.name,
            phase.first_epoch,
            phase.trainable,
            phase.frozen,
            phase.layers,
            phase.first_step,
            by_name.get((phase.name, phase.first_epoch)),
        )
        for phase in found
    )


def _checkpoints(folder: RunFolder) -> Iterator[CheckpointView]:
    store = Store(folder.checkpoints)
    for name in store.names():
        try:
            manifest = read_manifest(store.path(name))
        except (CheckpointError, OSError):  # it may just be deleted
            if store.path(name).exists():
                yield CheckpointView(name, int(name.removeprefix("step_")), None, None)
        else:
            yield CheckpointView(name, manifest.position.step, manifest.position.epoch, manifest.time)


def _saved_by_script(folder: RunFolder) -> Iterator[CheckpointView]:
    """What a script has in checkpoints/, whatever that is, the newest first."""
    with contextlib.suppress(OSError):  # some of it may just be deleted
        paths = [path for path in folder.checkpoints.iterdir() if not path.name.startswith(".")]
        times = {path.name: path.stat().st_mtime for path in paths}
        yield from (CheckpointView(name, 0, None, times[name]) for name in sorted(times, key=lambda n: -times[n]))


def _last_sign(folder: RunFolder, newest: Attempt | None) -> float | None:
    if newest is None:
        return None
    own = folder.ends_of(newest.number)
    places = (folder.metrics_jsonl, folder.events_jsonl, folder.summary_json, *own.glob("*"), *folder.logs.glob("*"))
    times = [newest.began]
    for path in places:
        try:
            times.append(os.stat(path).st_mtime)
        except OSError:
            continue
    return max(times)
