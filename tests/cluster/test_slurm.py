"""Runs on a real Slurm cluster: from submission to the end, over limits, requeues, dead nodes and outages."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from slurm_cluster import SUBNET, SlurmCluster

from conftest import COMMAND, OPTIONS, Login, Run

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]
slow = pytest.mark.slow


def test_from_submission_to_the_end(never_stopped: Run, slurm: SlurmCluster) -> None:
    run = never_stopped
    assert run.command.stderr == ""
    assert f"job {run.job_id}; run folder: run" in run.command.stdout
    assert "follow it: flash-launch status run, flash-launch logs -f run, flash-launch cancel run" in run.command.stdout
    assert run.summary["status"] == "finished"
    assert len(run.digests) == 1
    assert run.attempts == 1
    assert run.end_of(1)["exit_code"] == 0
    assert slurm.job(run.job_id)["ExitCode"] == "0:0"
    logs = {path.name: path.read_text() for path in (run.folder / "logs").glob("node*_rank*.log")}
    assert sorted(logs) == ["node0_rank0.log", "node0_rank1.log", "node1_rank2.log", "node1_rank3.log"]
    address = f"{SUBNET}.11" if slurm.kind == "namespaces" else "127.0.0.11"
    for text in logs.values():
        assert f'MASTER_ADDR={address} SAID=a, "b" c\n' in text


@slow
def test_requeued_by_hand(login: Login, never_stopped: Run) -> None:
    login.pause(0.3)
    run = login.submit("requeued", "--wandb", "offline")
    run.wait_for_step(3)
    login.cluster.run(["scontrol", "requeue", run.job_id])
    login.cluster.wait(lambda: (run.folder / "attempts/0001/end.json").exists(), 60, "the first attempt's end")
    login.pause(0)
    run.wait_for_end()
    assert run.end_of(1)["exit_code"] == 75
    assert run.attempts == 2
    assert json.loads((run.folder / "attempts/0002.json").read_text())["resumed_step"] >= 3
    recorded = [path.name for path in (run.folder / "wandb").glob("offline-run-*")]
    identity = json.loads((run.folder / "wandb/run.json").read_text())["id"]
    assert len(recorded) >= 2  # Slurm's signals end W&B's process, too, and another one goes on
    assert all(name.endswith(f"-{identity}") for name in recorded)
    assert run.digests == never_stopped.digests


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--nodes", "9"), "the cluster can never run this job (PartitionNodeLimit): it asks for more nodes than the"),
        pytest.param(("--slurm.time", "100"), "the cluster can never run this job (Partition", marks=slow),
        pytest.param(
            ("--slurm.partition", "nope"), "Batch job submission failed: Invalid partition name specified", marks=slow
        ),
        pytest.param(
            ("--slurm.gpus-per-node", "5", "--accelerator", "cpu"),
            "Requested node configuration is not available",
            marks=slow,
        ),
        pytest.param(
            ("--slurm.partition", "short", "--slurm.time", "9"),
            "(PartitionTimeLimit): its time limit is longer than",
            marks=slow,
        ),
    ],
)
def test_impossible_requests_are_refused(login: Login, options: tuple[str, ...], message: str) -> None:
    run = login.submit("deep/er", *options)
    assert run.command.returncode == 2
    assert message in run.command.stderr
    assert not (login.folder / "deep").exists()
    assert login.cluster.run(["squeue", "-h"]).stdout == ""


@slow
def test_a_dependency_that_can_never_be(login: Login) -> None:
    failed = login.cluster.run(["sbatch", "--parsable", "--output=/dev/null", "--wrap", "exit 1"]).stdout.strip()
    login.cluster.wait_for_state(failed, "FAILED", seconds=30)
    run = login.submit("after", "--slurm.dependency", f"afterok:{failed}")
    assert run.command.returncode == 2
    assert "DependencyNeverSatisfied" in run.command.stderr
    assert not run.folder.exists()


@slow
def test_time_limit_save_requeue_resume(login: Login, never_stopped: Run) -> None:
    login.pause(6)
    # limits are whole minutes and looked at twice a minute: the warning comes 90 to 120 s after the start
    run = login.submit("limited", "--slurm.time", "3", "--slurm.warning", "90")
    login.cluster.wait(lambda: (run.folder / "attempts/0001/end.json").exists(), 180, "the first attempt's end")
    login.pause(0)
    run.wait_for_end(seconds=240)
    assert run.end_of(1)["exit_code"] == 75
    assert run.attempts >= 2
    assert int(login.cluster.job(run.job_id)["Restarts"]) == run.attempts - 1
    assert run.digests == never_stopped.digests


@slow
def test_restarts_without_progress_are_capped(login: Login) -> None:
    login.pause(2)
    run = login.submit("stalled", "--slurm.stalled-restarts", "2", "--checkpoint-every", "1000", "steps")
    for restart in range(1, 4):
        # killed, so that nothing is saved
        login.cluster.wait(lambda n=restart: (run.folder / f"attempts/{n:04}/node0_rank0.pid").exists(), 60, "a start")
        for file in (run.folder / f"attempts/{restart:04}").glob("node*.json"):
            os.kill(_outside(run, json.loads(file.read_text())["host"], int(json.loads(file.read_text())["pid"])), 9)
        login.cluster.run(["scontrol", "requeue", run.job_id])
    run.wait_for_end("FAILED")
    assert "the job was restarted 2 times from step 0 and never got further: it is given up" in run.output
    assert run.summary["status"] == "failed"


def _outside(run: Run, host: str, pid: int) -> int:
    """The pid, as this process sees it, of one in a node's namespace."""
    if run.cluster.kind == "loopback":
        return pid
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            text = status.read_text()
            inner = next(line for line in text.splitlines() if line.startswith("NSpid:")).split()[-1]
            command = (status.parent / "cmdline").read_bytes()
            environment = (status.parent / "environ").read_bytes()
        except (OSError, StopIteration):
            continue
        if (
            int(inner) == pid
            and b"flash_launch.job\0node" in command
            and f"SLURMD_NODENAME={host}\0".encode() in environment
        ):
            return int(status.parent.name)
    raise AssertionError(f"no process {pid} on {host}")


