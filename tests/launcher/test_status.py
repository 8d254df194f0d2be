"""`status` shows runs and sweeps: as text, in a terminal, as JSON; and says what is no run folder."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path

import pytest
from recorded_run import BEGAN, Recorded
from rich.console import Console

from flash_launch.cli import main
from flash_launch.cluster.client import Job
from flash_launch.errors import SlurmUnavailable
from flash_launch.viewing.run_state import JobLine, State, state_of
from flash_launch.viewing.run_view import read_run
from flash_launch.viewing.status_view import as_rich, status_lines
from flash_launch.viewing.sweep_view import sweep_table
from flash_launch.viewing.wording import ago, bytes_in_words, duration


def finished(path: Path, **config: object) -> Recorded:
    run = Recorded(path, config=config)
    run.attempt(host="gpu1")
    run.train(1, 16)
    run.write("summary.json", {"status": "finished", "metrics": {}})
    run.end(0, at=20)
    return run


def test_a_run_as_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = finished(tmp_path / "a run")
    run.write("wandb/run.json", {"id": "ab12", "project": "p", "entity": None})
    assert main(["status", str(run.path)]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    for part in (
        "state          finished: all epochs are done",
        "freeze_unfreeze, ddp, 2 ranks on 1 node, T, d",
        "4 of 4 epochs done, step 16 of 16 (100 %)",
        "unfrozen: trains 1,000 of 1,000 parameters",
        "val_accuracy 0.9375",
        "on gpu1, finished after 20 s",
        "W&B            p/ab12",
    ):
        assert part in out


def test_a_run_that_can_go_on_says_how(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Recorded(tmp_path / "a run")
    run.attempt()
    run.train(1, 6)
    run.end(1, verdict="rank 0 (node 0) failed first: killed by SIGKILL\n  its last words:\n    oh")
    (run.path / "checkpoints/step_4").mkdir(parents=True)
    assert main(["status", str(run.path)]) == 0
    out = capsys.readouterr().out
    assert f"flash-launch resume '{run.path}'" in out
    assert "failed: rank 0 (node 0) failed first: killed by SIGKILL" in out
    assert "oh\n" in out
    assert "next           unfrozen at epoch 2: trains 1,000 parameters" in out
    assert "step_4, which cannot be read" in out


def test_a_terminal_gets_colours_and_a_bar(tmp_path: Path) -> None:
    run = Recorded(tmp_path / "run")
    run.attempt()
    run.train(1, 8)
    view = read_run(run.folder)
    jobs = [JobLine("7", "RUNNING", nodes=("n1",), seconds_left=600)]
    state = state_of(view, BEGAN + 9, jobs)
    for unicode, full in ((True, "█" * 24 + "░" * 24), (False, "#" * 24 + "-" * 24)):
        sink = io.StringIO()
        console = Console(file=sink, force_terminal=True, width=100, color_system="standard")
        lines = status_lines(view, state, BEGAN + 9, jobs)
        console.print(as_rich(view, state, run.path, lines, unicode=unicode))
        plain = "".join(part.partition("m")[2] for part in ("m" + sink.getvalue()).split("\x1b["))
        assert full in plain
        assert "job 7 running on n1, 10 min left of its time limit" in plain


def test_json_has_no_nan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Recorded(tmp_path / "run")
    run.attempt()
    run.train(1, 3, loss=float("nan"))
    assert main(["status", str(run.path), "--json"]) == 0
    value = json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(name))
    assert (value["state"], value["step"], value["loss"], value["phase"]) == ("running", 3, None, "frozen")


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["status", "nowhere"], "nowhere, which is not there"),
        (["status", "."], "which is no run folder: it has no config.yaml"),
        (["status", "a", "b"], "given 2 run folders: a, b"),
        (["status", "a", "--jsn"], "no option --jsn: did you mean --json"),
        (["logs", "a", "--rank"], "--rank has no value"),
        (["report", "a", "--to="], "--to has no value"),
        (["logs", "--all=1", "a"], "--all takes no value"),
    ],
)
def test_what_is_wrong_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], argv: list[str], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(argv) == 2
    assert says in capsys.readouterr().err


def sweep(folder: Path) -> None:
    finished(folder / "1")
    run = Recorded(folder / "0")
    run.attempt()
    run.train(1, 6)
    run.end(1, verdict="it failed")
    tasks = [{"index": i, "folder": str(i), "values": {"lr": 10.0**-i, "seed": i}} for i in (1, 0, 2)]
    (folder / "sweep.json").write_text(json.dumps({"name": "s|1", "parameters": ["lr", "seed"], "tasks": tasks}))


def test_a_sweep_is_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep(tmp_path)
    table = sweep_table(tmp_path, time.time())
    assert [(row.index, row.state, row.epochs) for row in table.rows] == [
        (0, State.FAILED, "1 of 4"),
        (1, State.FINISHED, "4 of 4"),
        (2, State.PREPARING, "0"),  # its folder is not there yet
    ]
    assert table.rows[1].best == {"val_loss": 1 / 16, "val_accuracy": 1 - 1 / 16}
    assert table.best_lines()[1] == "best val_accuracy: 0.9375, task 1 (lr 0.1, seed 1)"
    assert main(["status", str(tmp_path)]) == 0
    header, rule, first, *_ = capsys.readouterr().out.splitlines()
    assert header.split()[:5] == ["task", "lr", "seed", "state", "epochs"]
    assert len(rule) >= len(header)
    assert first.split()[:4] == ["0", "1", "0", "failed"]
    assert main(["status", str(tmp_path), "--markdown"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "|" + " --- |" * lines[0].count(" |")
    assert len(lines) == 5


def test_run_folders_without_a_sweep_are_a_table_of_what_differs(tmp_path: Path) -> None:
    finished(tmp_path / "b", lr=0.1)
    finished(tmp_path / "a", lr=0.2)
    table = sweep_table(tmp_path, time.time())
    assert (table.parameters, [row.values for row in table.rows]) == (("lr",), [{"lr": 0.2}, {"lr": 0.1}])


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.0, "0 s"), (0.0213, "21 ms"), (2.34, "2.3 s"), (59.6, "1 min"), (3600, "1 h"), (93_784, "1 d 2 h")],
)
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_sizes_and_ages() -> None:
    assert [bytes_in_words(size) for size in (0, 999, 999_600, 1_234_567, 2e15)] == [
        *("0 B", "999 B", "1 MB", "1.23 MB", "2,000 TB"),
    ]
    assert ago(10, 5) == "just now"  # another host's clock
    assert ago(0, 125) == "2 min 5 s ago"


def submitted(folder: Path, job_id: str) -> None:
    told = {"jobs": [{"job_id": job_id, "submitted": 1.0}], "stalled_restarts": 3, "options": {}}
    (folder / "slurm.json").write_text(json.dumps(told))


def test_of_a_sweep_slurm_is_asked_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep(tmp_path)
    submitted(tmp_path, "7")
    for run in (path for path in tmp_path.iterdir() if path.is_dir()):
        submitted(run, f"7_{run.name.partition('-')[0]}")
    asked: list[str] = []

    def pending(job_id: str, *, retry_seconds: float) -> list[Job]:
        asked.append(job_id)
        return [Job("7", "PENDING", "JobArrayTaskLimit", "0:0", "", "", "", 0, "main", "7", "0-5%1")]

    monkeypatch.setattr("flash_launch.viewing.run_jobs.show_jobs", pending)
    assert main(["status", str(tmp_path)]) == 0
    assert asked == ["7"]
    assert "pending" in capsys.readouterr().out

    def silent(job_id: str, *, retry_seconds: float) -> list[Job]:
        asked.append(job_id)
        raise SlurmUnavailable("the controller does not answer")

    monkeypatch.setattr("flash_launch.viewing.run_jobs.show_jobs", silent)
    assert main(["status", str(tmp_path)]) == 0
    assert asked == ["7", "7"]
    assert capsys.readouterr().err == "flash-launch: the controller does not answer\n"
