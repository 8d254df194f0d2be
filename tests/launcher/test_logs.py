"""`logs` shows and follows: tails, prefixes, files that are cut or made anew, restarts, Ctrl-C and closed pipes."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from recorded_run import BEGAN, Recorded

from flash_launch.cli import main
from flash_launch.viewing.log_follower import Follower, LogFile, find_logs, has_ended
from flash_launch.viewing.run_state import JobLine

COMMAND = Path(sys.executable).with_name("flash-launch")


@pytest.fixture
def run(tmp_path: Path) -> Recorded:
    run = Recorded(tmp_path / "run")
    run.attempt()
    return run


def log(run: Recorded, name: str = "node0_rank0.log") -> Path:
    return run.path / "logs" / name


def until(holds: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("text", "lines", "shown"),
    [
        ("a\nb\nc\n", 2, "b\nc\n"),
        ("a\nb\nc", 2, "b\nc"),
        ("a\nb\n", 9, "a\nb\n"),
        ("a\nb\n", 0, ""),
        ("", 3, ""),
        ("x" * 200_000 + "\nlast\n", 1, "last\n"),
        ("\n\n\n", 2, "\n\n"),
    ],
)
def test_the_last_lines(tmp_path: Path, text: str, lines: int, shown: str) -> None:
    (tmp_path / "log").write_text(text)
    file = LogFile(tmp_path / "log")
    file.skip_to_tail(lines)
    assert file.read().decode() == shown


def test_a_log_that_is_cut_or_made_anew_is_read_from_its_start(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("one\ntwo\n")
    file = LogFile(path)
    assert file.read() == b"one\ntwo\n"
    path.write_text("new\n")  # cut
    assert file.read() == b"new\n"
    path.rename(tmp_path / "old")
    assert file.read() == b""  # not there for a moment
    path.write_text("longer than it was\n")
    assert file.read() == b"longer than it was\n"


def test_lines_of_all_ranks_are_whole_and_have_their_rank(run: Recorded) -> None:
    log(run).write_bytes(b"10 %\r50 %\r100 %\nhalf")
    log(run, "node1_rank10.log").write_text("ten\n")
    log(run, "node1_rank2.log").write_text("two\n")
    sink = io.BytesIO()
    follower = Follower(lambda: find_logs(run.folder, "ranks"), sink, prefixed=True)
    follower.pump()
    assert sink.getvalue() == b"[rank 0] 100 %\n[rank 2] two\n[rank 10] ten\n"
    with log(run).open("a") as file:
        file.write(" a line")
    follower.pump(last=True)
    assert sink.getvalue().endswith(b"[rank 0] half a line\n")


def test_what_is_shown(run: Recorded, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    for name in ("node0_rank0.log", "node0_rank1.log", "node0_agent.log", "slurm-12.out"):
        log(run, name).write_text(f"{name}\n")
    for options, shown in (
        ([], b"node0_rank0.log\n"),
        (["--rank", "1"], b"node0_rank1.log\n"),
        (["--agents"], b"[node 0] node0_agent.log\n"),
        (["--job"], b"slurm-12.out\n"),
        (["--lines", "0"], b""),
    ):
        assert main(["logs", str(run.path), *options]) == 0
        assert capfdbinary.readouterr().out == shown
    for options, says in (
        (["--rank", "5"], b"it has those of rank 0, rank 1"),
        (["--rank", "x"], b"whole number"),
        (["--all", "--job"], b"give one of them"),
    ):
        assert main(["logs", str(run.path), *options]) == 2
        assert says in capfdbinary.readouterr().err


def test_following_waits_for_the_log_and_ends_with_the_run(run: Recorded) -> None:
    sink, waited = io.BytesIO(), threading.Event()
    follower = Follower(lambda: find_logs(run.folder, "ranks", 0), sink)
    thread = threading.Thread(
        target=follower.follow, args=(lambda: has_ended(run.folder),), kwargs={"waiting": waited.set, "poll": 0.01}
    )
    thread.start()
    assert waited.wait(20)
    log(run).write_text("attempt 1\n")
    until(lambda: b"attempt 1\n" in sink.getvalue())
    run.end(75)
    run.attempt(2, at=200, step=4)  # at once, as Slurm may requeue: what matters is the newest
    with log(run).open("a") as file:
        file.write("attempt 2\n")
    run.end(0, number=2)
    thread.join(20)
    assert not thread.is_alive()
    # it may have looked between the end of the first and the begin of the second
    assert sink.getvalue() in (b"attempt 1\n", b"attempt 1\nattempt 2\n")


def test_when_a_run_has_ended(run: Recorded) -> None:
    assert not has_ended(run.folder)
    run.end(75)
    assert has_ended(run.folder)
    run.attempt(2, at=9, step=4)
    assert not has_ended(run.folder)
    run.write("summary.json", {"status": "finished"})
    assert has_ended(run.folder)
    (run.path / "summary.json").unlink()
    run.attempt(3, at=BEGAN, host=os.uname().nodename, pid=2**22 + 1)
    assert has_ended(run.folder)  # its launcher is gone


def test_ctrl_c_and_a_closed_pipe_end_it_clean(run: Recorded) -> None:
    log(run).write_text("first\n")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    for end in ("signal", "pipe"):
        command = subprocess.Popen([COMMAND, "logs", "-f", run.path], **pipes)  # type: ignore[call-overload]
        assert command.stdout.readline() == b"first\n"
        if end == "signal":
            command.send_signal(signal.SIGINT)
            _, err = command.communicate(timeout=20)
            assert (command.returncode, err) == (130, b"")
        else:
            command.stdout.close()
            with log(run).open("a") as file:
                file.write("nobody reads this\n")
            assert command.wait(20) == 141
            assert command.stderr.read() == b""
            command.stderr.close()


def test_following_ends_with_the_last_job(run: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    """A requeued job is waited for; one that was cancelled in the queue leaves nothing to wait for."""
    from flash_launch.commands import logs

    asked: list[str] = []
    states = ["RUNNING", "PENDING", "RUNNING", "CANCELLED"]

    def jobs(_: object) -> list[JobLine]:
        asked.append(states[len(asked)])
        return [JobLine("12", asked[-1])]

    monkeypatch.setattr(logs, "jobs_of", jobs)
    monkeypatch.setattr(logs, "_ASK_SECONDS", 0.0)
    log(run).write_text("x\n")
    run.end(75)
    assert main(["logs", str(run.path), "-f"]) == 0
    assert asked == states
    run.write("slurm.json", {"jobs": [{"job_id": "12", "submitted": BEGAN}], "stalled_restarts": 3, "options": {}})
    run.write("attempts/0001/slurm.json", {"job_id": "12"})
    (run.path / "attempts/0001/end.json").unlink()
    asked.clear()
    assert main(["logs", str(run.path), "-f"]) == 0
    assert asked == states
