"""Addresses between nodes: where the first node is reached, by which of this node's addresses and interfaces."""

import array
import fcntl
import ipaddress
import socket
import struct
import sys
from collections.abc import Sequence

from flash_launch.errors import LaunchError

__all__ = ["head_address", "interface_addresses", "interface_of", "local_address", "loopback", "source_address"]

_SIOCGIFADDR = 0xC0206921 if sys.platform == "darwin" else 0x8915
_LOOPBACK = ("lo", "lo0")
"""Of Linux, and of macOS and the BSDs."""
_ANY_PORT = 9


def head_address(nodes: Sequence[str], node: int) -> str:
    """The address at which the first of these nodes is reached from node number `node`.

    Raises:
        LaunchError: its name does not resolve here, or only to an address of this machine itself.
    """
    head, here = nodes[0], nodes[node]
    addresses = _resolve(head, here)
    if len(set(nodes)) == 1 or _is_address(head):
        return addresses[0]
    if node == 0:
        # Its own name may resolve to 127.0.1.1, as Debian has it: the address by which it reaches the others is real.
        return local_address(nodes, 0)
    real = [address for address in addresses if not ipaddress.ip_address(address).is_loopback]
    if not real:
        raise LaunchError(
            f"node {here}: the name of the first node, {head}, resolves to {', '.join(addresses)} here, which is this "
            f"machine itself: mend /etc/hosts or DNS, so that {head} is the address that other nodes reach it at"
        )
    return real[0]


def local_address(nodes: Sequence[str], node: int) -> str:
    """This node's own address, as the others see it: the one it sends from when it sends to another of them.

    Raises:
        LaunchError: no other node's name resolves here, or there is no way to it.
    """
    here = nodes[node]
    peer = next((name for name in nodes if name != here), here)
    addresses = _resolve(peer, here)
    address = next((one for one in addresses if not ipaddress.ip_address(one).is_loopback), addresses[0])
    return source_address(address, here, peer)


def source_address(address: str, here: str, peer: str = "the first node") -> str:
    """The address that this machine sends from when it sends to another.

    Args:
        address: the other's.
        here: this node's name, for the message.
        peer: the other's.

    Raises:
        LaunchError: there is no way to it.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((address, _ANY_PORT))  # of a datagram socket: nothing is sent
        except OSError as error:
            raise LaunchError(f"node {here}: there is no way to {peer} at {address}: {error.strerror}") from error
        return str(probe.getsockname()[0])


def interface_of(address: str) -> str | None:
    """The network interface that has an IPv4 address; None where that is not known."""
    found = interface_addresses().get(address)
    return loopback() if found is None and address.startswith("127.") else found


def loopback() -> str | None:
    """The interface by which this machine reaches itself; None where that is not known."""
    return next((name for _, name in socket.if_nameindex() if name in _LOOPBACK), None)


def interface_addresses() -> dict[str, str]:
    """This machine's interfaces by their IPv4 addresses."""
    found: dict[str, str] = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            request = array.array("B", struct.pack("256s", name.encode()[:15]))
            try:
                fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request)
            except OSError:
                continue  # an interface without an IPv4 address
            found[socket.inet_ntoa(request.tobytes()[20:24])] = name
    return found


def _resolve(name: str, here: str) -> list[str]:
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise LaunchError(f"node {here}: the name of node {name} does not resolve here: {error}") from error
    addresses = list(dict.fromkeys(str(one[4][0]) for one in found))
    return sorted(addresses, key=lambda one: ":" in one)  # IPv4 first, which gloo and NCCL take without more ado


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