@slow
def test_scancel_saves_and_is_not_requeued(login: Login, never_stopped: Run) -> None:
    login.pause(0.3)
    run = login.submit("cancelled")
    run.wait_for_step(2)
    login.cluster.run(["scancel", run.job_id])
    run.wait_for_end("CANCELLED")
    login.cluster.wait(lambda: (run.folder / "attempts/0001/end.json").exists(), 40, "the end to be told")
    assert run.end_of(1)["exit_code"] == 75
    assert run.attempts == 1
    login.pause(0)
    again = Run(login.cluster, run.folder, login.flash_launch("submit", "cancelled"))
    assert again.command.returncode == 0, again.command.stderr
    again.wait_for_end()
    assert again.digests == never_stopped.digests


@slow
def test_cancel_from_the_login_node(login: Login) -> None:
    login.pause(0.3)
    run = login.submit("cancelled")
    run.wait_for_step(2)
    done = login.flash_launch("cancel", "cancelled")
    assert (done.returncode, done.stdout) == (
        0,
        f"flash-launch: job {run.job_id} (running) is cancelled: what runs saves first, and can go on\n",
    )
    run.wait_for_end("CANCELLED")


@slow
def test_a_bug_is_not_requeued(login: Login) -> None:
    (login.folder / "bug").touch()
    run = login.submit("buggy")
    run.wait_for_end("FAILED")
    assert login.cluster.job(run.job_id)["ExitCode"] == "1:0"
    assert run.attempts == 1
    assert "failed first: ValueError: the loss is a banana" in run.output
    why = login.flash_launch("why", "buggy")
    assert "ValueError: the loss is a banana" in why.stdout


