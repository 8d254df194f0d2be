"""A loop of one's own that saves, stops when flash-launch asks it to, and resumes where it was: the epochs and batches.

Checkpoints lie in `ATTEMPT_STEPS/`: `state/` (what `Finetuner.save` writes), `rankN.pt` (random states) and
`position.json`. One is there whole or not at all.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Protocol, TypeVar

import torch

from flash_strategies.errors import CheckpointError
from flash_strategies.random_states import RandomStates, give_back, take
from flash_strategies.reporting import NOTES, say
from flash_strategies.run_session import RunSession
from flash_strategies.stop_lookout import StopLookout
from flash_strategies.transition import Transitions
from flash_strategies.whole_folder import POSITION, leave, remove_cut_off, write_whole

_KEPT = 2
"""Checkpoints that stay: the newest ones."""

_T = TypeVar("_T")


@dataclass(frozen=True)
class Position:
    """Where a loop is."""

    epoch: int
    """From 0."""
    batch: int
    """Batches of it that are done, on each rank."""


class Loop(Protocol):
    """What `Finetuner` is here."""

    @property
    def transitions(self) -> Transitions:
        """The transitions."""
        ...

    @property
    def steps(self) -> int:
        """Optimizer steps so far."""
        ...

    def save(self, folder: str | Path) -> None:
        """Store what is trained."""

    def load(self, folder: str | Path) -> object:
        """Resume from it."""

    def begin_epoch(self, epoch: int) -> object:
        """Make the epoch's transition."""

    def end_epoch(self) -> str:
        """Make the ranks' statistics equal."""
        ...

    def without_first(self, loader: Iterable[_T], batches: int) -> Iterable[_T]:
        """The loader without its first so many `batches`."""
        ...


@dataclass(frozen=True)
class _Resumed:
    """What the first epoch after a resume begins with."""

    batch: int
    start: RandomStates | None
    """When the epoch's loader was begun; its order follows from them."""
    now: RandomStates | None
    """When it was saved."""


class Resumption:
    """One rank's; all ranks call each method at the same points."""

    def __init__(self, loop: Loop, session: RunSession | None, folder: Path | None = None) -> None:
        """Nothing is read yet.

        Args:
            loop: the finetuner, with its engine.
            session: of flash-launch, if it started this process.
            folder: for checkpoints, in place of the session's.
        """
        self._loop, self._control = loop, loop.transitions.control
        self._session, self._attempt = session, session.attempt if session is not None else 1
        self._folder = folder if folder is not None else session.checkpoints if session is not None else None
        self._lookout = StopLookout(self._control)
        self._epoch = 0
        self._resumed: _Resumed | None = None

    def epochs(self, last: int) -> Iterator[int]:
        """The epochs that are left, each begun before and ended after what is done in it; a checkpoint after each.

        Raises:
            SystemExit: with EXIT_STOPPED, at an epoch's end, where a stop was asked for; all is saved then.
        """
        for epoch in range(self.resume().epoch, last):
            self._epoch = epoch
            self._loop.begin_epoch(epoch)
            yield epoch
            self._resumed = None
            self._loop.end_epoch()
            if self._folder is not None:
                stop = self._lookout.now(self._loop.steps)
                self._save(Position(epoch + 1, 0), None)
                if stop and epoch + 1 < last:
                    leave(groups=True)

    def batches(self, loader: Iterable[_T]) -> Iterator[_T]:
        """The epoch's batches that are left; between two of them a stop is heeded.

        Raises:
            SystemExit: with EXIT_STOPPED, where a stop was asked for; all is saved then.
        """
        resumed, self._resumed = self._resumed, None
        if self._folder is None:
            yield from loader
            return
        if resumed is not None and resumed.start is not None:
            give_back(resumed.start, loader)
        start, done = take(loader), resumed.batch if resumed is not None else 0
        now = resumed.now if resumed is not None else None
        for batch in self._loop.without_first(loader, done) if done else loader:
            if now is not None:  # after the loader's iterator has drawn from them
                give_back(now)
                now = None
            before = self._loop.steps
            yield batch
            done += 1
            if self._loop.steps != before and self._lookout.agreed(self._loop.steps):
                self._save(Position(self._epoch, done), start)
                leave(groups=True)
        if now is not None:
            give_back(now)

    # ---- checkpoints

    def resume(self) -> Position:
        """Read the newest checkpoint, if there is one.

        Raises:
            CheckpointError: it is damaged, or of another model, optimizer or strategy.
        """
        if self._folder is None:
            return Position(0, 0)
        if self._control.rank == 0:
            remove_cut_off(self._folder)
        names = _names(self._folder)
        newest = self._control.gather(names[-1] if names else None, "looking for a checkpoint")[0]
        if newest is None:
            return Position(0, 0)
        path = self._folder / str(newest)
        try:
            saved = json.loads((path / POSITION).read_text())
            position, ranks = Position(int(saved["epoch"]), int(saved["batch"])), int(saved["ranks"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{path / POSITION} cannot be read: {error}") from error
        self._loop.load(path / "state")
        position = self._of_these_ranks(position, ranks)
        rank, here = self._control.rank, self._control.world_size
        states = torch.load(path / f"rank{rank % ranks}.pt", weights_only=True)
        self._resumed = _Resumed(position.batch, states["start"], states["now"] if ranks == here else None)
        say(f"resumed from {path}: epoch {position.epoch}, {position.batch} batches of it done", NOTES)
        return position

    def _of_these_ranks(self, position: Position, ranks: int) -> Position:
        """The position in batches of so many ranks as there are now."""
        here = self._control.world_size
        if ranks == here:
            return position
        say(f"saved by {ranks} ranks and resumed by {here}: random states are not those of an unstopped run", NOTES)
        if position.batch * ranks % here:
            say(f"{position.batch * ranks % here} batches of the epoch are trained on twice", NOTES)
        return Position(position.epoch, position.batch * ranks // here)

    def _save(self, position: Position, start: RandomStates | None) -> None:
        assert self._folder is not None
        folder, control = self._folder, self._control

        def write(into: Path) -> None:
            now = take()  # before the save draws from them
            self._loop.save(into / "state")
            torch.save({"start": start, "now": now}, into / f"rank{control.rank}.pt")

        write_whole(
            control,
            folder / f"{self._attempt:04d}_{self._loop.steps:08d}",
            write,
            asdict(position),
            session=self._session,
            outdated=lambda: [folder / name for name in _names(folder)[:-_KEPT]],
        )


def _names(folder: Path) -> list[str]:
    """Whole checkpoints in the order of their age."""
    if not folder.is_dir():
        return []
    found = [path.name for path in folder.iterdir() if re.fullmatch(r"\d+_\d+", path.name)]
    whole = [name for name in found if (folder / name / POSITION).is_file()]
    return sorted(whole, key=lambda name: [int(part) for part in name.split("_")])


def skipped(loader: Iterable[_T], batches: int) -> Iterator[_T]:
    """A loader's batches from one on; those before are loaded and dropped."""
    return islice(loader, batches, None)
