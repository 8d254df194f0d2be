"""Runs over ssh: two real sshd's in network namespaces, what is refused before ranks start, and every way to end."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

import pytest
from sshd_hosts import SshdHosts, missing

import flash_launch

pytestmark = pytest.mark.cluster

COMMAND = str(Path(sys.executable).with_name("flash-launch"))
OPTIONS = (
    *("--task", "slow_task:SlowTask", "--strategy", "freeze_unfreeze", "--unfreeze-epoch", "1", "--max-epochs", "3"),
    *("--accelerator", "cpu", "--wandb", "disabled", "--timeout", "60"),
)
SAID = """commas, 'single' and "double" quotes, $HOME `id` \\ back\nand a second line"""
KEY = "0123456789" * 4


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshdHosts]:
    if lacks := missing():
        pytest.skip(f"real sshd's in namespaces need {', '.join(lacks)}: apt-get install openssh-server, run as root")
    hosts = SshdHosts(tmp_path_factory.mktemp("sshd"))
    try:
        hosts.start()
        yield hosts
    finally:
        hosts.stop()


@pytest.fixture
def site(sshd: SshdHosts, tmp_path: Path) -> Iterator[Site]:
    """A folder to run in, with the task; at the end every host is as it was."""
    shutil.copy(Path(__file__).with_name("slow_task.py"), tmp_path)
    here = Site(sshd, tmp_path)
    yield here
    for command in here.started:
        command.kill()
        command.communicate()
    for host in sshd.hosts:
        if host.holder is None or host.holder.poll() is not None:
            sshd.power_on(host)
        sshd.name_hosts(host)


@dataclass
class Site:
    """Where commands are run, and the hosts they use."""

    sshd: SshdHosts
    """The hosts."""
    folder: Path
    """The current folder."""
    started: list[subprocess.Popen[str]] = field(default_factory=list)
    """Commands that were started."""

    def start(self, *argv: str, ssh: str = "", **variables: str) -> subprocess.Popen[str]:
        """Start the command."""
        keep = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "FLASH_LAUNCH_"))}
        own = {"FLASH_LAUNCH_SSH": f"{self.sshd.ssh}{ssh}", "OMP_NUM_THREADS": "1", "WANDB_API_KEY": KEY}
        command = subprocess.Popen(
            [COMMAND, *argv],
            cwd=self.folder,
            env={**keep, **own, **variables},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.started.append(command)
        return command

    def run(self, *argv: str, pause: float = 0, **variables: str) -> tuple[int, str]:
        """Run the command to its end: exit code and output."""
        self.pause(pause)
        command = self.start(*argv, **variables)
        out, _ = command.communicate(timeout=200)
        return command.returncode, out

    def pause(self, seconds: float) -> None:
        """How long the task's steps take."""
        (self.folder / "pause").write_text(str(seconds))

    def steps(self, run: str) -> int:
        """Optimizer steps that a run has done."""
        file = self.folder / run / "metrics.jsonl"
        rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        return max((row.get("step", 0) for row in rows), default=0)

    def running(self, run: str, ssh: str = "", **variables: str) -> subprocess.Popen[str]:
        """Start a run on both hosts, and wait until it trains."""
        self.pause(0.3)
        command = self.start("--hosts", "h1,h2", *OPTIONS, "--output-dir", run, ssh=ssh, **variables)
        SshdHosts.wait(lambda: self.steps(run) > 0 or command.poll() is not None, 120, f"steps of {run} on both hosts")
        assert command.poll() is None, command.communicate()[0]
        return command

    def digests(self, run: str) -> dict[str, str]:
        """Digests of a run's parameters, by rank."""
        digests: dict[str, str] = json.loads((self.folder / run / "summary.json").read_text())["parameter_digest"]
        return digests

    def gone(self, seconds: float) -> bool:
        """Whether all that the command started on the hosts ends in this time."""
        end = time.monotonic() + seconds
        while (left := self.sshd.processes()) and time.monotonic() < end:
            time.sleep(0.1)
        assert not left
        return True


def ended(command: subprocess.Popen[str], seconds: float) -> str:
    """The output of a command that has to end by itself."""
    out, _ = command.communicate(timeout=seconds)
    return out