@slow
@pytest.mark.parametrize("how", ["powered off", "unplugged"])
def test_a_dead_node(login: Login, never_stopped: Run, how: str) -> None:
    """Powered off, or cut from the network while its ranks go on: resumed when it is back, nothing lost."""
    cluster = login.cluster
    if cluster.kind != "namespaces":
        pytest.skip("nodes with network namespaces of their own need root")
    node = cluster.nodes[1]
    login.pause(0.5)
    run = login.submit("bereft")
    run.wait_for_step(5)
    (cluster.power_off if how == "powered off" else cluster.unplug)(node)
    # Slurm notices, kills what it can reach, and requeues the job; its other node comes back later
    cluster.wait(lambda: "down" in " ".join(cluster.states()), 60, "the node to be down", cluster.states)
    login.pause(0)
    if how == "powered off":
        cluster.start_node(node)
    else:
        cluster.plug_in(node)
    run.wait_for_end(seconds=200)
    assert run.attempts >= 2
    assert run.digests == never_stopped.digests


@slow
def test_resumed_elsewhere(login: Login, never_stopped: Run) -> None:
    """A node goes for good: the run goes on with both nodes' ranks on the one that is left."""
    cluster = login.cluster
    if cluster.kind != "namespaces":
        pytest.skip("nodes with network namespaces of their own need root")
    node = cluster.nodes[1]
    login.pause(0.5)
    run = login.submit("moved")
    run.wait_for_step(5)
    cluster.power_off(node)
    try:
        cluster.wait(lambda: "down" in " ".join(cluster.states()), 60, "the node to be down", cluster.states)
        cluster.run(["scancel", run.job_id])
        run.wait_for_end("CANCELLED")
        login.pause(0)
        options = ("--nodes", "1", "--procs-per-node", "4")
        again = Run(cluster, run.folder, login.flash_launch("submit", "moved", *options))
        assert again.command.returncode == 0, again.command.stderr
        again.wait_for_end()
    finally:
        cluster.start_node(node)
        cluster.wait(lambda: cluster.states() == ["idle", "idle"], 60, "the node to be back", cluster.states)
    assert again.digests == never_stopped.digests


@slow
def test_the_controller_goes_and_comes_back(login: Login, never_stopped: Run) -> None:
    cluster = login.cluster
    login.pause(0.5)
    run = login.submit("outage")
    run.wait_for_step(2)
    job_id = run.job_id
    cluster.stop_controller()
    before = time.monotonic()
    status = login.flash_launch("status", "outage")
    assert status.returncode == 0
    assert "the Slurm controller did" in status.stdout + status.stderr
    assert time.monotonic() - before < 60
    refused = login.submit("other")
    assert refused.command.returncode == 1
    assert "the Slurm controller did not answer for 30 s" in refused.command.stderr
    assert not refused.folder.exists()
    login.pause(0)
    cluster.wait(lambda: run.summary.get("status") == "finished", 240, "the run's end, without a controller")
    cluster.start_controller()
    assert cluster.wait_for_state(job_id, "COMPLETED", seconds=240)
    assert run.digests == never_stopped.digests


@slow
def test_a_sweep_is_one_array(login: Login) -> None:
    short = ("--nodes", "2", "--strategy", "freeze", "--task", "slow_task:SlowTask", "--max-epochs", "1")
    run = login.submit("sweep", "--slurm.array", "seed=1,2", "--slurm.array", "lr=1e-3,1e-2", options=short)
    assert run.command.returncode == 0, run.command.stderr
    assert f"job {run.job_id}, 4 runs; run folder: sweep" in run.command.stdout
    names = ["0-seed=1-lr=1e-3", "1-seed=1-lr=1e-2", "2-seed=2-lr=1e-3", "3-seed=2-lr=1e-2"]
    login.cluster.wait(
        lambda: all((run.folder / name / "summary.json").exists() for name in names), 200, "all runs' ends"
    )
    login.cluster.wait(lambda: not login.cluster.run(["squeue", "-h"]).stdout.strip(), 30, "the array's end")
    for name, seed in zip(names, (1, 1, 2, 2), strict=True):
        summary = json.loads((run.folder / name / "summary.json").read_text())
        assert summary["status"] == "finished"
        assert f"seed: {seed}\n" in (run.folder / name / "config.yaml").read_text()
    table = (run.folder / "results.md").read_text()
    assert table.count("finished") == 4
    assert "| seed |" in table
    status = login.flash_launch("status", "sweep")
    assert status.stdout.count("finished") >= 4


