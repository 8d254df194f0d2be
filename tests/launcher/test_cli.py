"""The command line from end to end, with a small preflight and a small worker in place of the real ones."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flash_launch.cli import main
from flash_launch.config import RunConfig

pytestmark = pytest.mark.timeout(120)

PREFLIGHT = """
import json, sys, yaml
config = yaml.safe_load(sys.stdin.read())
if config["data"] == "nowhere":
    print(json.dumps({"error": "--data nowhere does not exist: give a folder"}))
    raise SystemExit(2)
if config["data"] == "broken":
    raise RuntimeError("a bug of ours")
phases = [{"name": "frozen", "first_epoch": 0, "trainable": 1397, "frozen": 49680, "layers": ["a"]}]
print("noise of an import")
print(json.dumps({"plan": {"phases": phases}, "messages": ["the head is new"], "world_size": config["nodes"]}))
"""

WORKER = """
import json, os, pathlib, sys
folder = pathlib.Path(sys.argv[1])
assert (folder / "config.yaml").exists()
if "lr: 0.5" in (folder / "config.yaml").read_text() and os.environ["RANK"] == "1":
    raise ValueError("loss is not a number")
print("training")
if os.environ["RANK"] == "0":
    (folder / "summary.json").write_text(json.dumps({"status": "finished", "metrics": {"val_accuracy": 0.98765}}))
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, on a machine without GPUs."""
    for name, text in (("preflight.py", PREFLIGHT), ("worker.py", WORKER)):
        (tmp_path / name).write_text(text)
    monkeypatch.setattr("flash_launch.launching.PREFLIGHT", (str(tmp_path / "preflight.py"),))
    monkeypatch.setattr("flash_launch.executors.torchrun.WORKER", (str(tmp_path / "worker.py"),))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def test_a_run_leaves_its_folder_and_can_be_repeated(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--nodes", "2", "--strategy", "freeze_unfreeze_deepspeed"]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    (folder,) = (here / "runs").iterdir()
    assert "-freeze_unfreeze_deepspeed-" in folder.name
    assert sorted(path.name for path in folder.iterdir()) == [
        "attempts",
        "config.yaml",
        "logs",
        "plan.json",
        "summary.json",
    ]
    assert json.loads((folder / "plan.json").read_text())["phases"][0]["name"] == "frozen"
    for line in (
        "flash-launch: the head is new",
        "flash-launch: epoch 0: frozen  trains 1,397 of 51,077 parameters, 1 layer of the backbone",
        "flash-launch: no cluster here: running 2 nodes x 1 rank on this machine (gloo, CPU)",
        f"flash-launch: run folder: runs/{folder.name}",
        "training",
    ):
        assert line in out.splitlines()
    assert "val_accuracy 0.9877" in out
    config = RunConfig.from_yaml((folder / "config.yaml").read_text())
    assert (config.setup, config.procs_per_node, config.accelerator, config.nodes) == ("zero2", 1, "cpu", 2)

    assert main(["run", "--config", str(folder / "config.yaml"), "--nodes", "1", "--output-dir", "again"]) == 0
    assert RunConfig.from_yaml((here / "again" / "config.yaml").read_text()) == config.replace(nodes=1)


def test_a_rank_that_fails_gives_1_and_the_verdict(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--procs-per-node", "2", "--lr", "0.5", "--output-dir", "out"]) == 1
    out, err = capfd.readouterr()
    assert "rank 1 (node 0, " in err
    assert "failed first: ValueError: loss is not a number" in err
    assert "log: " + str(here / "out" / "logs" / "node0_rank1.log") in err
    assert "Traceback" not in out + err
    summary = json.loads((here / "out" / "summary.json").read_text())
    assert summary["status"] == "failed"
    assert "loss is not a number" in summary["verdict"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--data nowhere", "flash-launch: error: --data nowhere does not exist: give a folder"),
        ("--strategy freze", "did you mean 'freeze'?"),
        ("--strategy freeze --setup zero3", "give --strategy freeze_deepspeed"),
        ("--bach-size 3", "did you mean --batch-size?"),
        ("--nodes 0", "--nodes was given 0"),
        ("--accelerator cuda", "give --accelerator cpu"),
        ("--output-dir taken", "holds another run"),
        ("plam", "unknown command 'plam': did you mean plan?"),
        ("dispatch", "unknown command 'dispatch'"),
        ("templates zero9", "zero9"),
        ("templates zero1 zero2", "it takes at most one name"),
    ],
)
def test_user_faults_give_2_and_leave_nothing(
    here: Path, argv: str, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    (here / "taken").mkdir()
    (here / "taken" / "config.yaml").write_text("")
    assert main(argv.split()) == 2
    out, err = capfd.readouterr()
    assert message in err
    assert len(err.splitlines()) == 1
    assert err.startswith("flash-launch: error: ")
    assert out.replace("flash-launch: preparing: building the model and scanning the data\n", "") == ""
    assert [path.name for path in here.iterdir()] == ["taken"]


def test_a_broken_preflight_is_told_and_starts_nothing(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--data", "broken"]) == 1
    err = capfd.readouterr().err
    assert "the preflight broke" in err
    assert "RuntimeError: a bug of ours" in err
    assert list(here.iterdir()) == []


def test_plan_prints_the_phases_and_writes_nothing(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--strategy", "freeze", "--nodes", "2"]) == 0
    assert capfd.readouterr().out.splitlines() == [
        "freeze on ddp, 2 ranks, 8 epochs",
        "epoch 0: frozen  trains 1,397 of 51,077 parameters, 1 layer of the backbone",
        "the head is new",
    ]
    assert list(here.iterdir()) == []


def test_templates_are_listed_and_shown(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["templates"]) == 0
    listed = capfd.readouterr().out
    assert {"ddp", "zero1", "zero2", "zero3"} <= {line.split()[0] for line in listed.splitlines()}
    assert main(["templates", "zero3"]) == 0
    assert json.loads(capfd.readouterr().out)["zero_optimization"]["stage"] == 3


def test_print_config_is_yaml_that_can_be_given_back(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--strategy", "unfreeze_milestones", "--milestones", "1", "2", "--print-config"])
    assert ended.value.code == 0
    config = RunConfig.from_yaml(capfd.readouterr().out)
    assert config == RunConfig(strategy="unfreeze_milestones", milestones=(1, 2))


@pytest.mark.parametrize("argv", [[], ["--help"], ["run", "--help"], ["help"]])
def test_help_shows_commands_and_options(argv: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(argv)
    assert ended.value.code == 0
    out = capfd.readouterr().out
    assert all(
        word in out for word in ("templates [NAME]", "--unfreeze-epoch", "--milestones E1 E2", "--procs-per-node")
    )


def test_the_module_runs_too() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "flash_launch", "--version"], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout.strip()) == (0, "0.1.0")


def test_ctrl_c_in_the_preflight_ends_it_without_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(
        "import os, pathlib, time\npathlib.Path('pid').write_text(str(os.getpid()))\ntime.sleep(60)\n"
    )
    code = (
        "from flash_launch import cli, launching; launching.PREFLIGHT = ('slow.py',); "
        "exit(cli.main(['--accelerator', 'cpu']))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        # a shell that started the tests in the background has them ignore Ctrl-C, which processes inherit
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    end = time.monotonic() + 30
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        assert time.monotonic() < end
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (130, "")
    time.sleep(0.2)
    with contextlib.suppress(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
        assert Path(f"/proc/{(tmp_path / 'pid').read_text()}/stat").read_text().split()[2] == "Z"
    assert not (tmp_path / "runs").exists()
