"""A held port is given to nobody who asks for any, and the server it is held for may listen at it."""

from __future__ import annotations

import socket
import sys
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

import pytest
from torch.distributed import TCPStore

from flash_launch.executors.ports import held_port

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems cannot hold a port")

RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")


def any_port() -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_held_ports_are_given_to_nobody_else() -> None:
    low, high = map(int, RANGE.read_text().split())
    with ExitStack() as stack:
        held = {stack.enter_context(held_port()) for _ in range(50)}
        # the system gives ports out at random: were they not held, about ten of them would come up
        assert not held & {any_port() for _ in range((high - low) // 5)}


def test_the_store_of_torch_listens_at_a_held_port_and_then_nobody_can_hold_it() -> None:
    with held_port() as port:
        store = TCPStore("127.0.0.1", port, 1, is_master=True, timeout=timedelta(seconds=10), multi_tenant=True)
        client = TCPStore("127.0.0.1", port, 1, is_master=False, timeout=timedelta(seconds=10))
        store.set("said", "by the server")
        assert client.get("said") == b"by the server"
        with pytest.raises(OSError, match="in use"), held_port(port):
            pass
