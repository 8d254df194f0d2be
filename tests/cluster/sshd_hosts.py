"""Hosts with real sshd's on this machine: each in network, mount and process namespaces of its own, on one bridge.

They are h1, h2, ... at 10.78.0.11, ...; each has its own /etc/hosts, and shares all other files. Needs root.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

SUBNET = "10.78.0"
SSHD = "/usr/sbin/sshd"
_BRIDGE = "flbr1"
_MARK = "FLASH_LAUNCH_TEST"

_SSHD_CONFIG = """
ListenAddress {address}:22
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/user_key.pub
PermitRootLogin yes
PasswordAuthentication no
StrictModes no
UsePAM no
PidFile none
LogLevel ERROR
MaxStartups 100
"""
_SSH_CONFIG = """
Host h*
    IdentityFile {folder}/user_key
    IdentitiesOnly yes
    UserKnownHostsFile {folder}/known_hosts
    StrictHostKeyChecking yes
    HostKeyAlias all
"""


def missing() -> list[str]:
    """What is not here that these hosts need."""
    tools = [name for name in ("ssh", "ssh-keygen", "ip", "unshare") if shutil.which(name) is None]
    return [
        *tools,
        *([] if Path(SSHD).exists() else ["sshd"]),
        *([] if os.geteuid() == 0 else ["root"]),
    ]


@dataclass
class SshdHost:
    """One host."""

    name: str
    """Its name, which the others and the ssh client know."""
    address: str
    """Its address."""
    holder: subprocess.Popen[bytes] | None = None
    """The process that holds its namespaces."""


@dataclass
class SshdHosts:
    """Hosts that run."""

    folder: Path
    """Keys and configurations."""
    count: int = 2
    """How many."""
    hosts: list[SshdHost] = field(default_factory=list)
    """They."""

    @property
    def ssh(self) -> str:
        """What FLASH_LAUNCH_SSH is to be."""
        return f"ssh -F {shlex.quote(str(self.folder / 'ssh_config'))}"

    def start(self) -> None:
        """Make keys, bridge and hosts; ready when all answer."""
        self.folder.mkdir(parents=True, exist_ok=True)
        Path("/run/sshd").mkdir(exist_ok=True)
        for key in ("host_key", "user_key"):
            _run(f"ssh-keygen -q -t ed25519 -N '' -f {self.folder / key}")
        public = (self.folder / "host_key.pub").read_text()
        (self.folder / "known_hosts").write_text(f"all {public}")
        self.hosts = [SshdHost(f"h{i}", f"{SUBNET}.{10 + i}") for i in range(1, self.count + 1)]
        config = _SSH_CONFIG.format(folder=self.folder)
        config += "".join(f"Host {host.name}\n    HostName {host.address}\n" for host in self.hosts)
        config += f"Host hoff\n    HostName {SUBNET}.99\n    ConnectTimeout 2\n"
        (self.folder / "ssh_config").write_text(config)
        (self.folder / "nsswitch.conf").write_text("passwd: files\ngroup: files\nhosts: files\n")  # no DNS, no waiting
        subprocess.run(["ip", "link", "del", _BRIDGE], capture_output=True)
        _run(f"ip link add {_BRIDGE} type bridge")
        _run(f"ip addr add {SUBNET}.1/24 dev {_BRIDGE}")
        _run(f"ip link set {_BRIDGE} up")
        for host in self.hosts:
            self.power_on(host)
        for host in self.hosts:
            self.wait(lambda host=host: self.on(host, "true").returncode == 0, 20, f"sshd of {host.name}")  # type: ignore[misc]

    def power_on(self, host: SshdHost) -> None:
        """Start a host, also after `power_off`."""
        self.name_hosts(host)
        config = self.folder / f"sshd_config_{host.name}"
        config.write_text(_SSHD_CONFIG.format(folder=self.folder, address=host.address))
        script = f"""
            mount --bind {self.hosts_file(host)} /etc/hosts
            mount --bind {self.folder}/nsswitch.conf /etc/nsswitch.conf
            hostname {host.name}; ip link set lo up
            while ! ip link show veth0 >/dev/null 2>&1; do sleep 0.02; done
            ip addr add {host.address}/24 dev veth0; ip link set veth0 up; ip route add default via {SUBNET}.1
            exec {SSHD} -D -e -f {config}"""
        flags = ["--net", "--uts", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        with (self.folder / "daemons.log").open("ab") as log:
            host.holder = subprocess.Popen(
                ["unshare", *flags, "sh", "-c", script],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={"PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"},
            )
        inside = _child_of(host.holder.pid)
        subprocess.run(["ip", "link", "del", f"fs{host.name}"], capture_output=True)
        _run(f"ip link add fs{host.name} type veth peer name veth0 netns {inside}")
        _run(f"ip link set fs{host.name} master {_BRIDGE} up")

    def power_off(self, host: SshdHost) -> None:
        """End everything on a host at once, its network first, so that nobody hears of it."""
        subprocess.run(["ip", "link", "del", f"fs{host.name}"], capture_output=True)
        if host.holder is not None:
            host.holder.kill()
            host.holder.wait()

    def unplug(self, host: SshdHost) -> None:
        """Cut a host's network; what runs there goes on."""
        _run(f"ip link set fs{host.name} down")

    def plug(self, host: SshdHost) -> None:
        """Undo `unplug`."""
        _run(f"ip link set fs{host.name} up")

    def stop(self) -> None:
        """End all."""
        for host in self.hosts:
            self.power_off(host)
        subprocess.run(["ip", "link", "del", _BRIDGE], capture_output=True)

    def hosts_file(self, host: SshdHost) -> Path:
        """The file that is /etc/hosts there."""
        return self.folder / f"hosts_{host.name}"

    def name_hosts(self, host: SshdHost, **addresses: str) -> None:
        """Write a host's /etc/hosts, with other addresses for some names."""
        names = {one.name: one.address for one in self.hosts} | addresses
        lines = "".join(f"{address} {name}\n" for name, address in names.items())
        self.hosts_file(host).write_text(f"127.0.0.1 localhost\n{lines}")

    def on(self, host: SshdHost, command: str) -> subprocess.CompletedProcess[str]:
        """Run a command on a host."""
        return subprocess.run(
            [*shlex.split(self.ssh), "-o", "ConnectTimeout=2", host.name, command],
            capture_output=True,
            text=True,
            timeout=20,
            stdin=subprocess.DEVNULL,
        )

    def processes(self) -> list[str]:
        """Command lines of Python processes on all hosts."""
        found = []
        spaces = {
            self._space(_child_of(host.holder.pid)) for host in self.hosts if host.holder and not host.holder.poll()
        }
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    if self._space(int(entry.name)) in spaces and "python" in line:
                        found.append(line)
        return found

    @staticmethod
    def _space(pid: int) -> int:
        return os.stat(f"/proc/{pid}/ns/pid").st_ino

    @staticmethod
    def wait(holds: Callable[[], bool], seconds: float, what: str) -> None:
        """Wait until something holds."""
        end = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < end, f"waited {seconds} s for {what} in vain"
            time.sleep(0.1)


def _run(command: str | Sequence[str]) -> None:
    argv = shlex.split(command) if isinstance(command, str) else command
    subprocess.run(argv, check=True, capture_output=True)


def _child_of(pid: int) -> int:
    for _ in range(200):
        with contextlib.suppress(OSError):
            if children := Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
                return int(children[0])
        time.sleep(0.02)
    raise AssertionError(f"process {pid} has no child")


if __name__ == "__main__":  # to try things by hand: python tests/cluster/sshd_hosts.py FOLDER, until Ctrl-C
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    hosts = SshdHosts(Path(sys.argv[1]))
    try:
        hosts.start()
        print(f"export FLASH_LAUNCH_SSH={shlex.quote(hosts.ssh)}", flush=True)
        while True:
            time.sleep(1)
    finally:
        hosts.stop()
