"""The local executor with real torchrun agents and small workers: failures, signals, orphans, ports and logs."""

import contextlib
import io
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flash_launch.errors import LaunchError
from flash_launch.executors.local import LaunchResult, run_local
from flash_launch.executors.ports import held_port
from flash_launch.executors.torchrun import agent_argv, agent_environment
from flash_launch.run_folder import RunFolder, create

HERE = Path(__file__).parent
pytestmark = pytest.mark.timeout(120)
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def children(pid: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(stat.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(stat.parent.name))
    return found


def wait_until(holds: Callable[[], bool], seconds: float = 60) -> float:
    start = time.monotonic()
    while not holds():
        assert time.monotonic() - start < seconds, "waited in vain"
        time.sleep(0.02)
    return time.monotonic() - start


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[RunFolder]:
    folder = create(tmp_path / "run")
    yield folder
    for file in folder.ends_of(1).glob("*.pid"):  # only what a test that failed has left
        with contextlib.suppress(OSError, ValueError):
            os.kill(int(file.read_text()), signal.SIGKILL)


class Launcher:
    """A launcher in a process of its own, its agents and its ranks."""

    def __init__(self, folder: RunFolder, nodes: int, procs: int, mode: str) -> None:
        self.folder, self.world_size = folder, nodes * procs
        argv = [sys.executable, str(HERE / "launch_script.py"), str(folder.path), str(nodes), str(procs), mode]
        self.process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.agents: list[int] = []
        self.ranks: list[int] = []

    def wait_for_ranks(self) -> None:
        wait_until(lambda: len(list(self.folder.path.glob("here*"))) == self.world_size)
        self.agents = children(self.process.pid)
        self.ranks = [int(file.read_text()) for file in self.folder.ends_of(1).glob("*.pid")]
        assert len(self.ranks) == self.world_size

    def none_left(self) -> bool:
        return not any(alive(pid) for pid in (*self.agents, *self.ranks))

    def end(self, seconds: float) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=seconds)
        return self.process.returncode, out, err


@pytest.fixture
def launch(folder: RunFolder) -> Iterator[Callable[[int, int, str], Launcher]]:
    started: list[Launcher] = []

    def start(nodes: int, procs: int, mode: str) -> Launcher:
        started.append(Launcher(folder, nodes, procs, mode))
        return started[-1]

    yield start
    for launcher in started:
        launcher.process.kill()
        launcher.process.wait()


def run_here(
    folder: RunFolder,
    nodes: int,
    procs: int,
    mode: str,
    *,
    gpus: tuple[str, ...] | None = None,
    environment: dict[str, str] | None = None,
    choose_port: Callable[[], int] | None = None,
) -> tuple[LaunchResult, str]:
    console = io.BytesIO()
    result = run_local(
        folder,
        nodes=nodes,
        procs_per_node=procs,
        worker=(str(HERE / "rank_script.py"), mode, str(folder.path)),
        gpus=gpus,
        environment=environment,
        console=console,
        choose_port=choose_port,
    )
    return result, console.getvalue().decode()


def test_two_nodes_with_two_ranks_each(folder: RunFolder) -> None:
    result, console = run_here(folder, 2, 2, "gloo_none")
    assert (result.exit_code, result.verdict) == (0, None)
    assert console == "rank 0 begins\nrank 0 of 4: sum 6\n"
    assert sorted(path.name for path in folder.logs.iterdir()) == [
        "node0_agent.log",
        "node0_rank0.log",
        "node0_rank1.log",
        "node1_agent.log",
        "node1_rank2.log",
        "node1_rank3.log",
    ]
    assert folder.rank_log(1, 3).read_text() == "rank 3 begins\nrank 3 of 4: sum 6\n"


def test_console_and_log_show_rank_0_as_it_wrote(folder: RunFolder) -> None:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "7", "RANK": "5"}
    environment.pop("OMP_NUM_THREADS", None)
    folder.rank_log(0, 0).write_text("an earlier attempt\n")
    result, console = run_here(folder, 1, 1, "bar", gpus=("GPU-a",), environment=environment)
    threads = len(os.sched_getaffinity(0))
    assert result.exit_code == 0
    assert console == f"rank 0 begins\nto stderr\n\rstep 0\rstep 1\rstep 2\nthreads {threads} gpus GPU-a\n"
    assert folder.rank_log(0, 0).read_bytes().decode() == "an earlier attempt\n" + console


@pytest.mark.parametrize(
    ("mode", "cause"),
    [
        ("gloo_raise", "ValueError: the loss is a banana"),
        pytest.param("gloo_kill", "killed by SIGKILL", marks=pytest.mark.slow),
        ("stubborn_raise", "ValueError: the loss is a banana"),
        pytest.param("stubborn_exit", "exited with code 3", marks=pytest.mark.slow),
        pytest.param("sysexit", "exited with code 4", marks=pytest.mark.slow),
        ("leave", "SystemExit"),  # before the run has finished: a worker that has done its work returns
    ],
)
def test_a_rank_that_fails_ends_the_run_and_is_named(folder: RunFolder, mode: str, cause: str) -> None:
    result, console = run_here(folder, 2, 2 if mode.startswith("stubborn") else 1, mode)
    last = 3 if mode.startswith("stubborn") else 1
    assert result.exit_code == 1
    assert result.verdict is not None
    assert (result.verdict.rank, result.verdict.node, result.verdict.cause) == (last, 1, cause)
    assert result.verdict.log == str(folder.rank_log(1, last))
    assert "Traceback" not in console  # of a victim: it would be read as the cause
    assert not any(alive(int(file.read_text())) for file in folder.ends_of(1).glob("*.pid"))
    failed = min(path.stat().st_mtime for path in folder.ends_of(1).glob("*.[ef]*"))
    assert time.time() - failed < 60


