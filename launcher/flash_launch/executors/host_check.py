"""Looks at all hosts before ranks start, and places a run on them; what is wrong is told host by host."""

import ipaddress
import json
import os
import platform
import secrets
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from flash_launch.errors import HostError
from flash_launch.executors.host_facts import Facts, Question, code_files, new_token, package_versions
from flash_launch.executors.host_talk import HostTalk, talk_to
from flash_launch.executors.hosts import Host
from flash_launch.machine import Placement
from flash_launch.options import RankOptions

__all__ = ["place_on_hosts"]

_ANSWER_SECONDS = 60.0
_REACH_SECONDS = 30.0
_SEE_SECONDS = 5.0
_MOST_ADDRESSES = 6
_SHOWN = 3

_Problems = list[tuple[Host, str]]


def place_on_hosts(
    config: RankOptions, hosts: Sequence[Host], folder: Path, *, user_code: bool
) -> tuple[Placement, tuple[str, ...]]:
    """Look at hosts and place a run on them; also what the user should know, a sentence each. Leaves nothing behind.

    Args:
        config: the run's.
        hosts: the first is node 0.
        folder: the run's, which need not be there yet.
        user_code: whether Python files in the current folder take part in the run.

    Raises:
        HostError: a host that cannot be reached, or where the run would fail; all that is wrong, a line each.
    """
    parent = next(one for one in (folder.absolute(), *folder.absolute().parents) if one.is_dir())
    own, word = new_token(), secrets.token_hex(8)
    tokens = {host: new_token() for host in hosts}
    names = tuple(host.name for host in hosts)
    try:
        _write(parent / own)
        with talk_to(hosts) as talks:
            for number, (host, talk) in enumerate(talks.items()):
                asked = Question(os.getcwd(), str(parent), own, tokens[host], names, "" if number else word)
                talk.say(asdict(asked))
            until = time.monotonic() + _ANSWER_SECONDS
            answers = {host: talk.answer(until) for host, talk in talks.items()}
            problems = [(host, told) for host, told in answers.items() if isinstance(told, str)]
            facts = {
                host: Facts(**json.loads(json.dumps(told))) for host, told in answers.items() if isinstance(told, dict)
            }
            problems += _compare(facts, parent, own_code=user_code)
            problems += _unseen(facts, parent, tokens)
            accelerator, procs, unplaced = _ranks(config, facts)
            _refuse(problems + unplaced, hosts)
            head = _meet(talks, facts, word)
    finally:
        for name in (own, *tokens.values()):
            with suppress(OSError):
                (parent / name).unlink()
    placement = Placement(
        len(hosts), procs, "cuda" if accelerator else "cpu", hosts=tuple(hosts), head=head, port=facts[hosts[0]].port
    )
    return placement, tuple(_notes(facts))


def _write(token: Path) -> None:
    try:
        token.touch()
    except OSError as error:
        raise HostError(f"{token.parent} cannot be written to: {error.strerror}; give another --output-dir") from error


def _refuse(problems: _Problems, hosts: Sequence[Host]) -> None:
    if not problems:
        return
    bad = len({host for host, _ in problems})
    lines = "\n".join(f"  {host}: {text}" for host, text in sorted(problems, key=lambda one: hosts.index(one[0])))
    who = f"{bad} of {len(hosts)} hosts" if len(hosts) > 1 else "the host"
    raise HostError(f"{who} cannot take part, nothing was started:\n{lines}")


def _compare(facts: Mapping[Host, Facts], parent: Path, *, own_code: bool) -> _Problems:
    """What makes hosts unfit, by what they told.

    Args:
        own_code: whether Python files in the current folder take part in the run.
    """
    packages = package_versions()
    code = {name: digest for name, digest in code_files(Path.cwd()).items() if own_code or not name.startswith("./")}
    share = "give a folder on a file system that all hosts share by --output-dir"
    found: _Problems = []
    for host, one in facts.items():
        found += [(host, text) for text in _differences(one, packages, code)]
        if not one.folder:
            found.append((host, f"there is no folder {os.getcwd()} there: start in one that all hosts share"))
        if not one.sees_parent:
            found.append((host, f"there is no folder {parent}, where the run is to be: {share}"))
        elif not one.sees_token:
            found.append((host, f"its {parent} is another than the one here, so the run could not be shared: {share}"))
        elif one.wrote:
            found.append((host, f"it cannot write to {parent} ({one.wrote}): give it the right to, or {share}"))
        found += [(host, text) for text in _loopbacks(host, facts)]
    return found


