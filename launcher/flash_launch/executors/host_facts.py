"""What a host tells of itself before ranks start there: its code and packages, the names it resolves, what it sees.

    python -m flash_launch.executors.host_facts        steered by its stdin and stdout, a JSON object per line

First it answers `Question`s' object with its facts; then, on the other hosts, which of the first host's addresses lead
to it: that one listens meanwhile, and says a word that only it knows.
"""

import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import flash_launch
import flash_strategies
from flash_launch.executors.addresses import interface_addresses
from flash_launch.machine import visible_gpus

__all__ = ["MARK", "Facts", "Question", "code_files", "gather", "new_token", "package_versions"]

MARK = "flash-launch-facts "
"""Begins the lines that count; what a login shell prints goes before."""

_PACKAGES = ("torch", "torchvision", "deepspeed", "pytorch-lightning", "accelerate", "numpy", "safetensors")
_SEE_SECONDS = 5.0
"""How long a network file system may take to show a file that was just written on another machine."""
_REACH_SECONDS = 3.0
_MOST_FILES = 300


@dataclass(frozen=True)
class Question:
    """What a host is asked."""

    folder: str
    """The current folder here, which is to be there, too."""
    parent: str
    """The folder in which the run's is made."""
    token: str
    """Name of a file that was written there."""
    answer: str
    """Name of the file that the host writes there; it removes it at the end."""
    names: tuple[str, ...]
    """Names of all hosts, to be resolved."""
    word: str = ""
    """Given to the first host: it listens, and says this to who connects."""


@dataclass(frozen=True)
class Facts:
    """What it answers."""

    hostname: str
    """Its own name."""
    machine: str
    """The same for two names of one machine."""
    python: str
    """Python's version."""
    packages: dict[str, str]
    """Versions by package; what is not there is left out."""
    code: dict[str, str]
    """Digests of flash-launch's files, and of the Python files in the current folder."""
    gpus: int
    """GPUs that a process there sees."""
    folder: bool
    """Whether it runs in the current folder."""
    sees_parent: bool
    """Whether the run's parent folder is there."""
    sees_token: bool
    """Whether it sees the file written here."""
    wrote: str
    """Why it could not write a file there; empty: it did."""
    addresses: list[str]
    """Its network interfaces' addresses, but loopback."""
    reached_at: str
    """The address that ssh reached it at; empty where that is not known."""
    names: dict[str, list[str]] = field(default_factory=dict)
    """Addresses that it finds for the names of the hosts; none where a name does not resolve."""
    port: int = 0
    """The free port it listens at; 0: it was not asked to."""


def package_versions() -> dict[str, str]:
    """Versions of what must be equal on all hosts, without importing it."""
    found = {"flash-launch": flash_launch.__version__}
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def code_files(folder: Path) -> dict[str, str]:
    """Digests by file of flash-launch's code, and of the Python files right in a folder (a task of the user's own)."""
    found: dict[str, str] = {}
    for package in (flash_launch, flash_strategies):
        root = Path(package.__file__ or "").parent
        for path in root.rglob("*.py"):
            found[f"{root.name}/{path.relative_to(root)}"] = _digest(path)
    for path in sorted(folder.glob("*.py"))[:_MOST_FILES]:
        found[f"./{path.name}"] = _digest(path)
    return found


def gather(question: Question, port: int = 0) -> Facts:
    """Find out everything; writes `question.answer`."""
    parent = Path(question.parent)
    wrote = ""
    try:
        (parent / question.answer).write_text(socket.gethostname(), encoding="utf-8")
    except OSError as error:
        wrote = error.strerror or str(error)
    here = os.path.realpath(question.folder) == os.path.realpath(os.getcwd())
    reached = os.environ.get("SSH_CONNECTION", "").split()
    return Facts(
        hostname=socket.gethostname(),
        machine=_machine(),
        python=platform.python_version(),
        packages=package_versions(),
        code=code_files(Path(question.folder)) if here else code_files(Path(os.devnull)),
        gpus=len(visible_gpus()),
        folder=here,
        sees_parent=parent.is_dir(),
        sees_token=_sees(parent / question.token),
        wrote=wrote,
        addresses=[one for one in interface_addresses() if not one.startswith("127.")],
        reached_at=reached[2] if len(reached) == 4 else "",
        names={name: _resolve(name) for name in question.names},
        port=port,
    )


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    except OSError:
        return "unreadable"


def _machine() -> str:
    """Containers share a boot id, and may share a name; their network tells them apart."""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        return f"{boot} {os.stat('/proc/self/ns/net').st_ino}"
    return socket.gethostname()


def _sees(file: Path) -> bool:
    end = time.monotonic() + _SEE_SECONDS
    while True:
        with contextlib.suppress(OSError):
            if file.name in os.listdir(file.parent):  # a listing makes a network file system look again
                return True
        if time.monotonic() > end:
            return False
        time.sleep(0.1)


def _resolve(name: str) -> list[str]:
    with contextlib.suppress(OSError, UnicodeError):
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
        return list(dict.fromkeys(str(one[4][0]) for one in found))
    return []


def _listen(word: str) -> int:
    """Listen at a free port, and say the word to whoever connects; the port."""
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    server = socket.create_server(("", 0), family=family, dualstack_ipv6=both)

    def serve() -> None:
        while True:
            with contextlib.suppress(OSError):
                connection, _ = server.accept()
                with connection:
                    connection.sendall(word.encode())

    threading.Thread(target=serve, daemon=True).start()
    return int(server.getsockname()[1])


def _reached(addresses: Sequence[str], port: int, word: str) -> dict[str, str]:
    """By address: empty if it leads to who knows the word, else why not."""
    found: dict[str, str] = {}
    for address in addresses:
        try:
            with socket.create_connection((address, port), timeout=_REACH_SECONDS) as connection:
                said = connection.recv(len(word))
            found[address] = "" if said.decode(errors="replace") == word else "another machine answers there"
        except OSError as error:
            found[address] = error.strerror or str(error)
    return found


def _lines() -> Iterator[dict[str, object]]:
    for line in sys.stdin:
        value = json.loads(line)
        assert isinstance(value, dict)
        yield value


def _say(told: object) -> None:
    print(MARK + json.dumps(told), flush=True)


def main() -> None:
    """Answer until the end of stdin."""
    written: Path | None = None
    try:
        for asked in _lines():
            if "reach" in asked:
                addresses, port, word = json.loads(json.dumps(asked["reach"]))
                _say(_reached(addresses, port, word))
                continue
            question = Question(**json.loads(json.dumps(asked)))
            written = Path(question.parent) / question.answer
            _say(asdict(gather(question, _listen(question.word) if question.word else 0)))
    finally:
        if written is not None:
            with contextlib.suppress(OSError):
                written.unlink()


def new_token() -> str:
    """A file name that nobody else takes."""
    return f".flash-launch-{secrets.token_hex(8)}"


if __name__ == "__main__":
    main()
