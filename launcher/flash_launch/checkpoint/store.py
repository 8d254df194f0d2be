"""The folder of a run's checkpoints: which are complete, which one to go on from, what is kept."""

import contextlib
import os
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from flash_launch.checkpoint.attempts import Attempt, in_lineage
from flash_launch.checkpoint.manifest import MANIFEST, Manifest, Part, problems, read, read_part
from flash_strategies.errors import CheckpointError

__all__ = ["Found", "Store"]

_NAME = re.compile(r"step_(\d+)")


@dataclass(frozen=True)
class Found:
    """A checkpoint to go on from."""

    manifest: Manifest
    """Its manifest."""
    notes: tuple[str, ...] = ()
    """Why newer ones were passed over, a sentence each."""


@dataclass(frozen=True)
class Store:
    """A folder of step_N folders, and frozen/ with what they refer to."""

    folder: Path
    """checkpoints/ of a run."""

    def path(self, name: str) -> Path:
        """A checkpoint's folder."""
        return self.folder / name

    def part_path(self, name: str) -> Path:
        """A part's folder."""
        return self.folder / "frozen" / name

    def names(self) -> list[str]:
        """Names of all checkpoints that are visible, the newest first."""
        try:
            names = [name for name in os.listdir(self.folder) if _NAME.fullmatch(name)]
        except FileNotFoundError:
            return []
        return sorted(names, key=_step, reverse=True)

    def newest(self, run: str, attempts: Sequence[Attempt] = (), name: str | None = None) -> Found | None:
        """The newest checkpoint that is as it was written, by all checksums; None where there never was any.

        Args:
            run: the run's own name.
            attempts: all attempts, to leave out what one of them saved after it was fenced off.
            name: only this one.

        Raises:
            CheckpointError: there are checkpoints and none can be used, or not the one that was named.
        """
        notes: list[str] = []
        candidates = self.names()
        if name is not None:
            if name not in candidates:
                have = ", ".join(candidates) or "none"
                raise CheckpointError(f"{self.folder} has no checkpoint {name!r}; it has {have}")
            candidates = [name]
        for candidate in candidates:
            try:
                manifest = self.checked(candidate, run)
            except CheckpointError as error:
                notes.append(f"checkpoint {candidate} is passed over: {error}")
                continue
            if not in_lineage(attempts, manifest.attempt, manifest.position.step):
                notes.append(
                    f"checkpoint {candidate} is passed over: attempt {manifest.attempt} saved it after a newer began"
                )
                continue
            return Found(manifest, tuple(notes))
        if notes:
            raise CheckpointError("no checkpoint can be used. " + ". ".join(notes))
        return None

    def checked(self, name: str, run: str, *, contents: bool = True) -> Manifest:
        """A checkpoint's manifest, if all that it names is as it was written.

        Raises:
            CheckpointError: names the file that is not.
        """
        manifest = read(self.path(name))
        if manifest.run != run or manifest.name != name:
            raise CheckpointError(
                f"{self.path(name) / MANIFEST} is of another run or step ({manifest.run}, {manifest.name})"
            )
        wrong = problems(self.path(name), manifest.files, contents=contents)
        for part_name, keys in manifest.frozen.items():
            part = read_part(self.part_path(part_name))
            if part.run != run:
                raise CheckpointError(f"{self.part_path(part_name) / MANIFEST} is of another run ({part.run})")
            wrong += problems(self.part_path(part_name), part.files, contents=contents)
            if lost := sorted(set(keys) - set(part.digests)):
                wrong.append(f"{self.part_path(part_name) / MANIFEST} does not have {lost[0]}")
        if wrong:
            raise CheckpointError("; ".join(wrong))
        return manifest

    def parts(self, run: str) -> dict[str, Part]:
        """The parts that are complete, by name; checksums are not read."""
        found: dict[str, Part] = {}
        frozen = self.folder / "frozen"
        for name in sorted(os.listdir(frozen)) if frozen.is_dir() else ():
            if not name.startswith("."):
                with contextlib.suppress(CheckpointError):
                    part = read_part(frozen / name)
                    if part.run == run and not problems(frozen / name, part.files, contents=False):
                        found[name] = part
        return found

    def publish(self, temporary: Path, name: str) -> None:
        """Make a written checkpoint visible, in one step. One of that name that nobody may use any more moves away.

        Raises:
            OSError: it cannot be renamed.
        """
        target = self.path(name)
        superseded = self.folder / f".superseded_{name}_{os.getpid()}"
        if target.exists():
            target.rename(superseded)
        temporary.rename(target)
        _sync(self.folder)
        shutil.rmtree(superseded, ignore_errors=True)

    def publish_part(self, temporary: Path, name: str) -> None:
        """The same for a part, whose name is its own."""
        temporary.rename(self.part_path(name))
        _sync(self.folder / "frozen")

    def keep(self, newest: int, current: str, best: Callable[[Manifest], float] | None = None) -> list[str]:
        """Delete what need not be kept: all but the newest and the best (of which the newest).

        Args:
            newest: how many to keep.
            current: the one just saved. Later ones are damaged, or an older attempt's: they do not count.
            best: a score, higher is better, NaN for none.

        Returns:
            Names of what was deleted.
        """
        names = [name for name in self.names() if _step(name) <= _step(current)]
        kept = set(names[:newest])
        if best is not None:
            scored: list[tuple[float, int, str]] = []
            for name in names:
                with contextlib.suppress(CheckpointError):
                    score = best(read(self.path(name)))
                    if score == score:
                        scored.append((score, _step(name), name))
            kept |= {max(scored)[2]} if scored else set()
        deleted = [name for name in names if name not in kept]
        for name in deleted:
            self._delete(self.path(name))
        return deleted

    def sweep(self) -> None:
        """Delete what attempts that ended left half-written; nothing that is visible."""
        for folder in (self.folder, self.folder / "frozen"):
            for path in folder.glob(".*") if folder.is_dir() else ():
                if re.match(r"\.(tmp|deleted|superseded)_", path.name):
                    shutil.rmtree(path, ignore_errors=True)

    def _delete(self, path: Path) -> None:
        hidden = path.with_name(f".deleted_{path.name}_{os.getpid()}")
        with contextlib.suppress(OSError):
            path.rename(hidden)  # at once invisible: a crash leaves no half of it
            shutil.rmtree(hidden, ignore_errors=True)


def _step(name: str) -> int:
    return int(name.removeprefix("step_"))


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
