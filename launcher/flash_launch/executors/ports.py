"""Ports for ranks to meet at: chosen by the system, and held until the agent that serves there has ended."""

import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["held_port"]


@contextmanager
def held_port(port: int = 0, *, ipv6: bool = False) -> Iterator[int]:
    """A port that the system gives to nobody else until the end of the context, while a server may listen at it.

    An agent imports torch for seconds before it listens, and other jobs take ports meanwhile. A socket that is bound
    with SO_REUSEADDR and does not listen keeps a port from all who ask for any, on Linux, and not from torch's store,
    which asks for this one in the same way. Elsewhere the port is only looked at.

    Args:
        port: the port; 0: any.
        ipv6: ask for it among those of IPv6.

    Raises:
        OSError: it is taken.
    """
    with socket.socket(socket.AF_INET6 if ipv6 else socket.AF_INET) as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("", port))
        found = int(holder.getsockname()[1])
        if sys.platform != "linux":
            holder.close()
        yield found
