"""A script in one process: it finds what `python` gives it, and its exit code counts as its run's."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

SAYS = """
import json, os, sys, atexit
class Thing: ...
import pickle
pickle.loads(pickle.dumps(Thing()))
atexit.register(lambda: print("left", Thing.__name__))
print(json.dumps([sys.argv, sys.path[0], os.getcwd(), __name__, __file__, __spec__ and __spec__.name,
                  sys.modules["__main__"].__dict__ is globals(), os.environ.get("WANDB_RUN_ID")]))
"""


def guarded(folder: Path, *argv: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "flash_launch.rank_guard", "--script", str(folder), *argv]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("FLASH_LAUNCH", "RANK"))}
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, env={**environment, **variables}, cwd="/"
    )


def plain(folder: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    command = [sys.executable, *argv]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=folder, env=environment)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a b").mkdir()
    (tmp_path / "a b/says.py").write_text(SAYS)
    (tmp_path / "linked.py").symlink_to("a b/says.py")
    return tmp_path


@pytest.mark.parametrize(
    "argv", [("a b/says.py", "--lr", "it's 1"), ("linked.py",), ("-m", "linked", "-x")], ids=["file", "link", "module"]
)
def test_it_is_as_with_python(folder: Path, argv: tuple[str, ...]) -> None:
    ours, pythons = guarded(folder, *argv), plain(folder, *argv)
    assert ours.stderr == pythons.stderr == ""
    assert ours.stdout == pythons.stdout
    assert ours.stdout.endswith("left Thing\n")


def test_only_rank_0_records_as_the_run(folder: Path) -> None:
    found = [
        json.loads(guarded(folder, "linked.py", RANK=rank, WANDB_RUN_ID="x").stdout.split("\n")[0]) for rank in "01"
    ]
    assert [one[-1] for one in found] == ["x", None]


@pytest.mark.parametrize(
    ("end", "code", "told"),
    [
        ("", 0, {}),
        ("sys.exit()", 0, {}),
        ("sys.exit(0)", 0, {}),
        ("raise SystemExit(75)", 0, {"exit": 75}),
        ("sys.exit(3)", 3, {"failure": 3}),
        ("sys.exit('no data')", 1, {"failure": 1}),
        ("1 / 0", 1, {"failure": None}),
    ],
)
def test_exit_codes(tmp_path: Path, end: str, code: int, told: dict[str, object]) -> None:
    (tmp_path / "script.py").write_text(f"import sys\n{end}\n")
    for name in ("ends", "logs"):
        (tmp_path / name).mkdir()
    variables = {"FLASH_LAUNCH_ENDS": str(tmp_path / "ends"), "FLASH_LAUNCH_LOGS": str(tmp_path / "logs"), "RANK": "1"}
    assert guarded(tmp_path, "script.py", **variables).returncode == code
    kinds = {path.suffix[1:]: path for path in (tmp_path / "ends").glob("node0_rank1.*")}
    found = {
        kind: json.loads(kinds[kind].read_text()).get("exit_code") for kind in ("exit", "failure") if kind in kinds
    }
    assert found == told
    log = (tmp_path / "logs/node0_rank1.log").read_text()
    assert ("ZeroDivisionError" in log, "no data" in log) == ("1 / 0" in end, "no data" in end)
    assert "running.py" not in log, "how it was started stands in no traceback"


ENDS = """
import atexit, torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

class Kept:
    def __del__(self):
        print("torn down", flush=True)

dist.init_process_group("gloo")
model = DistributedDataParallel(torch.nn.Linear(2, 2)) if {ddp} else None
kept, file = Kept(), open("left.txt", "w")
file.write("all of it")
atexit.register(lambda: print("exit handler"))
dist.destroy_process_group()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="names of threads are looked up in /proc")
@pytest.mark.parametrize("ddp", [True, False])
def test_a_rank_whose_gloo_threads_are_left_ends_before_pythons_teardown(folder: Path, ddp: bool) -> None:
    """Else they may end it by SIGABRT, although all was done; exit handlers run, and files have what was written."""
    (folder / "ends.py").write_text(ENDS.format(ddp=ddp))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    ended = guarded(folder, "ends.py", RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines() == ["exit handler", *["torn down"] * (not ddp)]
    assert (folder / "left.txt").read_text() == "all of it"