@pytest.mark.slow
def test_a_run_stopped_and_resumed_equals_one_on_this_machine(site: Site) -> None:
    for host in site.sshd.hosts:  # Debian gives a machine's own name this address; ranks must not use it
        site.sshd.name_hosts(host, **{host.name: "127.0.1.1"})
    command = site.running("over", SAID=SAID, FLASH_LAUNCH_PASS="SAID")
    lines = site.sshd.processes()
    mine = Path(f"/proc/{command.pid}/task/{command.pid}/children").read_text().split()
    lines += [Path(f"/proc/{pid}/cmdline").read_text() for pid in mine]
    assert len([line for line in lines if "flash_launch.worker" in line]) >= 4  # agent and rank on each; data workers
    assert not [line for line in lines if KEY in line or "second line" in line]

    command.send_signal(signal.SIGTERM)
    out = ended(command, 60)
    assert command.returncode == 75, out
    assert "running 2 nodes x 1 rank on h1, h2 (gloo, CPU)" in out
    assert "h1 resolves its own name to 127.0.1.1" in out
    assert "saved step_" in out
    assert site.gone(5)

    site.pause(0)
    code, out = site.run("resume", "over", SAID="other", FLASH_LAUNCH_PASS="SAID")
    assert code == 0, out
    assert "attempt 2 goes on from step_" in out
    code, out = site.run("--nodes", "2", *OPTIONS, "--output-dir", "here")
    assert code == 0, out
    digests = site.digests("over")
    assert len(set(digests.values())) == 1
    assert digests == site.digests("here")

    run = site.folder / "over"
    for node in (0, 1):
        assert json.loads((run / f"attempts/0001/node{node}.json").read_text())["host"] == f"h{node + 1}"
        begin = json.loads((run / f"attempts/0001/node{node}_rank{node}.begin").read_text())
        assert begin["host"] == f"h{node + 1}"
        assert f"SAID={SAID}\n" in (run / f"logs/node{node}_rank{node}.log").read_text()
    assert not [file for file in run.rglob("*") if file.is_file() and KEY.encode() in file.read_bytes()]


def test_each_unfit_host_is_named_before_ranks_start(site: Site) -> None:
    """All that is wrong at once: off, other code and packages, names that lead to loopback, folders not shared."""
    second = site.sshd.hosts[1]
    code = Path(flash_launch.__file__).parent / "executors/echo.py"
    package = next(file for file in metadata.files("safetensors") or () if file.name == "METADATA").locate()
    out_folder = site.folder / "out"
    out_folder.mkdir()
    changed, older = site.folder / "echo_changed", site.folder / "METADATA"
    changed.write_text(code.read_text() + "\n# changed\n")
    version = metadata.version("safetensors")
    older.write_text(Path(str(package)).read_text().replace(f"Version: {version}", "Version: 0.0.1"))
    mounts = {f"--bind {changed}": code, f"--bind {older}": package, "-t tmpfs tmpfs": out_folder}
    try:
        for what, where in mounts.items():
            assert site.sshd.on(second, f"mount {what} {where}").returncode == 0
        site.sshd.name_hosts(second, h1="127.0.1.1", h2="127.0.1.1")
        before = list(site.folder.rglob("*"))
        exit_code, out = site.run("--hosts", "h1,h2,hoff,nobody@h1:22", *OPTIONS, "--output-dir", "out/run")
    finally:
        for where in mounts.values():
            site.sshd.on(second, f"umount {where}")
    assert exit_code == 2, out
    assert "3 of 4 hosts cannot take part, nothing was started:" in out
    told = {host: [line for line in out.splitlines() if line.startswith(f"  {host}: ")] for host in ("h1", "h2")}
    assert not told["h1"]
    assert "no route to it" in out.partition("  hoff: ")[2].splitlines()[0]
    assert "it refuses the login" in out.partition("  nobody@h1:22: ")[2].splitlines()[0]
    packages, files, folder, name = told["h2"]
    assert f"safetensors 0.0.1 (here {version})" in packages
    assert "flash_launch/executors/echo.py differs from here" in files
    assert f"its {out_folder} is another than the one here" in folder
    assert "the name h1 resolves to 127.0.1.1 there" in name
    assert {*site.folder.rglob("*")} == {*before, site.folder / "pause"}
    assert site.gone(5)


def test_a_host_without_this_python_is_named(site: Site) -> None:
    second = site.sshd.hosts[1]
    # the folder of the virtual environment is not there, as on a host that does not share it
    site.sshd.on(second, f"mount -t tmpfs tmpfs {sys.prefix}")
    try:
        code, out = site.run("--hosts", "h1,h2", *OPTIONS, "--output-dir", "run")
    finally:
        site.sshd.on(second, f"umount {sys.prefix}")
    assert code == 2
    assert f"  h2: there is no {sys.executable} there" in out
    assert not (site.folder / "run").exists()


