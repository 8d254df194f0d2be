"""How a node's answer travels: as short lines of text, which survive a login's greetings and srun's mixing of lines."""

import base64
import binascii
import json
import socket
import zlib
from collections.abc import Mapping

__all__ = ["HOST_VARIABLE", "own_name", "pack", "unpack"]

HOST_VARIABLE = "FLASH_LAUNCH_DOCTOR_HOST"
"""Environment variable with the name by which the caller knows a node."""

_MARK = "@flash-launch-doctor"
# slurmstepd forwards at most 1024 bytes at a time: longer lines of several nodes can be mixed with each other.
_PART = 600


def own_name(environment: Mapping[str, str]) -> str:
    """The name by which the caller knows this node."""
    return environment.get(HOST_VARIABLE) or environment.get("SLURMD_NODENAME") or socket.gethostname()


def pack(host: str, message: Mapping[str, object]) -> str:
    """The lines that carry a node's message."""
    text = base64.b64encode(zlib.compress(json.dumps(message).encode())).decode()
    parts = [text[start : start + _PART] for start in range(0, len(text), _PART)]
    return "".join(f"{_MARK} {host} {number} {len(parts)} {part}\n" for number, part in enumerate(parts))


def unpack(text: str) -> dict[str, dict[str, object]]:
    """The messages by host that are whole in a text, whatever else stands in it."""
    parts: dict[str, dict[int, str]] = {}
    wanted: dict[str, int] = {}
    for line in text.splitlines():
        words = line[line.find(_MARK) :].split() if _MARK in line else []
        if len(words) == 5 and words[2].isdecimal() and words[3].isdecimal():
            parts.setdefault(words[1], {})[int(words[2])] = words[4]
            wanted[words[1]] = int(words[3])
    found = {}
    for host, pieces in parts.items():
        if sorted(pieces) != list(range(wanted[host])):
            continue
        try:
            message = json.loads(zlib.decompress(base64.b64decode("".join(pieces[n] for n in sorted(pieces)))))
        except (binascii.Error, zlib.error, ValueError):
            continue
        if isinstance(message, dict):
            found[host] = message
    return found