def _differences(one: Facts, packages: Mapping[str, str], code: Mapping[str, str]) -> list[str]:
    found = []
    python = platform.python_version()
    if one.python.rpartition(".")[0] != python.rpartition(".")[0]:
        found.append(f"it has Python {one.python}, and here is {python}: use the same on all hosts")
    others = [
        f"{name} {one.packages.get(name, 'is missing')} (here {packages.get(name, 'none')})"
        for name in sorted({*packages, *one.packages})
        if one.packages.get(name) != packages.get(name)
    ]
    if others:
        fix = "install the same there (pip freeze > r.txt here, pip install -r r.txt there), or share the environment"
        found.append(f"other packages than here: {', '.join(others)}: {fix}")
    files = sorted(name for name in {*code, *one.code} if one.code.get(name) != code.get(name))
    files = [name for name in files if not name.startswith("./") or (name in code and one.folder)]
    own = [name for name in files if name.startswith("./")]
    for what, names, fix in (
        ("of flash-launch", [name for name in files if name not in own], "install the same version there"),
        ("in the current folder", own, "copy it there"),
    ):
        if names:
            more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            told = f"{', '.join(names[:_SHOWN])}{more} differ{'s' * (len(names) == 1)} from here"
            found.append(f"other code {what}: {told}: {fix}, or use a folder that all hosts share")
    return found


def _loopbacks(host: Host, facts: Mapping[Host, Facts]) -> list[str]:
    """The trap: another machine's name that leads back to this one, at which both wait for each other."""
    found = []
    for other, its in facts.items():
        addresses = facts[host].names.get(other.name, [])
        if its.machine != facts[host].machine and addresses and all(map(_is_loopback, addresses)):
            found.append(
                f"the name {other.name} resolves to {', '.join(addresses)} there, the loopback address, which is "
                f"{host.name} itself: mend /etc/hosts or DNS on {host.name}"
            )
    return found


def _unseen(facts: Mapping[Host, Facts], parent: Path, tokens: Mapping[Host, str]) -> _Problems:
    """Hosts that see what is written here, and whose own files are not seen here."""
    wrote = [host for host, one in facts.items() if one.sees_token and not one.wrote]
    until = time.monotonic() + _SEE_SECONDS
    while missing := [host for host in wrote if tokens[host] not in os.listdir(parent)]:
        if time.monotonic() > until:
            break
        time.sleep(0.1)
    return [(host, f"what it writes to {parent} is not seen here: see how that is mounted") for host in missing]


def _ranks(config: RankOptions, facts: Mapping[Host, Facts]) -> tuple[bool, int, _Problems]:
    """Whether ranks have GPUs, how many ranks a host has, and what does not fit."""
    gpus = {host: one.gpus for host, one in facts.items()}
    procs = config.procs_per_node
    if config.accelerator == "cpu" or not facts or (config.accelerator == "auto" and not any(gpus.values())):
        return False, procs or 1, []
    found: _Problems = []
    least, most = min(gpus.values()), max(gpus.values())
    for host, count in gpus.items():
        has = f"it has {count or 'no'} GPU{'s' * (count != 1)}"
        if not count:
            found.append((host, f"{has}: leave it out, or give --accelerator cpu"))
        elif procs is not None and count < procs:
            found.append((host, f"{has} for --procs-per-node {procs}: give fewer, or --accelerator cpu"))
        elif procs is None and least and count < most:
            found.append((host, f"{has}, others {most}: give --procs-per-node {least}, or leave it out"))
    by_machine: dict[str, Host] = {}
    for host, one in facts.items():
        if (other := by_machine.setdefault(one.machine, host)) is not host:
            found.append((host, f"it is the same machine as {other}, with the same GPUs: name it once"))
    return True, procs or least, found


def _meet(talks: Mapping[Host, HostTalk], facts: Mapping[Host, Facts], word: str) -> str:
    """The first host's address at which all others reach it.

    Raises:
        HostError: there is none.
    """
    hosts = list(facts)
    first = facts[hosts[0]]
    others = [host for host in hosts[1:] if facts[host].machine != first.machine]
    if not others:
        return "127.0.0.1"
    by_name = [address for host in others for address in facts[host].names.get(hosts[0].name, [])]
    addresses = [
        one for one in dict.fromkeys([*by_name, first.reached_at, *first.addresses]) if one and not _is_loopback(one)
    ]
    addresses = sorted(addresses, key=lambda one: ":" in one)[:_MOST_ADDRESSES]  # gloo and NCCL like IPv4 better
    for host in others:
        talks[host].say({"reach": [addresses, first.port, word]})
    until = time.monotonic() + _REACH_SECONDS
    told = {host: talks[host].answer(until) for host in others}
    for address in addresses:
        if all(isinstance(one, dict) and one.get(address) == "" for one in told.values()):
            return address
    problems: _Problems = []
    for host, one in told.items():
        why = one if isinstance(one, str) else "; ".join(f"{address}: {text or 'yes'}" for address, text in one.items())
        fix = "let TCP through between the hosts, on all ports above 1023"
        problems.append((host, f"it does not reach {hosts[0].name}, where ranks are to meet ({why}): {fix}"))
    _refuse(problems, hosts)
    raise AssertionError(told)


def _notes(facts: Mapping[Host, Facts]) -> list[str]:
    found = []
    for host, one in facts.items():
        own = one.names.get(host.name, [])
        if len({one.machine for one in facts.values()}) > 1 and own and all(map(_is_loopback, own)):
            found.append(
                f"{host.name} resolves its own name to {', '.join(own)}: the ranks use its real address, but other "
                "programs there may not"
            )
    return found


def _is_loopback(address: str) -> bool:
    with suppress(ValueError):
        return ipaddress.ip_address(address.partition("%")[0]).is_loopback
    return False
