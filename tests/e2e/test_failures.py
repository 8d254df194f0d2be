"""Staged failures of real ranks under real agents, each with the verdict it must have; the costly ones are slow."""

import contextlib
import io
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from command import Answer, flash_launch
from own_code import MY_TASK

from flash_launch.executors.agent import Signals, start_agent, watch
from flash_launch.executors.ends import attempt_verdict, write_slurm_record
from flash_launch.executors.local import run_local
from flash_launch.executors.ports import held_port
from flash_launch.executors.torchrun import agent_argv, agent_environment
from flash_launch.run_folder import RunFolder, create
from flash_launch.verdict import Kind, SlurmRecord, Verdict

SCRIPT = str(Path(__file__).with_name("failing_rank.py"))
HOST = socket.gethostname()
CGROUPS = Path("/sys/fs/cgroup/memory")
pytestmark = [
    pytest.mark.timeout(200),
    pytest.mark.skipif(sys.platform != "linux", reason="signals, cgroups and mounts of Linux"),
]
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount and make control groups")


def fail(folder: Path, way: str, nodes: int, **environment: str) -> tuple[Verdict, RunFolder]:
    """The verdict on two ranks of which the last one fails in a way, and the run folder."""
    run = create(folder / "run")
    result = run_local(
        run,
        nodes=nodes,
        procs_per_node=2 // nodes,
        worker=(SCRIPT, way, str(run.path)),
        console=io.BytesIO(),
        environment={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )
    assert result.exit_code == 1
    assert result.verdict is not None
    return result.verdict, run


def site(folder: Path, code: str) -> str:
    """A folder whose code every Python runs first that has it on its path."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(code)
    return str(folder)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(disk)], check=True)
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


@pytest.fixture
def small_cgroup() -> Iterator[Path]:
    group = CGROUPS / f"flash_launch_test_{os.getpid()}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(200 << 20))
    except OSError:
        pytest.skip("no control groups of version 1 can be made here")
    yield group
    with contextlib.suppress(OSError):
        group.rmdir()


# ---- a rank's own failure


@pytest.mark.parametrize(
    ("way", "kind", "words"),
    [
        pytest.param("exception", Kind.EXCEPTION, "ValueError: labels must be below 10", marks=pytest.mark.slow),
        pytest.param("sigkill", Kind.KILLED, "killed by SIGKILL", marks=pytest.mark.slow),
        pytest.param("exit", Kind.EXITED, "exited with code 3", marks=pytest.mark.slow),
        pytest.param("import_error", Kind.IMPORT_ERROR, "install kornia_of_another_machine", marks=pytest.mark.slow),
        pytest.param("interrupt", Kind.INTERRUPTED, "interrupted by SIGINT", marks=pytest.mark.slow),
        pytest.param("memory_error", Kind.OUT_OF_MEMORY, "MemoryError", marks=pytest.mark.slow),
        pytest.param(
            "data_worker_killed", Kind.DATA_WORKER_KILLED, "is killed by signal: Killed", marks=pytest.mark.slow
        ),
        pytest.param("data_worker_raises", Kind.EXCEPTION, "ValueError: image 0 has no label", marks=pytest.mark.slow),
        pytest.param("segfault", Kind.CRASH, "in compute_with_a_bad_pointer"),
    ],
)
def test_a_failure_of_one_rank(tmp_path: Path, way: str, kind: Kind, words: str) -> None:
    verdict, _ = fail(tmp_path, way, 1)
    assert (verdict.rank, verdict.node, verdict.host, verdict.kind) == (1, 0, HOST, kind)
    assert words in verdict.render()
    assert not verdict.transient
    assert [line.partition(":")[0] for line in verdict.consequences] == [f"rank 0 (node 0, {HOST}) was told to end"]


@pytest.mark.slow
def test_the_same_failure_of_several_ranks(tmp_path: Path) -> None:
    verdict, _ = fail(tmp_path, "several", 2)
    assert verdict.kind is Kind.EXCEPTION
    assert "failed with the same error, on its own" in verdict.also[0]


@root_only
def test_a_rank_that_the_kernel_kills_for_want_of_memory(tmp_path: Path, small_cgroup: Path) -> None:
    verdict, _ = fail(tmp_path, "oom_kill", 1, STAGED_CGROUP=str(small_cgroup))
    assert (verdict.rank, verdict.kind) == (1, Kind.OOM_KILLED)
    assert "Killed process" in verdict.detail or "counted" in verdict.detail


@root_only
def test_a_disk_that_is_full_to_the_last_byte(tmp_path: Path, small_disk: Path) -> None:
    verdict, run = fail(small_disk, "disk_full", 1)
    assert (verdict.rank, verdict.kind) == (1, Kind.DISK_FULL)
    assert "No space left on device" in verdict.cause
    assert os.statvfs(run.path).f_bavail == 0  # what is known was told on a disk that took no more


# ---- ranks that wait


def test_a_hang_over_two_nodes(tmp_path: Path) -> None:
    verdict, _ = fail(tmp_path, "hang", 2)
    assert (verdict.rank, verdict.node, verdict.kind, verdict.transient) == (1, 1, Kind.HANG, False)
    assert "waited in all_reduce (failing_rank.py:" in verdict.cause
    assert "after step 7" in verdict.cause
    assert verdict.at == "fetching data after step 6 (epoch 1)"
    assert "in load_the_next_batch" in verdict.detail


@pytest.mark.slow
def test_ranks_in_different_collectives(tmp_path: Path) -> None:
    verdict, _ = fail(tmp_path, "hang_apart", 1)
    assert verdict.kind is Kind.HANG
    assert "in all_reduce (failing_rank.py:" in verdict.detail
    assert "in barrier (failing_rank.py:" in verdict.detail


@pytest.mark.slow
def test_a_rank_that_ends_early(tmp_path: Path) -> None:
    verdict, _ = fail(tmp_path, "end_early", 2)
    assert (verdict.rank, verdict.kind) == (1, Kind.HANG)
    assert "it ended, without an error" in verdict.cause


@pytest.mark.slow
def test_a_rank_that_never_starts(tmp_path: Path) -> None:
    code = "import os, time\nif os.environ.get('RANK') == '1':\n    time.sleep(100)\n"
    verdict, _ = fail(tmp_path, "join", 1, PYTHONPATH=site(tmp_path / "site", code))
    assert (verdict.rank, verdict.kind) == (1, Kind.NEVER_STARTED)
    assert verdict.render().startswith(f"rank 1 (node 0, {HOST}) never started")


# ---- nodes


@pytest.mark.slow
def test_another_version_on_a_node(tmp_path: Path) -> None:
    code = (
        "import os, sys\nif os.environ.get('FLASH_LAUNCH_NODE') == '1':\n"
        "    sys.path.insert(0, os.path.join(os.path.dirname(__file__), 'old'))\n"
    )
    path = site(tmp_path / "site", code)
    metadata = tmp_path / "site" / "old" / "torch-2.0.1.dist-info" / "METADATA"
    metadata.parent.mkdir(parents=True)
    metadata.write_text("Metadata-Version: 2.1\nName: torch\nVersion: 2.0.1\n")
    verdict, _ = fail(tmp_path, "exception", 2, PYTHONPATH=path)
    assert verdict.kind is Kind.WRONG_VERSION
    assert f"2.0.1 on node 1 ({HOST})" in verdict.detail


@pytest.mark.slow
def test_a_node_that_is_gone_without_a_word(tmp_path: Path) -> None:
    verdict, run = fail(tmp_path, "lose_connection", 2)
    assert (verdict.rank, verdict.node, verdict.kind) == (None, 1, Kind.KILLED)  # here, somebody saw its end
    (run.ends_of(1) / "node1_agent.end").unlink()
    lost = attempt_verdict(run, 1)
    assert lost is not None
    assert (lost.node, lost.host, lost.kind, lost.transient) == (1, HOST, Kind.NODE_LOST, True)
    assert len(lost.consequences) == 1
    write_slurm_record(run, 1, SlurmRecord("TIMEOUT", time_limit="01:00:00", nodes=(HOST, HOST)))
    late = attempt_verdict(run, 1)
    assert late is not None
    assert (late.kind, late.transient) == (Kind.TIME_LIMIT, True)


def start_nodes(folder: Path, nodes: list[int], address: str) -> Verdict:
    """The verdict on agents of two nodes, of which only some are started, that wait 3 seconds for each other."""
    run = create(folder / "run")
    ends = run.ends_of(1)
    ends.mkdir(parents=True)
    with held_port() as port:
        pass  # nobody listens at it
    agents = []
    for node in nodes:
        argv = agent_argv(
            (SCRIPT, "join", str(run.path)),
            nodes=2,
            node=node,
            procs_per_node=1,
            address=address,
            port=port,
            run_id="staged",
            local_address="127.0.0.1",
            rendezvous_seconds=3,
        )
        environment = agent_environment(
            dict(os.environ), folder=run, attempt=1, node=node, parent=os.getpid(), threads=1
        )
        agents.append(start_agent(node, argv, environment, run.agent_log(node)))
    watch(agents, Signals(), ends, 60)
    verdict = attempt_verdict(run, 1)
    assert verdict is not None
    return verdict


@pytest.mark.slow
def test_an_address_where_nobody_is(tmp_path: Path) -> None:
    verdict = start_nodes(tmp_path, [0, 1], "no-such-host.invalid")
    assert (verdict.kind, verdict.transient) == (Kind.RENDEZVOUS, True)
    assert "no-such-host.invalid" in verdict.cause


@pytest.mark.slow
def test_a_node_that_never_starts(tmp_path: Path) -> None:
    verdict = start_nodes(tmp_path, [0], "127.0.0.1")
    assert (verdict.node, verdict.kind) == (1, Kind.NEVER_STARTED)


# ---- by the command

NAN = f"""{MY_TASK}

class NanTask(MyTask):
    def training_step(self, batch, index):
        loss = super().training_step(batch, index)
        return loss * float("nan") if self.global_rank == 1 and self.trainer.global_step == 3 else loss
"""
SLOW = f"""{MY_TASK}

class SlowTask(MyTask):
    def training_step(self, batch, index):
        import time
        time.sleep(0.2)
        return super().training_step(batch, index)
"""
HANG = f"""{MY_TASK}

class HangTask(MyTask):
    def training_step(self, batch, index):
        if self.global_rank == 1 and self.trainer.global_step == 3:
            import time
            time.sleep(600)
        return super().training_step(batch, index)
"""


def run_command(folder: Path, task: str, *argv: str, send: signal.Signals | None = None) -> Answer:
    def trained() -> bool:
        return (folder / "out" / "metrics.jsonl").exists()

    options = ("--nodes", "2", "--strategy", "no_freeze", "--max-epochs", "20", "--output-dir", "out")
    return flash_launch(folder, *options, "--task", task, *argv, send=send, when=trained)


def test_a_loss_that_is_not_a_number_stops_the_run(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(NAN)
    answer = run_command(tmp_path, "mine:NanTask")
    assert (answer.code, answer.alive) == (1, ())
    assert f"rank 1 (node 1, {HOST}) failed first: the loss of step 4 is not a number" in answer.err
    assert "epoch 0, phase unfrozen, at a learning rate of" in answer.err
    why = flash_launch(tmp_path, "why", "out", "--json")
    assert '"kind": "nan_loss"' in why.out


@pytest.mark.slow
def test_a_hang_in_training_is_explained(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(HANG)
    answer = run_command(tmp_path, "mine:HangTask", "--timeout", "10")
    assert answer.code == 1
    assert f"rank 1 (node 1, {HOST}) hangs: rank 0 (node 0, {HOST}) waited in the gradients' all_reduce" in answer.err
    assert "where: the forward pass after step 3 (epoch 0)" in answer.err
    assert "it is at mine.py:" in answer.err


@pytest.mark.slow
def test_ctrl_c_is_no_failure_of_a_rank(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(SLOW)
    answer = run_command(tmp_path, "mine:SlowTask", send=signal.SIGINT)
    assert (answer.code, answer.alive) == (130, ())
    why = flash_launch(tmp_path, "why", "out")
    assert why.code == 0
    assert "the launcher was ended from outside: Ctrl-C (SIGINT)" in why.out
