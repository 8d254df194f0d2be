"""How a host is connected to by ssh: the command line, what a user would type, and what a failure means."""

import os
import shlex
from collections.abc import Mapping, Sequence

from flash_launch.executors.hosts import Host

__all__ = ["CONNECT_SECONDS", "by_hand", "explain_connection", "ssh_argv"]

CONNECT_SECONDS = 10
_SSH = "FLASH_LAUNCH_SSH"
"""The ssh command, with arguments, as a shell writes it: `ssh -F my_config -J gateway`."""
_DEFAULT_PORT = 22

_SAYINGS = {
    "REMOTE HOST IDENTIFICATION HAS CHANGED": (
        "its host key is not the one that is known here",
        "if that is right: ssh-keygen -R {known_as}, then {ssh} once by hand",
    ),
    "Host key verification failed": (
        "its host key is not known here",
        "{ssh} once by hand and confirm it, or ssh-keyscan {port}{name} >> ~/.ssh/known_hosts",
    ),
    "Permission denied": (
        "it refuses the login, and there is nobody to type a password",
        "ssh-copy-id {port}{destination}, and load the key by ssh-add",
    ),
    "Could not resolve hostname": (
        "its name does not resolve here",
        "look at its spelling, or add it to ~/.ssh/config or /etc/hosts",
    ),
    "Connection refused": (
        "no ssh server answers there{at_port}",
        "start sshd there, or name the port it listens at: {with_port}",
    ),
    "No route to host": ("it cannot be reached, there is no route to it", "is it switched on, and in this network?"),
    "Network is unreachable": ("it cannot be reached, its network is not known", "see `ip route`"),
    "timed out": (
        f"it does not answer within {CONNECT_SECONDS} s",
        "is it switched on, and does a firewall let ssh through?",
    ),
}
"""What ssh says when it cannot connect: what that means, and the fix."""


def ssh_argv(host: Host, argv: Sequence[str], environment: Mapping[str, str] = os.environ) -> list[str]:
    """The command line that runs `argv` on a host: by the user's own keys and settings, and never with a question."""
    return [
        *_command(environment),
        *("-T", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={CONNECT_SECONDS}"),
        *("-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=4"),
        *_port(host),
        *("--", host.destination, f"exec {shlex.join(argv)}"),
    ]


def by_hand(host: Host, environment: Mapping[str, str] = os.environ) -> str:
    """How a user would call ssh for a host."""
    return shlex.join([*_command(environment), *_port(host), host.destination])


def explain_connection(host: Host, said: str, environment: Mapping[str, str] = os.environ) -> tuple[str, str]:
    """Why ssh could not connect to a host, and what to do, by what it printed.

    Returns:
        The problem, in words that follow the host's name, and commands that are right for its user, port and address.
    """
    ssh = by_hand(host, environment)
    told = next((told for mark, told in _SAYINGS.items() if mark in said), None)
    if told is None:
        last = (said.strip().splitlines() or ["it said nothing"])[-1].strip()
        return f"ssh failed ({last})", f"try by hand: {ssh} true"
    elsewhere = host.port not in (None, _DEFAULT_PORT)
    words = {
        "ssh": ssh,
        "name": host.name,
        "destination": host.destination,
        "port": "".join(f"{word} " for word in _port(host)),
        # as known_hosts writes it
        "known_as": shlex.quote(f"[{host.name}]:{host.port}" if elsewhere else host.name),
        "with_port": f"{host.user and host.user + '@'}{f'[{host.name}]' if ':' in host.name else host.name}:PORT",
        "at_port": f" at port {host.port}" if host.port is not None else "",
    }
    problem, fix = told
    return problem.format_map(words), fix.format_map(words)


def _command(environment: Mapping[str, str]) -> list[str]:
    return shlex.split(environment.get(_SSH, "")) or ["ssh"]


def _port(host: Host) -> list[str]:
    return [] if host.port is None else ["-p", str(host.port)]
