"""What RUN/wandb says of a run's recording: who the run is at W&B, and how far it was recorded."""

import contextlib
import json
import secrets
import string
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from flash_launch.options import WandbOptions
from flash_launch.run_folder import RunFolder, read_json, write_json

__all__ = [
    "ARRAY",
    "Identity",
    "Mark",
    "Progress",
    "identify",
    "read_identity",
    "read_progress",
    "recordings",
    "wandb_folder",
    "write_progress",
]

ARRAY = "FLASH_LAUNCH_ARRAY"
"""Environment variable: the name of the sweep that a run belongs to."""
_HEADER_BYTES = 7
"""Bytes of a recording into which nothing was recorded."""
_MOST_MARKS = 120
"""One a second; wandb writes to its file every two."""
_PROJECT = "flash-launch"
_ALPHABET = string.ascii_lowercase + string.digits


@dataclass(frozen=True)
class Identity:
    """Who a run is at W&B, the same over all its restarts."""

    id: str
    """The run's id."""
    project: str
    """Its project."""
    entity: str | None
    """The user or team it belongs to; None: the key's own."""


@dataclass(frozen=True)
class Mark:
    """A place in a recording."""

    step: int
    """W&B's own next step number there."""
    metrics: int
    """Lines of metrics.jsonl that were handed to W&B by then."""
    events: int
    """Lines of events.jsonl."""


@dataclass(frozen=True)
class Progress:
    """How far a run was recorded."""

    metrics: int = 0
    """Lines of metrics.jsonl that are recorded for certain."""
    events: int = 0
    """Lines of events.jsonl."""
    step: int = 0
    """The next of W&B's own step numbers, which must not begin again."""
    marks: tuple[Mark, ...] = ()
    """The last places of a recording that goes on: how much of it W&B holds is known only once it has ended."""

    def trimmed(self, folder: RunFolder) -> "Progress":
        """The same for a run that went back: its files may have fewer lines by now."""
        metrics, events = (_count_lines(file) for file in (folder.metrics_jsonl, folder.events_jsonl))
        marks = tuple(Mark(mark.step, min(mark.metrics, metrics), min(mark.events, events)) for mark in self.marks)
        return Progress(min(self.metrics, metrics), min(self.events, events), self.step, marks)

    def held_by(self, steps: int) -> "Progress":
        """Where to go on, when W&B holds all that has smaller step numbers than this."""
        held = [mark for mark in self.marks if mark.step <= steps]
        if not held:
            return replace(self, marks=())
        return Progress(held[-1].metrics, held[-1].events, self.step)

    def marked(self, mark: Mark) -> "Progress":
        """With another place; W&B is never as far behind as the oldest that are kept."""
        return replace(self, marks=(*self.marks[-_MOST_MARKS:], mark), step=mark.step)


def wandb_folder(folder: RunFolder) -> Path:
    """The folder of everything that W&B writes."""
    return folder.path / "wandb"


def identify(folder: RunFolder, config: WandbOptions, environment: Mapping[str, str]) -> Identity:
    """Who the run is; told once and then kept.

    Raises:
        OSError: it cannot be written.
    """
    if (known := read_identity(folder)) is not None:
        return known
    made = Identity(
        environment.get("WANDB_RUN_ID") or "".join(secrets.choice(_ALPHABET) for _ in range(8)),
        config.wandb_project or environment.get("WANDB_PROJECT") or _PROJECT,
        config.wandb_entity or environment.get("WANDB_ENTITY") or None,
    )
    wandb_folder(folder).mkdir(exist_ok=True)
    write_json(wandb_folder(folder) / "run.json", asdict(made))
    return made


def read_identity(folder: RunFolder) -> Identity | None:
    """Who a run is at W&B; None: it was never recorded."""
    with contextlib.suppress(OSError, json.JSONDecodeError):
        read = read_json(wandb_folder(folder) / "run.json")
        if isinstance(read, dict) and read.get("id"):
            return Identity(str(read["id"]), str(read.get("project")), read.get("entity"))
    return None


def read_progress(folder: RunFolder) -> Progress:
    """How far a run was recorded."""
    with contextlib.suppress(OSError, json.JSONDecodeError, TypeError):
        read = read_json(wandb_folder(folder) / "progress.json")
        if isinstance(read, dict):
            return Progress(**{**read, "marks": tuple(Mark(**mark) for mark in read.get("marks", ()))})
    return Progress()


def write_progress(folder: RunFolder, progress: Progress) -> None:
    """Note how far.

    Raises:
        OSError: it cannot be written.
    """
    write_json(wandb_folder(folder) / "progress.json", asdict(progress))


def _count_lines(path: Path) -> int:
    with contextlib.suppress(OSError), path.open("rb") as file:
        return sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(1 << 20), b""))
    return 0


def recordings(folder: RunFolder) -> list[Path]:
    """The files that W&B recorded into, one per attempt, in the order in which they were begun."""
    every = wandb_folder(folder).glob("*run-*/*.wandb")
    found = [file for file in every if not file.parent.is_symlink() and file.stat().st_size > _HEADER_BYTES]
    return sorted(found, key=lambda file: file.parent.name.removeprefix("offline-"))
