"""The command `why` on run folders as ranks, agents and the launcher leave them."""

import json
import time
from pathlib import Path

import pytest

from flash_launch.checkpoint.attempts import begin
from flash_launch.cli import main
from flash_launch.executors.ends import attempt_facts, write_slurm_record
from flash_launch.history import State, read_history
from flash_launch.run_folder import RunFolder, create, write_json
from flash_launch.verdict import SlurmRecord

ERROR = "ValueError: labels must be below 10"
GLOO = "RuntimeError: [pair.cc:561] Connection closed by peer [127.0.0.1]:55702"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    monkeypatch.chdir(tmp_path)
    folder = create("out")
    folder.config_yaml.write_text("strategy: freeze\n")
    return folder


def attempt(folder: RunFolder, **end: object) -> Path:
    """Begin an attempt; its folder of ends, with the launcher's own end if one is given."""
    number = begin(folder.attempts).number
    ends = folder.ends_of(number)
    ends.mkdir()
    if end:
        write_json(ends / "end.json", {"exit_code": 1, "time": 1.0, "seconds": 12.5, "verdict": None, **end})
    return ends


def tell(ends: Path, name: str, **facts: object) -> None:
    (ends / name).write_text(json.dumps(facts))


def a_failure(ends: Path) -> None:
    """Two nodes with a rank each, of which the second failed."""
    for node in (0, 1):
        host = f"gpu{node}"
        tell(
            ends, f"node{node}_agent.begin", host=host, nodes=2, ranks=[node], log_start=0, versions={"torch": "2.15.0"}
        )
        tell(ends, f"node{node}_rank{node}.begin", host=host, pid=1, time=5.0, log_start=9)
        tell(ends, f"node{node}_rank{node}.progress", epoch=1, step=6, where="the forward pass", time=9.0)
        tell(ends, f"node{node}_agent.end", exit_code=1, told_to_end=node == 0, told_time=12.0 if node == 0 else None)
    tell(ends, "node1_rank1.failure", time=10.0, error=ERROR, type="builtins.ValueError", user_fault=False)
    tell(ends, "node0_rank0.failure", time=9.9, error=GLOO, type="builtins.RuntimeError", user_fault=False)


def why(*argv: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["why", *argv]) == 0
    told = capsys.readouterr()
    assert told.err == ""
    return told.out


def test_a_failed_run(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    a_failure(attempt(run, exit_code=1))
    out = why("out", capsys=capsys).splitlines()
    assert out[0].startswith("attempt 1  20")
    assert out[0].endswith(f"from the start  failed after 12.5 s: rank 1 (node 1, gpu1) failed first: {ERROR}")
    assert out[2:5] == [
        f"attempt 1: rank 1 (node 1, gpu1) failed first: {ERROR}",
        "  where: the forward pass after step 6 (epoch 1)",
        f"  log: {run.rank_log(1, 1)}",
    ]
    assert out[5].strip().startswith("flash-launch --config out/config.yaml")
    everything = why("out", "--all", capsys=capsys)
    assert "rank 0 (node 0, gpu0) noticed that another was gone: RuntimeError" in everything
    assert "rank 0 (node 0, gpu0): the forward pass after step 6 (epoch 1)" in everything
    told = json.loads(why("out", "--json", capsys=capsys))
    assert (told["state"], told["attempt"], told["verdict"]["kind"]) == ("failed", 1, "exception")


def test_only_this_attempts_part_of_a_log_counts(run: RunFolder) -> None:
    ends = attempt(run)
    run.rank_log(0, 0).write_text("of before\nof now\n")
    tell(ends, "node0_rank0.begin", host="a", log_start=10)
    tell(ends, "node0_rank0.end", exit_code=-9, time=4.0, oom_kills=0)
    assert attempt_facts(run, 1).ranks[0].log_tail == "of now\n"


def test_a_run_that_went_well_after_a_failure(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    a_failure(attempt(run, exit_code=1))
    attempt(run, exit_code=0)
    out = why("out", capsys=capsys)
    assert "attempt 2 finished: nothing failed\nattempt 1 had failed before; see it with --attempt 1" in out
    assert f"attempt 1: rank 1 (node 1, gpu1) failed first: {ERROR}" in why("out", "--attempt", "1", capsys=capsys)


def test_a_run_that_still_runs(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    ends = attempt(run)
    tell(ends, "node0_agent.begin", host="a", nodes=1, ranks=[0])
    tell(ends, "node0_rank0.begin", host="a")
    tell(ends, "node0_rank0.progress", epoch=0, step=3, where="validation", time=1.0)
    assert "attempt 1 runs, rank 0 is at: validation after step 3 (epoch 0)" in why("out", capsys=capsys)


def test_a_launcher_that_died_without_a_word(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    ends = attempt(run)
    begun = json.loads((run.attempts / "0001.json").read_text())
    (run.attempts / "0001.json").write_text(json.dumps({**begun, "host": "elsewhere"}))
    assert read_history(run)[0].state is State.RUNNING
    (run.attempts / "0001.json").write_text(json.dumps({**begun, "host": "elsewhere", "began": time.time() - 999}))
    out = why("out", capsys=capsys)
    assert "attempt 1 ended, and nobody told how: out/attempts/0001 holds no ends of ranks or agents" in out
    a_failure(ends)
    assert f"attempt 1: rank 1 (node 1, gpu1) failed first: {ERROR}" in why("out", capsys=capsys)


def test_a_run_of_an_older_version_is_told_by_what_it_kept(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    attempt(run, verdict="rank 3 (node 1) failed first: KeyError: 'x'")
    out = why("out", capsys=capsys)
    assert "attempt 1: rank 3 (node 1) failed first: KeyError: 'x'\n  (as it was told then: its ranks left no" in out


def test_signals_and_what_slurm_says_of_them(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    ends = attempt(run, exit_code=130)
    tell(ends, "node0_rank0.progress", epoch=1, step=6, where="validation", time=9.0)
    out = why("out", capsys=capsys)
    assert "the launcher was ended from outside: Ctrl-C (SIGINT)\n  where: validation after step 6 (epoch 1)" in out
    attempt(run, exit_code=143)
    write_slurm_record(run, 2, SlurmRecord("TIMEOUT", time_limit="00:10:00", job_id="41", nodes=("gpu0",)))
    assert "attempt 2: Slurm's job 41 was ended: its time limit of 00:10:00 was up" in why("out", capsys=capsys)
    attempt(run, exit_code=75)
    assert "attempt 3 was asked to stop, and has saved: nothing failed" in why("out", capsys=capsys)


def test_files_that_are_broken_are_passed_over(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    ends = attempt(run, exit_code=1)
    a_failure(ends)
    (ends / "node0_rank0.failure").write_text('{"time": 9')
    (ends / "node1_rank1.progress").write_text("[]")
    (ends / "node1_agent.begin").write_bytes(b"\xff\xfe")
    assert f"failed first: {ERROR}" in why("out", capsys=capsys)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ((), "give one run folder"),
        (("nothing",), "is no run folder: it has no config.yaml"),
        (("out", "--atempt", "1"), "did you mean --attempt?"),
        (("out", "--attempt", "x"), "give the number of an attempt"),
        (("out", "--attempt", "7"), "the attempts of out are 1"),
    ],
)
def test_wrong_arguments(run: RunFolder, capsys: pytest.CaptureFixture[str], argv: tuple[str, ...], words: str) -> None:
    attempt(run, exit_code=0)
    assert main(["why", *(argv or ("--all",))]) == 2
    assert words in capsys.readouterr().err


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert "usage: flash-launch why RUN" in why("--help", capsys=capsys)
