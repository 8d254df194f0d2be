"""Run folders are read as they are, also while they are written, and their state is told in the right word."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from recorded_run import BEGAN, Recorded

from flash_launch.processes import process_began
from flash_launch.viewing.metrics_file import MetricsFile
from flash_launch.viewing.run_state import JobLine, State, state_of
from flash_launch.viewing.run_view import read_run
from flash_launch.viewing.time_left import pace_of, steps_in_all


@pytest.fixture
def run(tmp_path: Path) -> Recorded:
    return Recorded(tmp_path / "run")


def test_an_empty_run_folder_is_read(run: Recorded) -> None:
    view = read_run(run.folder)
    assert (view.progress.step, view.attempts, view.checkpoints, view.summary) == (None, (), (), {})
    assert [phase.first_step for phase in view.phases] == [None, None]
    assert state_of(view, BEGAN).name == State.PREPARING


def test_progress_phases_and_pace(run: Recorded) -> None:
    run.attempt()
    run.train(1, 10)
    os.utime(run.folder.metrics_jsonl, (BEGAN + 10, BEGAN + 10))
    view = read_run(run.folder)
    progress = view.progress
    assert (progress.step, progress.epoch, progress.phase, progress.steps_per_epoch) == (10, 2, "unfrozen", 4)
    assert [(phase.name, phase.first_step, phase.layers) for phase in view.phases] == [
        ("frozen", 0, 2),
        ("unfrozen", 8, 2),
    ]
    assert progress.peak_memory == 10_000
    assert steps_in_all(view) == 16
    pace = pace_of(view)
    assert pace is not None
    assert pace.seconds_left == pytest.approx(6.0)  # a second per step by the clock


def test_what_is_half_written_is_left_out_and_read_once_it_is_whole(run: Recorded) -> None:
    run.train(1, 3)
    metrics = MetricsFile(run.folder.metrics_jsonl)
    assert metrics.progress().step == 3
    with run.folder.metrics_jsonl.open("a") as file:
        file.write('{"step": 4, "epoch": 0, "phase": "frozen", "kind"')
    assert metrics.progress().step == 3
    with run.folder.metrics_jsonl.open("a") as file:
        file.write(': "step", "loss": NaN}\nno json "kind": "step"\n')
    newest = metrics.progress().newest
    assert newest[-1].step == 4
    assert newest[-1].loss != newest[-1].loss
    for name in ("plan.json", "summary.json", "config.yaml", "attempts/0001.json"):
        (run.path / name).parent.mkdir(exist_ok=True)
        (run.path / name).write_text('{"status": "fini')
    view = read_run(run.folder)
    assert (view.plan, view.summary, len(view.attempts)) == ({}, {}, 1)


def test_metrics_that_were_written_anew_are_read_anew(run: Recorded) -> None:
    run.train(1, 8)
    metrics = MetricsFile(run.folder.metrics_jsonl)
    assert len(metrics.progress().epochs) == 2
    rows = run.folder.metrics_jsonl.read_text().splitlines(keepends=True)
    shorter = run.path / "shorter"
    shorter.write_text("".join(rows[:3]))
    shorter.replace(run.folder.metrics_jsonl)
    again = metrics.progress()
    assert (again.step, len(again.epochs), again.peak_memory) == (3, 0, 3000)


def test_what_a_later_attempt_did_again_does_not_count(run: Recorded) -> None:
    run.attempt(1)
    run.train(1, 10)
    run.event("checkpoint", 6.5, step=6, name="step_6", bytes=1)
    run.event("checkpoint", 9.5, step=9, name="step_9", bytes=1)
    run.attempt(2, at=50.0, step=6)
    run.event("resume", 51.0, step=6)
    run.event("transition", 52.0, step=8, epoch=2, phase="unfrozen", trainable_after=1000)
    view = read_run(run.folder)
    assert [(event.kind, event.step) for event in view.lineage] == [
        ("start", 0),
        ("checkpoint", 6),
        ("resume", 6),
        ("transition", 8),
    ]
    assert len(view.events) == 6
    assert [phase.first_step for phase in view.phases] == [0, 8]


def told(
    run: Recorded, *jobs: JobLine, now: float = BEGAN + 200, began: float | None = None, silent: bool = False
) -> tuple[State, str]:
    state = state_of(read_run(run.folder), now, None if silent else jobs, host="here", began=lambda pid: began)
    return state.name, state.words


def test_states_by_how_the_newest_attempt_ended(run: Recorded) -> None:
    run.attempt(host="here")
    run.train(1, 6)
    assert told(run, began=BEGAN - 5)[0] == State.RUNNING
    assert told(run, began=BEGAN + 3600)[0] == State.DIED  # another process has its number
    assert "is gone" in told(run, began=None)[1]
    run.end(75)
    run.write("summary.json", {"status": "stopped", "checkpoint": "step_6"})
    assert told(run) == (State.STOPPED, "it was asked to stop and saved step_6")
    run.end(130)
    assert told(run)[1] == "ended by Ctrl-C, without saving"
    run.end(1, verdict="rank 1 (node 0) failed first: ValueError: x\n  log: y")
    run.write("summary.json", {"status": "failed"})
    assert told(run) == (State.FAILED, "rank 1 (node 0) failed first: ValueError: x")
    run.end(0)
    run.write("summary.json", {"status": "finished"})
    assert told(run)[0] == State.FINISHED
    run.attempt(2, at=300, step=6)
    (run.path / "summary.json").unlink()
    assert told(run, now=BEGAN + 310) == (State.RUNNING, "starting its ranks on elsewhere")
    state, words = told(run, now=BEGAN + 4000)
    assert (state, "cannot be seen from here" in words) == (State.RUNNING, True)


def test_states_by_what_slurm_says(run: Recorded) -> None:
    run.write("slurm.json", {"jobs": [{"job_id": "12", "submitted": BEGAN}]})
    assert told(run, silent=True) == (State.PENDING, "submitted to Slurm as job 12, not begun yet")
    assert told(run) == (State.FAILED, "job 12 ended before the run began, and Slurm knows it no longer")
    pending = JobLine("12", "PENDING", "the partition has fewer nodes than asked for")
    assert told(run, pending)[1].endswith("queue: the partition has fewer nodes than asked for")
    assert told(run, JobLine("12", "CANCELLED"))[0] == State.FAILED
    run.attempt(host="here")  # on the node where `job begin` ran, whose process is gone by now
    run.write("attempts/0001/slurm.json", {"job_id": "12", "nodes": ["node1", "node2"]})
    assert told(run, silent=True)[0] == State.RUNNING
    assert told(run) == (State.DIED, "job 12 told no end, and Slurm knows it no longer")
    assert told(run, JobLine("12", "RUNNING", nodes=("node1", "node2")))[1].endswith("job 12 on node1, node2")
    assert told(run, JobLine("12", "NODE_FAIL"))[0] == State.DIED
    run.end(75)
    run.write("summary.json", {"status": "stopped", "checkpoint": "step_6"})
    assert told(run, JobLine("12", "PENDING"))[0] == State.PENDING  # requeued
    assert told(run, JobLine("12", "COMPLETED"))[0] == State.STOPPED
    assert told(run, silent=True)[0] == State.STOPPED
    saved = told(run, JobLine("12", "RUNNING"))
    assert saved == (
        State.RUNNING,
        "attempt 1 has ended (stopped, saved), and job 12 is ending, or about to be requeued",
    )
    coming = told(run, JobLine("13", "RUNNING"))
    assert coming == (State.RUNNING, "attempt 1 has ended (stopped, saved), and job 13 is about to go on")


def test_a_job_speaks_for_its_own_attempts_only(run: Recorded) -> None:
    """Here the run goes on by `flash-launch resume`, after its job has ended."""
    run.write("slurm.json", {"jobs": [{"job_id": "12", "submitted": BEGAN}]})
    run.attempt(host="here")
    for jobs in ((), (JobLine("12", "COMPLETED"),)):
        assert told(run, *jobs, began=BEGAN - 5)[0] == State.RUNNING
        assert told(run, *jobs)[0] == State.DIED


def test_when_a_process_began() -> None:
    own = process_began(os.getpid())
    assert own is not None
    assert time.time() - 36_000 < own < time.time() + 2
    assert process_began(2**22 + 1) is None
