"""All nodes at once try to reach a port of every other one: what NCCL and gloo will do, and firewalls prevent."""

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Peer", "meet"]

_TRY_SECONDS = 2.0


@dataclass(frozen=True)
class Peer:
    """A node, as the others reach it."""

    name: str
    """The name by which the caller knows it."""
    address: str
    """Its address."""
    port: int
    """A port that was free there a moment ago."""

    def to_json(self) -> dict[str, object]:
        """The peer as an object."""
        return {"name": self.name, "address": self.address, "port": self.port}

    @classmethod
    def from_json(cls, values: Mapping[str, object]) -> "Peer":
        """The peer in an object."""
        return cls(str(values["name"]), str(values["address"]), int(str(values["port"])))


def meet(own: str, peers: Sequence[Peer], word: str, seconds: float) -> dict[str, str]:
    """Listen at the own port, and connect to all others until each has answered or the time is over.

    Args:
        own: the name of this node; it is one of `peers`.
        word: what all nodes of this meeting say, so that another program at a port is not taken for a node.

    Returns:
        For each other node "" if it was reached, else why it was not.
    """
    return asyncio.run(_meet(own, peers, word, seconds))


async def _meet(own: str, peers: Sequence[Peer], word: str, seconds: float) -> dict[str, str]:
    this = next(peer for peer in peers if peer.name == own)
    others = [peer for peer in peers if peer.name != own]
    came: set[str] = set()
    all_came = asyncio.Event()
    end = asyncio.get_running_loop().time() + seconds

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.TimeoutError, ValueError):
            line = await asyncio.wait_for(reader.readline(), _TRY_SECONDS)
            said, _, name = line.decode(errors="replace").strip().partition(" ")
            if said == word:
                writer.write(f"{word} {own}\n".encode())
                await writer.drain()
                came.add(name)
        writer.close()
        if len(came) >= len(others):
            all_came.set()

    try:
        # As torch's store does: on all interfaces.
        server = await asyncio.start_server(greet, "::" if ":" in this.address else "0.0.0.0", this.port)
    except OSError as error:
        return {peer.name: f"{own} could not listen at port {this.port}: {error.strerror}" for peer in others}
    async with server:
        results = await asyncio.gather(*(_reach(peer, own, word, end) for peer in others))
        left = end - asyncio.get_running_loop().time()
        if others and left > 0:  # the others may not have begun yet
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(all_came.wait(), left)
    return dict(zip((peer.name for peer in others), results, strict=True))


async def _reach(peer: Peer, own: str, word: str, end: float) -> str:
    why = "the time was over"
    while (left := end - asyncio.get_running_loop().time()) > 0:
        try:
            return await asyncio.wait_for(_say(peer, own, word), min(_TRY_SECONDS, left))
        except TimeoutError:
            why = "no answer: a firewall drops it, or there is no route"
        except OSError as error:
            why = (
                "refused: a firewall rejects it, or nothing listens there"
                if isinstance(error, ConnectionRefusedError)
                else str(error.strerror)
            )
        await asyncio.sleep(0.1)
    return why


async def _say(peer: Peer, own: str, word: str) -> str:
    reader, writer = await asyncio.open_connection(peer.address, peer.port)
    try:
        writer.write(f"{word} {own}\n".encode())
        await writer.drain()
        said, _, name = (await reader.readline()).decode(errors="replace").strip().partition(" ")
    finally:
        writer.close()
    if said != word:
        return "another program answers there"
    return "" if name == peer.name else f"{name} answers there: both have the address {peer.address}"