@pytest.mark.slow
def test_a_plan_looks_at_the_hosts_and_starts_nothing(site: Site) -> None:
    code, out = site.run("plan", "--hosts", "h1,h2", *OPTIONS)
    assert code == 0, out
    assert "2 ranks" in out
    assert site.gone(5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGHUP, 129), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_no_process_outlives_the_launcher(site: Site, number: signal.Signals, code: int) -> None:
    command = site.running("run")
    assert len(site.sshd.processes()) >= 6  # supervisor, agent and rank on each
    command.send_signal(number)
    ended(command, 30)
    assert command.returncode == code
    assert site.gone(15)


@pytest.mark.slow
@pytest.mark.parametrize("cut", [SshdHosts.power_off, SshdHosts.unplug], ids=["powered off", "cut off the network"])
def test_a_lost_host_ends_the_run_in_time_and_is_named(site: Site, cut: Callable[..., None]) -> None:
    command = site.running("run", ssh=" -o ServerAliveInterval=1 -o ServerAliveCountMax=3")
    second = site.sshd.hosts[1]
    cut(site.sshd, second)
    try:
        out = ended(command, 60)
        assert command.returncode == 1, out
        assert "h2" in out.partition("failed after")[2].splitlines()[0]
        assert site.gone(30)  # what was cut off sees in the shared folder that the others have ended
    finally:
        if cut is SshdHosts.unplug:
            site.sshd.plug(second)
    if cut is SshdHosts.power_off:
        site.sshd.power_on(second)
    SshdHosts.wait(lambda: site.sshd.on(second, "true").returncode == 0, 20, "h2 to be up again")
    code, out = site.run("resume", "run")
    assert code == 0, out


@pytest.mark.slow
def test_a_failed_rank_is_the_verdict_and_a_resume_may_go_elsewhere(site: Site) -> None:
    (site.folder / "bug").touch()
    code, out = site.run("--hosts", "h1,h2", *OPTIONS, "--output-dir", "run")
    assert code == 1
    assert "rank 1 (node 1, h2) failed first: ValueError: the loss is a banana" in out
    assert site.gone(5)
    (site.folder / "bug").unlink()
    file = site.folder / "hostfile"
    file.write_text("# one per line\nh2 slots=4\n\nh1\n")
    code, out = site.run("resume", "run", "--hostfile", str(file))
    assert code == 0, out
    assert "on h2, h1" in out
    assert "hosts: h2,h1\n" in (site.folder / "run/config.yaml").read_text()


@pytest.mark.slow
def test_a_host_that_goes_between_check_and_start_is_named(site: Site) -> None:
    """The second time that ssh is asked for h2, nobody is there: the others do not wait for it."""
    ssh = site.folder / "ssh_once"
    ssh.write_text(
        f"""#!/bin/sh
case "$*" in *"-- h2 "*)
    [ -e {site.folder}/asked ] && echo "connect to host h2: Connection refused" >&2 && exit 255
    touch {site.folder}/asked
esac
exec {site.sshd.ssh} "$@"
"""
    )
    ssh.chmod(0o755)
    code, out = site.run("--hosts", "h1,h2", *OPTIONS, "--output-dir", "run", FLASH_LAUNCH_SSH=str(ssh))
    assert code == 1, out
    assert "h2 never began: connect to host h2: Connection refused" in out
    assert site.gone(5)


@pytest.mark.slow
def test_a_script_stops_and_resumes(site: Site) -> None:
    shutil.copy(Path(__file__).parents[1] / "script/any_loop.py", site.folder)
    options = ("--accelerator", "cpu", "--wandb", "offline", "--timeout", "60", "--output-dir", "run")
    site.pause(0.5)
    command = site.start("script", "--hosts", "h1,h2", *options, "any_loop.py", SAID)
    at = [site.folder / f"run/at{rank}" for rank in range(2)]
    SshdHosts.wait(lambda: all(map(Path.exists, at)) or command.poll() is not None, 120, "the first step")
    command.send_signal(signal.SIGTERM)
    assert command.wait(120) == 75, command.communicate()[0]
    code, out = site.run("resume", "run")
    assert code == 0, out
    log = (site.folder / "run/logs/node1_rank1.log").read_text()
    assert [f"rank 1 of attempt {attempt}, {[SAID]}" in log for attempt in (1, 2)] == [True, True]
    assert not any(
        KEY in path.read_text(errors="replace") for path in (site.folder / "run").rglob("*") if path.is_file()
    )
