"""Hosts by name, what travels to them, and how what ssh says is told; no ssh server is needed here."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from flash_launch.config import RunConfig
from flash_launch.errors import ConfigError
from flash_launch.executors.hosts import Host, choose_hosts, parse_hosts, read_hostfile
from flash_launch.executors.remote import boot_argv, boot_line, passed_on
from flash_launch.executors.ssh import explain
from flash_launch.executors.ssh_connection import ssh_argv

CONFIG = RunConfig()


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("a,b", [Host("a"), Host("b")]),
        (" gpu-01.site , me@gpu02:2222 ", [Host("gpu-01.site"), Host("gpu02", "me", 2222)]),
        ("10.0.0.1,::1,[fe80::2]:2200", [Host("10.0.0.1"), Host("::1"), Host("fe80::2", port=2200)]),
        ("a:2200,a:2201", [Host("a", port=2200), Host("a", port=2201)]),
    ],
)
def test_lists_of_hosts(text: str, hosts: list[Host]) -> None:
    assert list(parse_hosts(text)) == hosts
    assert parse_hosts(",".join(map(str, hosts))) == tuple(hosts)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,,b", "host 2 is empty"),
        ("a,b,A", "names a more than once"),
        ("me@a,a", "more than once"),
        ("a:8", "8 is no such port. The number of ranks is given by --procs-per-node"),
        ("a:99999", "99999 is no such port"),
        ("a:", "a host is HOST, USER@HOST or HOST:PORT"),
        ("a b", "was given 'a b'"),
        ("-oProxyCommand=x", "a host is HOST"),
        ("-l@a", "a host is HOST"),
        ("$(id)", "a host is HOST"),
        ("gpu[1-4]", "ranges as in gpu[1-4] are not expanded"),
    ],
)
def test_what_is_no_list_of_hosts(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_hosts(text)
    assert message in str(error.value)


def test_hostfiles(tmp_path: Path) -> None:
    file = tmp_path / "hosts"
    file.write_text("# nodes\n\ngpu01 slots=8\n  me@gpu02   # the second\n")
    assert read_hostfile(file) == (Host("gpu01"), Host("gpu02", "me"))
    file.write_text("gpu01\ngpu:2\n")
    with pytest.raises(ConfigError, match="line 2"):
        read_hostfile(file)
    file.write_text("# none\n")
    with pytest.raises(ConfigError, match="names no host"):
        read_hostfile(file)
    with pytest.raises(ConfigError, match="No such file"):
        read_hostfile(tmp_path / "missing")


def test_the_number_of_nodes_is_that_of_the_hosts(tmp_path: Path) -> None:
    config, hosts = choose_hosts(CONFIG.replace(hosts="a,b"), ["--hosts", "a,b"])
    assert (config.nodes, config.hosts, hosts) == (2, "a,b", (Host("a"), Host("b")))
    assert choose_hosts(CONFIG.replace(nodes=3), ["--nodes", "3"]) == (CONFIG.replace(nodes=3), ())
    with pytest.raises(ConfigError, match="--nodes is 3, but 2 hosts are named, a, b"):
        choose_hosts(CONFIG.replace(hosts="a,b", nodes=3), ["--hosts", "a,b", "--nodes=3"])
    with pytest.raises(ConfigError, match="were both given"):
        choose_hosts(CONFIG.replace(hosts="a,b", hostfile="f"), ["--hosts", "a,b", "--hostfile", "f"])

    # a run goes on, with its configuration: on other hosts, more of them, from a file, on this machine
    kept = config.replace(hosts="c")
    assert choose_hosts(kept, ["--config", "x", "--hosts", "c"])[0].nodes == 1
    (tmp_path / "f").write_text("d\ne\nf\n")
    config, hosts = choose_hosts(kept.replace(hostfile=str(tmp_path / "f")), ["--hostfile", str(tmp_path / "f")])
    assert (config.nodes, config.hosts, config.hostfile) == (3, "d,e,f", None)
    assert choose_hosts(kept.replace(hosts=""), ["--hosts="])[1] == ()


def test_what_travels() -> None:
    environment = {
        **{"NCCL_DEBUG": "INFO", "WANDB_API_KEY": "secret", "FLASH_LAUNCH_ANY": "1", "PYTHONPATH": "/a:/b"},
        **{"PATH": "/bin", "HOME": "/root", "CUDA_VISIBLE_DEVICES": "0", "FLASH_LAUNCH_PARENT": "7", "LD_PRELOAD": "x"},
        **{"CUDA_LAUNCH_BLOCKING": "1", "MY_ONE": "1", "MY_OTHER": "2", "YOURS": "3", "NCCLX": "4"},
    }
    always = {"NCCL_DEBUG", "WANDB_API_KEY", "FLASH_LAUNCH_ANY", "PYTHONPATH", "CUDA_LAUNCH_BLOCKING"}
    assert set(passed_on(environment)) == always
    more = passed_on({**environment, "FLASH_LAUNCH_PASS": "MY_*, YOURS,CUDA_VISIBLE_DEVICES,*"})
    assert set(more) == always | {"FLASH_LAUNCH_PASS", "MY_ONE", "MY_OTHER", "YOURS", "CUDA_VISIBLE_DEVICES"}


@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_values_and_control_lines_survive_a_shell(shell: str, tmp_path: Path) -> None:
    """The remote shell gets one string; all else goes by stdin, of which the program finds what is not its own."""
    values = {"SAID": "a,b 'c' \"d\" $HOME `id` \\ é\n\tend", "EMPTY": ""}
    (tmp_path / "shown.py").write_text(
        "import json, os, sys\n"
        "print(json.dumps([sys.argv[1:], os.getcwd(), os.environ['SAID'], os.environ['EMPTY'], sys.stdin.read()]))\n"
    )
    line = boot_line(["shown", "an 'argument'"], {**values, "PYTHONPATH": str(tmp_path)}, str(tmp_path))
    command = ssh_argv(Host("a"), boot_argv(), {})[-1]
    done = subprocess.run([shell, "-c", command], input=line + b"stop\nalive\n", capture_output=True, timeout=60)
    assert json.loads(done.stdout) == [
        ["an 'argument'"],
        str(tmp_path),
        values["SAID"],
        "",
        "stop\nalive\n",
    ], done.stderr
    done = subprocess.run([shell, "-c", command], input=b"", capture_output=True, timeout=60)
    assert done.returncode != 0


def test_the_command_line_of_ssh() -> None:
    argv = ssh_argv(Host("gpu", "me", 2222), ["/a b/python", "-c", "x"], {"FLASH_LAUNCH_SSH": "ssh -F 'my config'"})
    assert argv[:4] == ["ssh", "-F", "my config", "-T"]
    assert argv[-5:] == ["-p", "2222", "--", "me@gpu", "exec '/a b/python' -c x"]
    assert "BatchMode=yes" in argv
    assert shlex.join(ssh_argv(Host("::1"), ["x"], {})).startswith("ssh -T ")


@pytest.mark.parametrize(
    ("code", "said", "told"),
    [
        (255, "ssh: connect to host a port 22: Connection timed out", "firewall"),
        (255, "Host key verification failed.", "ssh-keyscan a >>"),
        (255, "root@a: Permission denied (publickey).", "ssh-copy-id a"),
        (255, "ssh: Could not resolve hostname a: Name or service not known", "spelling"),
        (255, "kex_exchange_identification: banner", "ssh failed (kex_exchange_identification: banner)"),
        (127, "sh: 1: exec: /venv/bin/python: not found", "there is no /venv/bin/python there"),
        (1, "/venv/bin/python: Error: No module named flash_launch", "flash-launch is not installed there"),
        (1, "ImportError: libz.so.1", "Python did not run there (ImportError: libz.so.1)"),
        (None, "", "it gave no answer in time"),
    ],
)
def test_what_ssh_says_is_explained(code: int | None, said: str, told: str) -> None:
    assert told in explain(Host("a"), code, said, "/venv/bin/python")


def test_hosts_are_looked_at_without_heavy_imports() -> None:
    code = "import sys, flash_launch.executors.host_facts as h; h.package_versions(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "False\n", done.stderr