@slow
def test_one_task_of_a_sweep_is_requeued_alone(login: Login) -> None:
    """Also the one whose number is that of the whole array."""
    login.pause(0.5)
    short = ("--nodes", "1", "--strategy", "freeze", "--task", "slow_task:SlowTask", "--max-epochs", "2")
    sweep = login.submit("sweep", "--slurm.array", "seed=1,2", options=short)
    runs = [Run(login.cluster, sweep.folder / name, sweep.command) for name in ("0-seed=1", "1-seed=2")]
    for run in runs:
        run.wait_for_step(2)
    listed = login.cluster.run(["squeue", "-h", "-t", "R", "-o", "%A %F %K"]).stdout.splitlines()
    (task,) = [int(line.split()[2]) for line in listed if line.split()[0] == line.split()[1]]
    login.cluster.run(["scancel", "--signal=USR1", f"{sweep.job_id}_{task}"])
    login.cluster.wait(lambda: runs[task].attempts == 2, 240, "the second attempt")
    login.pause(0)
    login.cluster.wait(lambda: not login.cluster.run(["squeue", "-h"]).stdout.strip(), 240, "the array's end")
    assert [run.summary["status"] for run in runs] == ["finished", "finished"]
    assert (runs[task].attempts, runs[1 - task].attempts) == (2, 1)
    assert runs[task].end_of(1)["exit_code"] == 75
    logs = login.flash_launch("logs", str(runs[task].folder), "--job")
    assert "attempt 2" in logs.stdout


@slow
def test_a_job_waits_for_another(login: Login) -> None:
    first = login.cluster.run(["sbatch", "--parsable", "--output=/dev/null", "--wrap", "sleep 20"]).stdout.strip()
    run = login.submit("after", "--slurm.dependency", f"afterok:{first}")
    assert run.command.returncode == 0, run.command.stderr
    status = login.flash_launch("status", "after")
    assert "it waits for another job" in status.stdout
    run.wait_for_end()
    assert run.summary["status"] == "finished"


@slow
def test_in_an_allocation_the_plain_command_uses_it(login: Login, never_stopped: Run) -> None:
    options = " ".join(OPTIONS[2:])
    script = f"#!/bin/bash\n{COMMAND} {options} --output-dir inside\n"
    (login.folder / "job.sh").write_text(script)
    argv = ["sbatch", "--parsable", "--nodes=2", "--ntasks-per-node=1", "--output=plain.out", "job.sh"]
    job = login.cluster.run(argv, cwd=login.folder).stdout.strip()
    assert login.cluster.wait_for_state(job, "COMPLETED", "FAILED", seconds=120) == "COMPLETED", (
        login.folder / "plain.out"
    ).read_text()
    out = (login.folder / "plain.out").read_text()
    assert f"job {job}" in out
    assert "epoch 3: " in out
    summary = json.loads((login.folder / "inside/summary.json").read_text())
    assert set(summary["parameter_digest"].values()) == never_stopped.digests


@slow
@pytest.mark.parametrize("partition", ["low", "rude"])
def test_preempted_and_resumed(login: Login, never_stopped: Run, partition: str) -> None:
    """With a time of grace, and without: then Slurm sends several SIGTERMs at once, and SIGKILL after KillWait."""
    cluster = login.cluster
    login.pause(0.5)
    run = login.submit("preempted", "--slurm.partition", partition)
    run.wait_for_step(3)
    argv = [
        "sbatch",
        "--parsable",
        "--partition=urgent",
        "--nodes=2",
        "--exclusive",
        "--output=/dev/null",
        "--wrap",
        "sleep 5",
    ]
    urgent = cluster.run(argv).stdout.strip()
    cluster.wait_for_state(urgent, "RUNNING", seconds=60)
    login.pause(0)
    run.wait_for_end()
    assert run.end_of(1)["exit_code"] == 75
    assert run.attempts == 2
    assert run.digests == never_stopped.digests
