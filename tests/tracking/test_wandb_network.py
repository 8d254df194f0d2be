"""W&B with and without a network, against servers on loopback: nothing waits for it, and nothing is lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import wandb_file
from wandb_server import KEY, black_hole, nobody, wandb_server

from flash_launch.run_folder import RunFolder
from flash_launch.tracking.syncing import SyncError, find_waiting, upload

SCRIPT = Path(__file__).with_name("record_script.py")
WAIT = 20


@dataclass(frozen=True)
class Ended:
    """What a recording left."""

    path: Path
    out: str
    told: dict[str, float]

    @property
    def words(self) -> str:
        return self.out.rstrip().rpartition("\n")[0]

    def recorded(self) -> wandb_file.Recorded:
        (file,) = (self.path / "wandb").glob("offline-run-*/*.wandb")
        return wandb_file.read(file)


def record(folder: Path, name: str, *argv: str, **variables: str) -> Ended:
    """Record beside something that looks like training; no file may hold the key, and no process may be left."""
    home = folder / f"{name}-home"
    home.mkdir(exist_ok=True)
    home.chmod(0o500)
    run = folder / name
    environment = {key: value for key, value in os.environ.items() if not key.startswith("WANDB")}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(run), *argv],
        env={**environment, "HOME": str(home), "MARK": str(run), **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        cwd=folder,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert KEY not in done.stdout
    held = [path for path in run.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]
    assert held == []
    assert list(home.iterdir()) == []
    wait_for(lambda: marked(run) == 0, 20)  # W&B's watcher of its own process looks every five seconds
    ended = Ended(run, done.stdout, json.loads(done.stdout.rstrip().rpartition("\n")[2]))
    assert ended.told["started"] < 0.5
    return ended


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Ended]]:
    """All scenarios, side by side, since each mostly waits."""
    folder = tmp_path_factory.mktemp("network")
    assert len(KEY) >= 40
    with ExitStack() as stack, ThreadPoolExecutor(8) as pool:
        hole = stack.enter_context(black_hole())
        refusing, mute = stack.enter_context(wandb_server()), stack.enter_context(wandb_server())
        refusing.status, mute.swallow = 401, True

        def start(name: str, *argv: str, url: str, key: str = KEY) -> tuple[str, object]:
            return name, pool.submit(record, folder, name, *argv, WANDB_BASE_URL=url, WANDB_API_KEY=key)

        jobs = dict(
            [
                start("nobody", "online", "finished", "4", url=nobody()),
                start("unknown", "online", "finished", "4", url="http://no-such-host.invalid"),
                start("hole", "online", "finished", "8", url=hole),
                start("short", "online", "finished", "0.5", url=hole),
                start("refused", "online", "finished", "4", url=refusing.url),
                start("bad_key", "online", "finished", "4", url=refusing.url, key="short"),
                start("no_key", "online", "finished", "4", url=refusing.url, key=""),
            ]
        )
        yield {name: job.result() for name, job in jobs.items()}  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("nobody", r"127.0.0.1:\d+ cannot be reached (Connection refused)"),
        ("unknown", "no-such-host.invalid cannot be reached ("),
        ("hole", "cannot be reached (no answer within 5 s)"),
        ("short", "cannot be reached (no answer within 5 s)"),
        ("refused", "401"),
        ("bad_key", "API key"),
        ("no_key", "no login for 127.0.0.1"),
    ],
)
def test_a_network_that_is_not_there_costs_nothing(ended: dict[str, Ended], name: str, why: str) -> None:
    """One line; then everything is on disk. `slowest` is a step of 50 ms beside it, on a machine that is busy."""
    one = ended[name]
    lines = [line for line in one.words.splitlines() if line]
    assert len(lines) == 1, one.out
    assert why.replace(r"\d+", lines[0].partition("127.0.0.1:")[2].partition(" ")[0]) in lines[0]
    assert lines[0].endswith(f"recorded offline; upload it with: flash-launch sync {name}")
    assert one.told["closing"] < WAIT
    recorded = one.recorded()
    steps = [row["step"] for row in recorded.history if "loss" in row]
    assert steps == list(range(1, int(one.told["steps"]) + 1))
    assert [row["own"] for row in recorded.history if "own" in row] == steps
    assert recorded.exit_code == 0
    assert recorded.summary["status"] == "finished"
    assert recorded.summary["parameter_digest/0"] == "d"
    assert recorded.config["lr"] == 0.1
    assert ("*", "step") in recorded.metrics


def test_a_failed_attempt_ends_quickly_and_is_recorded_as_failed(tmp_path: Path) -> None:
    one = record(tmp_path, "failed", "offline", "failed", "3", "artifact")
    assert one.words == ""
    assert one.told["closing"] < 6
    recorded = one.recorded()
    assert recorded.exit_code == 1
    assert recorded.summary["status"] == "failed"
    assert recorded.artifacts == []


def test_a_network_that_goes_away_keeps_nobody(tmp_path: Path) -> None:
    with wandb_server() as server, ThreadPoolExecutor(1) as pool:
        job = pool.submit(
            record, tmp_path, "lost", "online", "finished", "4", WANDB_BASE_URL=server.url, WANDB_API_KEY=KEY
        )
        wait_for(lambda: bool(server.buckets))
        server.swallow = True
        one = job.result()
        server.swallow = False
        assert one.told["closing"] < WAIT
        first, last = [line for line in one.words.splitlines() if line]
        assert first.startswith("W&B: http://127.0.0.1:")
        assert first.endswith("/me/tests/runs/abc")
        assert last == "W&B has not taken everything in time; upload it with: flash-launch sync lost"
        steps = int(one.told["steps"])
        (waiting,) = find_waiting([RunFolder(one.path)])
        upload(waiting, {**os.environ, "WANDB_BASE_URL": server.url, "WANDB_API_KEY": KEY})
        assert [line["step"] for line in server.lines if "loss" in line] == list(range(1, steps + 1))
        assert server.exit_code == 0
        assert find_waiting([RunFolder(one.path)]) == []


def test_an_attempt_that_was_killed_is_recorded_again(tmp_path: Path) -> None:
    """What stood in its buffers is lost with it, so the next one begins where the last one in order ended."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("WANDB")}
    run = tmp_path / "killed"
    with subprocess.Popen(
        [sys.executable, str(SCRIPT), str(run), "offline", "finished", "60"],
        env={**environment, "HOME": str(tmp_path), "MARK": str(run)},
        stdout=subprocess.DEVNULL,
        cwd=tmp_path,
    ) as process:
        wait_for(lambda: len(recorded_steps(run)) > 60)  # in more than one piece, and it holds more
        assert marked(run) >= 2
        process.kill()
    wait_for(lambda: marked(run) == 0, 20)
    held = recorded_steps(run)
    before = len((run / "metrics.jsonl").read_text().splitlines())
    assert before >= len(held)
    record(tmp_path, "killed", "offline", "finished", "1")
    files = sorted((run / "wandb").glob("offline-run-*/*.wandb"))
    assert len(files) == 2
    total = len((run / "metrics.jsonl").read_text().splitlines())
    assert total > before
    again = wandb_file.read(files[1])
    told_again = [row["step"] for row in again.history if "loss" in row]
    assert set(held) | set(told_again) == set(range(1, total + 1))  # nothing is lost
    assert told_again == list(range(told_again[0], total + 1))
    assert len(held) - told_again[0] < 40  # what was handed over at once is told again, a second's worth, and no more
    numbers = [row["_step"] for file in files for row in wandb_file.read(file).history]
    assert numbers == sorted(set(numbers))
    with wandb_server() as server:
        variables = {**os.environ, "WANDB_BASE_URL": server.url, "WANDB_API_KEY": KEY}
        waiting = find_waiting([RunFolder(run)])
        assert [upload(one, variables).whole for one in waiting][-1]
        assert [line["step"] for line in server.lines if "loss" in line] == held + told_again
        assert find_waiting([RunFolder(run)]) == []
        server.stream_status = 403
        for one in waiting:
            one.file.with_name(f"{one.file.name}.synced").unlink()
        with pytest.raises(SyncError, match="was not uploaded"):
            upload(waiting[-1], variables)
        assert waiting[-1] in find_waiting([RunFolder(run)])


