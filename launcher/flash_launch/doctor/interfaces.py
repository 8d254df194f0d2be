"""Network interfaces of this machine, without any package; and which of them NCCL and gloo would use."""

import ipaddress
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flash_launch.executors.addresses import interface_addresses

__all__ = [
    "Interface",
    "best_interface",
    "gather_infiniband",
    "gather_interfaces",
    "interface_with",
    "matching",
    "own_address",
]

_NEVER = ("lo", "docker", "virbr", "br-", "cni", "flannel", "lxc", "podman", "vnet")
_SYS_NET, _SYS_INFINIBAND = Path("/sys/class/net"), Path("/sys/class/infiniband")


@dataclass(frozen=True)
class Interface:
    """One network interface."""

    name: str
    """For example eth0."""
    addresses: tuple[str, ...] = ()
    """Its addresses, IPv4 first, without those that are valid on one link only."""
    up: bool = True
    """Whether it carries traffic."""

    @property
    def usable(self) -> bool:
        """Whether other machines can be reached over it: up, with an address, no bridge of containers or loopback."""
        return self.up and bool(self.addresses) and not self.name.startswith(_NEVER)


def best_interface(interfaces: Sequence[Interface], wanted: str | None = None) -> Interface | None:
    """The interface that would be used.

    Args:
        wanted: NCCL_SOCKET_IFNAME or GLOO_SOCKET_IFNAME; None: not set.
    """
    if wanted:
        return next((one for one in matching(interfaces, wanted) if one.up and one.addresses), None)
    usable = [one for one in interfaces if one.usable]
    # NCCL takes InfiniBand's interfaces first, too.
    return next((one for one in usable if one.name.startswith("ib")), usable[0] if usable else None)


def matching(interfaces: Sequence[Interface], wanted: str) -> list[Interface]:
    """The interfaces that NCCL_SOCKET_IFNAME names: prefixes; with = whole names; with ^ all others."""
    others, exact = wanted.startswith("^"), wanted.lstrip("^").startswith("=")
    names = [name.strip() for name in wanted.lstrip("^").removeprefix("=").split(",") if name.strip()]

    def named(one: Interface) -> bool:
        return one.name in names if exact else one.name.startswith(tuple(names))

    return [one for one in interfaces if named(one) != others]


def own_address(interfaces: Sequence[Interface], wanted: str | None = None) -> str | None:
    """The address at which other machines would reach this one."""
    found = best_interface(interfaces, wanted)
    return found.addresses[0] if found is not None else None


def interface_with(interfaces: Sequence[Interface], address: str) -> Interface | None:
    """The interface that has an address."""
    return next((one for one in interfaces if address in one.addresses), None)


def gather_interfaces() -> tuple[Interface, ...]:
    """The interfaces of this machine, in the order of the kernel."""
    sixes: dict[str, list[str]] = {}
    try:
        lines = Path("/proc/net/if_inet6").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        address, _, _, scope, _, name = line.split()
        if scope != "20":  # valid on its link only
            sixes.setdefault(name, []).append(str(ipaddress.IPv6Address(int(address, 16))))
    fours = {name: address for address, name in interface_addresses().items()}
    return tuple(
        Interface(name, (*((fours[name],) if name in fours else ()), *sixes.get(name, ())), _state(name) != "down")
        for _, name in socket.if_nameindex()
    )


def gather_infiniband() -> tuple[str, ...]:
    """InfiniBand and RoCE ports, each as "mlx5_0/1: ACTIVE"."""
    found = []
    for port in sorted(_SYS_INFINIBAND.glob("*/ports/*")):
        try:
            state = (port / "state").read_text().split(":")[-1].strip()
        except OSError:
            state = "unknown"
        found.append(f"{port.parent.parent.name}/{port.name}: {state}")
    return tuple(found)


def _state(name: str) -> str:
    try:
        return (_SYS_NET / name / "operstate").read_text().strip()  # loopback and many virtual ones say "unknown"
    except OSError:
        return "unknown"
