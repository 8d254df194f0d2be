"""A conversation with a host before ranks start there: JSON objects by ssh, a line each, and no wait without end."""

import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from flash_launch.executors.host_facts import MARK
from flash_launch.executors.hosts import Host
from flash_launch.executors.remote import Pipe, boot_argv, boot_line, passed_on
from flash_launch.executors.ssh import explain
from flash_launch.executors.ssh_connection import ssh_argv

__all__ = ["HostTalk", "talk_to"]

_ANSWERS = ("flash_launch.executors.host_facts",)
_BYE_SECONDS = 3.0
_POLL_SECONDS = 0.05


class HostTalk:
    """What is said to one host, and what it answers."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - it is closed by `end`
        self._process = subprocess.Popen(
            ssh_argv(host, boot_argv()),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            start_new_session=True,  # a Ctrl-C is for the launcher
        )
        self._pipe = Pipe(self._process)
        self._answers: queue.Queue[dict[str, object] | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        self._pipe.write(boot_line(_ANSWERS, passed_on(os.environ), os.getcwd()))

    def say(self, told: object) -> None:
        """Send an object."""
        self._pipe.write(json.dumps(told).encode() + b"\n")

    def answer(self, until: float) -> dict[str, object] | str:
        """The next object it sends; or why none came before `until`, on time.monotonic's clock."""
        while (left := until - time.monotonic()) > 0:
            self._pipe.pump()
            try:
                found = self._answers.get(timeout=min(left, _POLL_SECONDS))
            except queue.Empty:
                continue
            if found is not None:
                return found
            code = self._process.wait()
            return explain(self._host, code, self._words(), sys.executable)
        return explain(self._host, None, self._words(), sys.executable)

    def hang_up(self) -> None:
        """Say that this is all, at which the other side clears up and ends."""
        self._pipe.close()

    def end(self, until: float) -> None:
        """Wait until it has ended, and end it if it does not by itself."""
        try:
            self._process.wait(timeout=max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._said.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                text = line.decode(errors="replace")
                if text.startswith(MARK):
                    self._answers.put(json.loads(text.removeprefix(MARK)))
        self._answers.put(None)

    def _words(self) -> str:
        self._said.seek(0)
        return self._said.read().decode(errors="replace")


@contextmanager
def talk_to(hosts: Sequence[Host]) -> Iterator[Mapping[Host, HostTalk]]:
    """Talk to hosts, all at the same time; at the end of the context nothing of it is left there."""
    talks: dict[Host, HostTalk] = {}
    try:
        for host in hosts:
            talks[host] = HostTalk(host)
        yield talks
    finally:
        until = time.monotonic() + _BYE_SECONDS
        for talk in talks.values():
            talk.hang_up()
        for talk in talks.values():
            talk.end(until)
