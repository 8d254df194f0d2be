"""Network: the interface that would be used, names that resolve, and a free port that can be reached."""

import ipaddress
import socket
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from flash_launch.doctor.findings import Finding, fail, ok, warn
from flash_launch.doctor.interfaces import (
    Interface,
    best_interface,
    gather_infiniband,
    gather_interfaces,
    interface_with,
    matching,
    own_address,
)

__all__ = [
    "NetworkFacts",
    "check_infiniband",
    "check_interfaces",
    "check_names",
    "check_network",
    "check_port",
    "gather_network",
    "resolve",
]

_GROUP = "network"
_SECONDS = 5.0


@dataclass(frozen=True)
class NetworkFacts:
    """What there is to say about a machine's network."""

    host: str
    """Its name."""
    interfaces: tuple[Interface, ...] = ()
    """Its interfaces."""
    resolved: tuple[str, ...] = ()
    """The addresses that its name resolves to; empty: it does not."""
    infiniband: tuple[str, ...] = ()
    """Ports, each as "mlx5_0/1: ACTIVE"."""
    wanted: Mapping[str, str] = field(default_factory=dict)
    """NCCL_SOCKET_IFNAME, GLOO_SOCKET_IFNAME and NCCL_IB_DISABLE, where they are set."""
    others: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """The addresses that the names of other hosts resolve to."""
    address: str = "127.0.0.1"
    """The address whose port was tried."""
    port: int | None = None
    """A port that could be bound there; None: none could."""
    port_problem: str = ""
    """Why it could not be bound, or not be reached; empty: both went well."""


def check_network(facts: NetworkFacts, *, several: bool, by_name: bool = False) -> list[Finding]:
    """All findings about the network.

    Args:
        several: whether the run is to use several machines.
        by_name: whether they find each other by name.
    """
    return [
        *check_interfaces(facts, several=several),
        *check_infiniband(facts),
        *check_names(facts, several=several, by_name=by_name),
        *check_port(facts),
    ]


def check_interfaces(facts: NetworkFacts, *, several: bool) -> list[Finding]:
    """Which interface would be used, and whether variables name one that is there."""
    found = []
    have = ", ".join(one.name for one in facts.interfaces if one.up and one.addresses) or "none"
    for name in ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"):
        value = facts.wanted.get(name)
        if not value:
            continue
        # gloo takes whole names; NCCL's are prefixes, with = whole names, with ^ all others.
        meant = f"={value}" if name.startswith("GLOO") else value
        named = matching(facts.interfaces, meant)
        if not any(one.up and one.addresses for one in named):
            why = "is down or has no address" if named else "is not there"
            text = f"{name}={value} names an interface that {why}; there are: {have}"
            found.append(fail(_GROUP, text, f"unset {name}, or name one of these"))
        elif several and all(one.name == "lo" for one in named):
            text = f"{name}={value}: other machines cannot be reached over the loopback interface"
            found.append(fail(_GROUP, text, f"unset {name}"))
    chosen = best_interface(facts.interfaces, facts.wanted.get("NCCL_SOCKET_IFNAME"))
    if several and not facts.wanted and not _is_loopback(facts.address):
        chosen = interface_with(facts.interfaces, facts.address) or chosen  # that by which it sends to the others
    if found:
        return found
    if chosen is None:
        text = f"no interface reaches other machines (up, with an address, not of containers); there are: {have}"
        fix = "set up a network interface (ip link; ip addr), or name one by NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME"
        return [fail(_GROUP, text, fix) if several else warn(_GROUP, text, f"for several machines: {fix}")]
    others = [one.name for one in facts.interfaces if one.usable and one.name != chosen.name]
    more = f"; also there: {', '.join(others)} (NCCL_SOCKET_IFNAME chooses)" * bool(others)
    return [ok(_GROUP, f"interface {chosen.name}, {chosen.addresses[0]}{more}")]


def check_infiniband(facts: NetworkFacts) -> list[Finding]:
    """Whether InfiniBand, where there is any, would be used."""
    if not facts.infiniband:
        return []
    active = [port for port in facts.infiniband if port.endswith("ACTIVE")]
    told = ", ".join(facts.infiniband)
    if not active:
        fix = "ask the administrator (ibstat), or take another node; NCCL_IB_DISABLE=1 does without it"
        return [warn(_GROUP, f"InfiniBand is there, but no port is active ({told})", fix)]
    if facts.wanted.get("NCCL_IB_DISABLE") == "1":
        return [warn(_GROUP, f"NCCL_IB_DISABLE=1 leaves InfiniBand unused ({told})", "unset NCCL_IB_DISABLE")]
    return [ok(_GROUP, f"InfiniBand: {', '.join(active)}")]