def test_a_user_fault_in_a_rank_is_told_by_its_message(folder: RunFolder) -> None:
    result, _ = run_here(folder, 1, 1, "fault")
    assert result.verdict is not None
    who = f"rank 0 (node 0, {socket.gethostname()})"
    assert result.verdict.render() == f"{who} failed first: the folder 'cats' is empty: put images into it"


@linux_only
@pytest.mark.parametrize(
    ("numbers", "code"),
    [((signal.SIGINT,), 130), ((signal.SIGTERM, signal.SIGTERM), 143), ((signal.SIGUSR1, signal.SIGINT), 130)],
)
def test_a_signal_ends_all_ranks(
    launch: Callable[..., Launcher], numbers: tuple[signal.Signals, ...], code: int
) -> None:
    launcher = launch(2, 1, "sleep")
    launcher.wait_for_ranks()
    for number in numbers:
        launcher.process.send_signal(number)
        time.sleep(0.3)
    exit_code, out, err = launcher.end(10)
    assert (exit_code, err) == (code, "")
    assert "Traceback" not in out
    assert launcher.none_left()


@linux_only
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_ranks_that_are_asked_to_stop_end_by_themselves(
    launch: Callable[..., Launcher], number: signal.Signals
) -> None:
    launcher = launch(2, 1, "until_asked")
    launcher.wait_for_ranks()
    launcher.process.send_signal(number)
    exit_code, out, err = launcher.end(10)
    assert (exit_code, err) == (0, "")
    assert "rank 0 was asked to stop" in out
    assert launcher.none_left()


@linux_only
def test_a_second_ctrl_c_kills_at_once(launch: Callable[..., Launcher]) -> None:
    launcher = launch(1, 2, "stubborn_sleep")
    launcher.wait_for_ranks()
    launcher.process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert launcher.process.poll() is None  # rank 0 does not heed SIGTERM
    launcher.process.send_signal(signal.SIGINT)
    assert launcher.end(2.5)[0] == 130
    wait_until(launcher.none_left, 1)


@linux_only
def test_no_rank_outlives_a_killed_launcher(launch: Callable[..., Launcher]) -> None:
    launcher = launch(2, 1, "stubborn_sleep")
    launcher.wait_for_ranks()
    launcher.process.kill()
    wait_until(launcher.none_left, 10)


@linux_only
def test_a_killed_agent_leaves_no_rank_and_is_named(launch: Callable[..., Launcher]) -> None:
    launcher = launch(2, 1, "sleep")
    launcher.wait_for_ranks()
    argvs = {pid: Path(f"/proc/{pid}/cmdline").read_bytes().decode() for pid in launcher.agents}
    os.kill(next(pid for pid, argv in argvs.items() if "--node-rank=1" in argv), signal.SIGKILL)
    exit_code, out, _ = launcher.end(10)
    assert exit_code == 1
    assert "the agent of node 1 (" in out
    assert "failed first: killed by SIGKILL" in out
    assert launcher.none_left()


def test_another_port_is_tried_when_one_is_taken(folder: RunFolder) -> None:
    with socket.socket() as taken, held_port() as free:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        ports = [taken.getsockname()[1], free]
        result, _ = run_here(folder, 1, 1, "bar", choose_port=lambda: ports.pop(0))
    assert (result.exit_code, ports) == (0, [])


def test_ports_that_are_all_taken_are_an_error(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flash_launch.executors.local._PORTS_TRIED", 1)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(LaunchError, match="taken"):
            run_here(folder, 1, 1, "bar", choose_port=lambda: int(taken.getsockname()[1]))


def test_the_agents_command_line_is_text() -> None:
    argv = agent_argv(
        ("-m", "w", "runs/a"), nodes=2, node=1, procs_per_node=4, address="host", port=5, run_id="a", python="py"
    )
    assert argv[:6] == ["py", "-u", "-m", "flash_launch.rank_guard", "-m", "torch.distributed.run"]
    assert argv[-5:] == ["-m", "flash_launch.rank_guard", "-m", "w", "runs/a"]
    assert {"--nnodes=2", "--node-rank=1", "--nproc-per-node=4", "--master-addr=host", "--master-port=5"} < set(argv)


def test_the_agents_environment_forgets_another_launch() -> None:
    base = {"RANK": "1", "MASTER_PORT": "1", "PET_NNODES": "9", "TORCHELASTIC_RUN_ID": "x", "HOME": "/h"}
    run = RunFolder(Path("/r"))
    environment = agent_environment(base, folder=run, attempt=2, node=1, parent=7, threads=3, interface="lo")
    assert environment == {
        "HOME": "/h",
        "OMP_NUM_THREADS": "3",
        "GLOO_SOCKET_IFNAME": "lo",
        "FLASH_LAUNCH_RUN": "/r",
        "FLASH_LAUNCH_ATTEMPT": "2",
        "FLASH_LAUNCH_LOGS": "/r/logs",
        "FLASH_LAUNCH_ENDS": "/r/attempts/0002",
        "FLASH_LAUNCH_NODE": "1",
        "FLASH_LAUNCH_PARENT": "7",
    }
    set_before = agent_environment({"OMP_NUM_THREADS": "9"}, folder=run, attempt=1, node=0, parent=1, threads=3)
    assert set_before["OMP_NUM_THREADS"] == "9"
