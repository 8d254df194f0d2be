"""The run folder: the paths of everything one run reads and writes, and how its JSON files are written."""

import contextlib
import json
import os
import re
import secrets
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from flash_launch.errors import ConfigError

__all__ = [
    "RunFolder",
    "append_jsonl",
    "check_free",
    "create",
    "default_path",
    "read_json",
    "read_jsonl",
    "rewrite_jsonl",
    "write_json",
    "write_text",
]


@dataclass(frozen=True)
class RunFolder:
    """One run's folder, as paths; nothing is created by asking for them."""

    path: Path
    """The folder itself, absolute."""

    @property
    def config_yaml(self) -> Path:
        """All options of the run as it was started."""
        return self.path / "config.yaml"

    @property
    def deepspeed_json(self) -> Path:
        """The resolved engine configuration."""
        return self.path / "deepspeed.json"

    @property
    def plan_json(self) -> Path:
        """The phases: trainable names, counts, bytes per rank."""
        return self.path / "plan.json"

    @property
    def metrics_jsonl(self) -> Path:
        """One object per logged step and epoch."""
        return self.path / "metrics.jsonl"

    @property
    def events_jsonl(self) -> Path:
        """Transitions, checkpoints, signals, restarts."""
        return self.path / "events.jsonl"

    @property
    def logs(self) -> Path:
        """Folder of one log per rank and one per agent."""
        return self.path / "logs"

    def ends_of(self, attempt: int) -> Path:
        """Folder of what ranks and agents of an attempt wrote about themselves, see rank_guard."""
        return self.attempts / f"{attempt:04}"

    @property
    def checkpoints(self) -> Path:
        """Folder of step_N folders."""
        return self.path / "checkpoints"

    @property
    def attempts(self) -> Path:
        """Folder of one file per start and restart."""
        return self.path / "attempts"

    @property
    def summary_json(self) -> Path:
        """How the run ended."""
        return self.path / "summary.json"

    @property
    def weights(self) -> Path:
        """The weights at the end."""
        return self.path / "model.safetensors"

    def rank_log(self, node: int, rank: int) -> Path:
        """The log of one rank, standard output and error together."""
        return self.logs / f"node{node}_rank{rank}.log"

    def agent_log(self, node: int) -> Path:
        """The log of the torchrun agent of one node."""
        return self.logs / f"node{node}_agent.log"


def default_path(strategy: str) -> Path:
    """runs/<time>-<strategy>-<random> below the current folder."""
    safe = re.sub(r"[^\w.-]", "_", strategy)
    return Path("runs") / f"{time.strftime('%Y%m%d-%H%M%S')}-{safe}-{secrets.token_hex(2)}"


def check_free(path: str | os.PathLike[str]) -> None:
    """Check, without writing, that a new run may have this folder.

    Raises:
        ConfigError: another run's folder, or no folder at all.
    """
    folder = Path(path)
    if (folder / "config.yaml").exists():
        raise ConfigError(
            f"--output-dir {folder} holds another run (it has a config.yaml): go on with it by `flash-launch resume "
            f"{folder}` or --resume auto, or give a new folder"
        )
    above = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not above.is_dir():
        raise ConfigError(f"--output-dir {folder} is not possible, {above} is a file: give another folder")
    if not os.access(above, os.W_OK | os.X_OK):
        raise ConfigError(f"--output-dir {folder} is not possible, {above} cannot be written to: give another folder")


def create(path: str | os.PathLike[str]) -> RunFolder:
    """Make the folder of a new run, and its folder of logs.

    Raises:
        ConfigError: another run's folder, or one that cannot be made.
    """
    check_free(path)
    folder = RunFolder(Path(path).absolute())
    try:
        folder.logs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--output-dir {path} cannot be made, {error.strerror}: give another folder") from error
    return folder


def write_json(path: Path, obj: object) -> None:
    """Write an object so that a reader, or a crash, meets the old file or the new one and never a half."""
    write_text(path, json.dumps(obj, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """The same for a text."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def append_jsonl(path: Path, obj: object) -> None:
    """Append an object as one line, by one write; a line that a crash cut short is ended first."""
    with path.open("a+b", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        cut = end > 0 and os.pread(file.fileno(), 1, end - 1) != b"\n"
        file.write(b"\n" * cut + json.dumps(obj).encode() + b"\n")


def rewrite_jsonl(path: Path, rows: Iterable[object]) -> None:
    """Write a file of one object per line anew; a reader, or a crash, meets the old file or the new one."""
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def read_json(path: Path) -> object:
    """The object in a JSON file.

    Raises:
        OSError, json.JSONDecodeError: no such file, no JSON.
    """
    value: object = json.loads(path.read_text(encoding="utf-8"))
    return value


def read_jsonl(path: Path) -> Iterator[dict[str, object]]:
    """The objects in a file of one per line; a line cut short by a crash is left out, a missing file is empty."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return
    for line in lines:
        with contextlib.suppress(json.JSONDecodeError):
            yield json.loads(line)
