"""`python -m flash_launch.doctor`: the command; with --wire, what a node does when another machine examines it."""

import json
import os
import signal
import sys
import time

from flash_launch.doctor.meeting import Peer, meet
from flash_launch.doctor.probe import Request, probe
from flash_launch.doctor.wire import own_name, pack

__all__ = ["answer"]


def answer(text: str) -> dict[str, object]:
    """What this node says to a request, which is a JSON text."""
    request = json.loads(text)
    # Whatever hangs here, a shared folder for example, ends a little after nobody waits for it any more.
    signal.alarm(int(request["seconds"]) + 15)
    if request["task"] == "meet":
        peers = [Peer.from_json(peer) for peer in request["peers"]]
        reached = meet(own_name(os.environ), peers, str(request["word"]), float(request["seconds"]))
        return {"reached": reached, "time": time.time()}
    facts, findings = probe(Request.from_json(request["request"]))
    return {"facts": facts.to_json(), "findings": [finding.to_json() for finding in findings]}


if __name__ == "__main__":
    if sys.argv[1:] == ["--wire"]:
        try:
            message = answer(sys.stdin.read())
        except Exception as error:  # told in the caller's words, not as a traceback of another machine
            message = {"error": f"{type(error).__name__}: {error}"}
        sys.stdout.write(pack(own_name(os.environ), message))
        sys.exit(0)
    from flash_launch.cli import main

    sys.exit(main(["doctor", *sys.argv[1:]]))