def check_names(facts: NetworkFacts, *, several: bool, by_name: bool = False) -> list[Finding]:
    """Whether this machine's name, and those of other hosts, resolve to addresses that can be reached."""
    found = []
    address = own_address(facts.interfaces) or "its address"
    loop = [one for one in facts.resolved if _is_loopback(one)]
    # flash-launch itself does without: it asks the kernel by which address and interface another node is reached.
    only = "a run finds the real address itself, other programs may not" if several else "fine for this machine alone"
    if not facts.resolved:
        text = f"this machine's name {facts.host} does not resolve: {only}"
        found.append(warn(_GROUP, text, f"add the line `{address} {facts.host}` to /etc/hosts"))
    elif loop:
        text = f"this machine's name {facts.host} resolves to {loop[0]}: {only}"
        found.append(warn(_GROUP, text, f"change the line of {facts.host} in /etc/hosts to `{address} {facts.host}`"))
    else:
        found.append(ok(_GROUP, f"this machine's name {facts.host} resolves to {facts.resolved[0]}"))
    good = []
    for host, addresses in facts.others.items():
        if not addresses:
            fix = f"give its address instead, or add a line for {host} to /etc/hosts"
            text = f"the name {host} does not resolve here"
            if by_name:
                found.append(fail(_GROUP, f"{text}: the ranks would not find each other", fix))
            else:
                found.append(warn(_GROUP, f"{text}: a run takes the address at which ssh found it", fix))
        elif all(_is_loopback(one) for one in addresses) and not _is_loopback(host):
            text = f"the name {host} resolves to {addresses[0]} here, which is this machine itself"
            found.append(fail(_GROUP, text, f"change the line of {host} in /etc/hosts to its real address"))
        else:
            good.append(host)
    if good:
        told = f"{', '.join(good[:8])}{f' and {len(good) - 8} more' * (len(good) > 8)}"
        found.append(ok(_GROUP, f"the names of the other nodes resolve: {told}"))
    return found


def check_port(facts: NetworkFacts) -> list[Finding]:
    """Whether a free port can be bound and reached at the address that would be used."""
    if facts.port is None:
        fix = "ip addr shows the machine's addresses; `ss -tan | wc -l` whether all ports are taken"
        return [fail(_GROUP, f"no port can be bound at {facts.address}: {facts.port_problem}", fix)]
    if facts.port_problem:
        text = f"a port of this machine cannot be reached at {facts.address} from itself: {facts.port_problem}"
        return [fail(_GROUP, text, "look for a firewall (iptables -L -n; nft list ruleset)")]
    return [ok(_GROUP, f"a free port can be bound and reached at {facts.address}")]


def gather_network(
    environment: Mapping[str, str], hosts: Sequence[str] = (), *, several: bool, own: str = ""
) -> NetworkFacts:
    """The facts of this machine.

    Args:
        hosts: names of all nodes, to be resolved.
        own: which of them this machine is.
        several: try the port at the address that other machines use; else at the loopback address.
    """
    names = ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME", "NCCL_IB_DISABLE")
    wanted = {name: environment[name] for name in names if environment.get(name)}
    interfaces = gather_interfaces()
    host = socket.gethostname()
    resolved = resolve([host, *hosts])
    address = "127.0.0.1"
    if several:
        peer = next((resolved[name][0] for name in hosts if name != own and resolved[name]), None)
        sent_from = _sent_from(peer) if peer is not None else None
        address = sent_from or own_address(interfaces, wanted.get("NCCL_SOCKET_IFNAME")) or address
    port, problem = _try_port(address)
    return NetworkFacts(
        host=host,
        interfaces=interfaces,
        resolved=resolved[host],
        infiniband=gather_infiniband(),
        wanted=wanted,
        others={name: resolved[name] for name in hosts if name != own},
        address=address,
        port=port,
        port_problem=problem,
    )


def resolve(hosts: Sequence[str], timeout: float = _SECONDS) -> dict[str, tuple[str, ...]]:
    """The addresses of names, all asked for at once; those that do not come in time are empty."""
    found: dict[str, tuple[str, ...]] = {}

    def look_up(host: str) -> None:
        try:
            told = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            return
        found[host] = tuple(dict.fromkeys(str(entry[4][0]) for entry in told))

    # A name server that does not answer is waited for up to half a minute, and the call cannot be ended.
    threads = [threading.Thread(target=look_up, args=(host,), daemon=True) for host in dict.fromkeys(hosts)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout)
    return {host: found.get(host, ()) for host in hosts}


def _sent_from(peer: str) -> str | None:
    """The address that this machine sends from to another one: as executors/addresses.py finds it for a run."""
    family = socket.AF_INET6 if ":" in peer else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((peer, 9))  # of a datagram socket: nothing is sent
        except OSError:
            return None
        return str(probe.getsockname()[0])


def _try_port(address: str) -> tuple[int | None, str]:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as listener:
            listener.bind((address, 0))
            listener.listen(1)
            port: int = listener.getsockname()[1]
            try:
                socket.create_connection((address, port), timeout=_SECONDS).close()
            except OSError as error:
                return port, error.strerror or str(error)
            return port, ""
    except OSError as error:
        return None, error.strerror or str(error)


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address.split("%")[0]).is_loopback
    except ValueError:
        return False