@pytest.mark.slow
def test_a_recording_outlives_wandbs_own_process(tmp_path: Path) -> None:
    """In a Slurm job, a SIGTERM reaches every process."""

    def end_core() -> None:
        wait_for(lambda: (tmp_path / "ended/wandb/progress.json").exists())
        time.sleep(1)
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get("MARK") == str(tmp_path / "ended") and "wandb-core" in process.name():
                    process.terminate()

    with ThreadPoolExecutor(1) as pool:
        ending = pool.submit(end_core)
        one = record(tmp_path, "ended", "offline", "finished", "6")
        ending.result()
    assert one.words == ""
    files = sorted((one.path / "wandb").glob("offline-run-*/*.wandb"))
    assert len(files) == 2
    last = wandb_file.read(files[1])
    assert [row["step"] for row in last.history if "loss" in row] == list(range(1, int(one.told["steps"]) + 1))
    assert last.summary["status"] == "finished"


def recorded_steps(run: Path) -> list[object]:
    """The steps that its first recording holds on disk."""
    files = sorted((run / "wandb").glob("offline-run-*/*.wandb"))
    return [row["step"] for row in wandb_file.read(files[0]).history if "loss" in row] if files else []


def marked(run: Path) -> int:
    """How many processes are left of a recording."""
    count = 0
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            count += process.environ().get("MARK") == str(run) and process.status() != psutil.STATUS_ZOMBIE
    return count


def test_stop_on_the_page_saves_and_stops(tmp_path: Path) -> None:
    """W&B asks every 15 s."""
    with wandb_server() as server:
        server.stop = True
        one = record(tmp_path, "stopped", "online", "stopped", "60", WANDB_BASE_URL=server.url, WANDB_API_KEY=KEY)
        assert one.told["stopped"]
        assert one.told["closing"] < WAIT
        steps = int(one.told["steps"])
        assert [line["step"] for line in server.lines if "loss" in line] == list(range(1, steps + 1))
        assert server.exit_code == 75
        assert server.summary["status"] == "stopped"
        assert find_waiting([RunFolder(one.path)]) == []


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)
