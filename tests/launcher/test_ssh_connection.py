"""What is said when ssh fails holds commands that can be typed: with user, port and address, for runs and doctor."""

from __future__ import annotations

import shlex

import pytest

from flash_launch.doctor.remote import explain_ssh
from flash_launch.executors.hosts import Host, parse_hosts
from flash_launch.executors.ssh import explain
from flash_launch.executors.ssh_connection import by_hand, explain_connection

UNKNOWN_KEY = "No ED25519 host key is known\nHost key verification failed."
CHANGED_KEY = "@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @\nHost key verification failed."
DENIED = "Permission denied (publickey)."
REFUSED = "ssh: connect to host h port 22: Connection refused"
SAYINGS = {"unknown": UNKNOWN_KEY, "changed": CHANGED_KEY, "denied": DENIED, "refused": REFUSED}

COMMANDS = {
    ("gpu2", "unknown"): ["ssh gpu2 once", "ssh-keyscan gpu2 >>"],
    ("gpu2", "changed"): ["ssh-keygen -R gpu2,", "ssh gpu2 once"],
    ("gpu2", "denied"): ["ssh-copy-id gpu2,"],
    ("gpu2", "refused"): ["listens at: gpu2:PORT"],
    ("me@gpu2:2222", "unknown"): ["ssh -p 2222 me@gpu2 once", "ssh-keyscan -p 2222 gpu2 >>"],
    ("me@gpu2:2222", "changed"): ["ssh-keygen -R '[gpu2]:2222',", "ssh -p 2222 me@gpu2 once"],
    ("me@gpu2:2222", "denied"): ["ssh-copy-id -p 2222 me@gpu2,"],
    ("me@gpu2:2222", "refused"): ["no ssh server answers there at port 2222", "listens at: me@gpu2:PORT"],
    ("me@gpu2:22", "changed"): ["ssh-keygen -R gpu2,", "ssh -p 22 me@gpu2 once"],
    ("me@fe80::1", "unknown"): ["ssh me@fe80::1 once", "ssh-keyscan fe80::1 >>"],
    ("me@fe80::1", "refused"): ["listens at: me@[fe80::1]:PORT"],
    ("me@[fe80::1]:2222", "unknown"): ["ssh -p 2222 me@fe80::1 once", "ssh-keyscan -p 2222 fe80::1 >>"],
    ("me@[fe80::1]:2222", "changed"): ["ssh-keygen -R '[fe80::1]:2222',"],
    ("me@[fe80::1]:2222", "denied"): ["ssh-copy-id -p 2222 me@fe80::1,"],
}


@pytest.mark.parametrize(("written", "what"), COMMANDS)
def test_the_fix_can_be_typed_for_any_way_to_write_a_host(written: str, what: str) -> None:
    (host,) = parse_hosts(written)
    of_run = explain(host, 255, SAYINGS[what], "python")
    of_doctor = ": ".join(explain_ssh(host, 255, SAYINGS[what], "python"))
    for command in COMMANDS[written, what]:
        assert command in of_run
        assert command in of_doctor
    assert of_doctor == f"{host}: {of_run}"


def test_what_fails_for_another_reason_is_tried_with_the_port_too() -> None:
    host = Host("gpu2", "me", 2222)
    assert "ssh -p 2222 me@gpu2 true" in explain(host, 255, "kex: {odd} banner", "python")
    assert "(kex: {odd} banner)" in explain(host, 255, "kex: {odd} banner", "python")
    for code in (None, 1):
        assert "ssh -p 2222 me@gpu2 python -V" in explain(host, code, "ImportError", "python")
    assert explain_ssh(host, 1, "MemoryError", "python")[1] == "try by hand: ssh -p 2222 me@gpu2 python -V"


def test_the_users_ssh_command_is_what_is_typed() -> None:
    environment = {"FLASH_LAUNCH_SSH": "ssh -F 'my config'"}
    host = Host("gpu2", port=2222)
    assert shlex.split(by_hand(host, environment)) == ["ssh", "-F", "my config", "-p", "2222", "gpu2"]
    assert "ssh -F 'my config' -p 2222 gpu2 once" in explain_connection(host, UNKNOWN_KEY, environment)[1]
