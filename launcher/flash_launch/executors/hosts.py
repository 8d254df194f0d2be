"""Hosts to run on by ssh, as --hosts or a hostfile names them: HOST, USER@HOST, HOST:PORT, [IPV6]:PORT."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from flash_launch.errors import ConfigError
from flash_launch.options import RankOptions

__all__ = ["Host", "choose_hosts", "parse_hosts", "read_hostfile"]

_NAME = re.compile(r"[\w.-]+|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*(%\w+)?")
Ranks = TypeVar("Ranks", bound=RankOptions)
_USER = re.compile(r"[\w.$+-]+")
_LEAST_PORT = 22
"""What stands behind a colon in other launchers' files may be a number of ranks; no ssh server has so low a port."""


@dataclass(frozen=True)
class Host:
    """A machine that ssh reaches."""

    name: str
    """Its name, alias of the ssh configuration, or address."""
    user: str = ""
    """Who logs in; empty: whom ssh takes."""
    port: int | None = None
    """Where its ssh server listens; None: where ssh looks for it."""

    def __str__(self) -> str:
        """As it is written in --hosts."""
        name = f"[{self.name}]" if ":" in self.name and self.port is not None else self.name
        return f"{self.user and self.user + '@'}{name}{'' if self.port is None else f':{self.port}'}"

    @property
    def destination(self) -> str:
        """As ssh takes it; the port is an option there."""
        return f"{self.user and self.user + '@'}{self.name}"


def choose_hosts(config: Ranks, argv: Sequence[str]) -> tuple[Ranks, tuple[Host, ...]]:
    """The hosts to run on, none for this machine; and the configuration as it is kept, with their names in it.

    Args:
        config: what the command line and YAML files ask for.
        argv: the command line, which may name other hosts than the files.

    Raises:
        ConfigError: hosts that cannot be, both kinds of list, or another number of nodes.
    """
    given = {word.partition("=")[0] for word in argv} & {"--hosts", "--hostfile", "--nodes"}
    by_list, by_file = config.hosts, config.hostfile
    if by_list is not None and by_file is not None:
        if ("--hosts" in given) == ("--hostfile" in given):
            raise ConfigError(f"--hosts {by_list} and --hostfile {by_file} were both given: give one of them")
        by_list, by_file = (by_list, None) if "--hosts" in given else (None, by_file)
    hosts = read_hostfile(Path(by_file)) if by_file is not None else parse_hosts(by_list) if by_list else ()
    if not hosts:
        return replace(config, hosts=None, hostfile=None), ()
    anew = bool(given & {"--hosts", "--hostfile"}) and "--nodes" not in given
    if config.nodes not in (None, len(hosts)) and not anew:
        raise ConfigError(
            f"--nodes is {config.nodes}, but {len(hosts)} host{'s are' if len(hosts) > 1 else ' is'} named, "
            f"{', '.join(map(str, hosts))}, and each is a node: leave --nodes out, or name {config.nodes} hosts"
        )
    return replace(config, nodes=len(hosts), hosts=",".join(map(str, hosts)), hostfile=None), hosts


def parse_hosts(text: str, source: str = "--hosts") -> tuple[Host, ...]:
    """The hosts that a list names, in its order: the first is node 0.

    Raises:
        ConfigError: no host, one that is named twice, or what is no host.
    """
    names = [name.strip() for name in text.split(",")]
    if empty := [number for number, name in enumerate(names, 1) if not name]:
        raise ConfigError(
            f"{source} was given {text!r}, where host {empty[0]} is empty: give names with commas between, as in a,b"
        )
    return _distinct([_parse(name, source) for name in names], source)


def read_hostfile(path: Path) -> tuple[Host, ...]:
    """The hosts that a file names, one per line: `host`, or `host slots=8`, of which the first word counts.

    Raises:
        ConfigError: the file cannot be read or names no host, or one twice, or what is no host.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text"
        raise ConfigError(f"--hostfile {path} cannot be read: {why}") from error
    hosts = [
        _parse(words[0], f"--hostfile {path}, line {number}")
        for number, line in enumerate(lines, 1)
        if (words := line.partition("#")[0].split())
    ]
    if not hosts:
        raise ConfigError(f"--hostfile {path} names no host: write one per line")
    return _distinct(hosts, f"--hostfile {path}")


def _parse(text: str, source: str) -> Host:
    user, at, rest = text.rpartition("@")
    name, port = rest, ""
    if bracketed := re.fullmatch(r"\[(.*)\](?::(.*))?", rest):
        name, port = bracketed[1], bracketed[2] or ""
    elif rest.count(":") == 1:
        name, _, port = rest.partition(":")
    fix = f"{source} was given {text!r}: a host is HOST, USER@HOST or HOST:PORT (PORT of its ssh server)"
    if not _NAME.fullmatch(name) or name.startswith("-") or (at and not _USER.fullmatch(user)) or user.startswith("-"):
        brackets = "; ranges as in gpu[1-4] are not expanded, name each" if "[" in name else ""
        raise ConfigError(f"{fix}{brackets}")
    if not port:
        if rest.endswith(":"):
            raise ConfigError(fix)
        return Host(name, user)
    if not port.isascii() or not port.isdigit() or not _LEAST_PORT <= int(port) < 65536:
        raise ConfigError(f"{fix}, and {port} is no such port. The number of ranks is given by --procs-per-node")
    return Host(name, user, int(port))


def _distinct(hosts: Sequence[Host], source: str) -> tuple[Host, ...]:
    counts = Counter((host.name.lower(), host.port) for host in hosts)
    if twice := [host for host in hosts if counts[host.name.lower(), host.port] > 1]:
        raise ConfigError(
            f"{source} names {twice[0]} more than once: each host is one node, and has as many ranks as "
            "--procs-per-node says"
        )
    return tuple(hosts)
