"""Fixtures of all tests: ranks started on this machine, and suites of cases that run on them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

os.environ.setdefault("WANDB_MODE", "disabled")  # tests of W&B say otherwise; no other test waits for it
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background job: what tests start is to heed Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)

RANK_CASES = Path(__file__).parent / "engines" / "rank_cases.py"
MOST_STARTS = 5


@dataclass(frozen=True)
class Ended:
    """How one rank ended."""

    exit_code: int
    """Negative: killed by that signal."""
    output: str
    """Its stdout and stderr."""


StartRanks = Callable[..., list[Ended]]


def start(
    argv: Sequence[str],
    world_size: int,
    folder: Path,
    *,
    timeout: float = 120,
    grace: float = 5,
    environment: Mapping[str, str] | None = None,
    python: str = sys.executable,
) -> list[Ended]:
    """Run `python ARGV` once per rank, as torchrun would, and wait for all.

    Args:
        argv: the script and its arguments.
        world_size: number of ranks, all on this machine.
        folder: where their output goes.
        timeout: seconds after which they are killed.
        grace: seconds the others have to end by themselves once one has failed.
        environment: more variables.
        python: the interpreter.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "GROUP_RANK": "0",
        "TORCHELASTIC_RUN_ID": "tests",
        "OMP_NUM_THREADS": "1",
        "PYTHONWARNINGS": "ignore",
        "PYTHONFAULTHANDLER": "1",
        "TORCH_EXTENSIONS_DIR": str(folder / "extensions"),
        "CUDA_VISIBLE_DEVICES": "",
    }
    ranks: list[subprocess.Popen[bytes]] = []
    logs = [folder / f"rank{rank}.log" for rank in range(world_size)]
    try:
        for rank, log in enumerate(logs):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            with log.open("wb") as sink:
                ranks.append(
                    subprocess.Popen(
                        [python, *argv],
                        stdin=subprocess.DEVNULL,
                        stdout=sink,
                        stderr=subprocess.STDOUT,
                        env={**os.environ, **common, **own, **(environment or {})},
                    )
                )
        end = time.monotonic() + timeout
        while any(rank.poll() is None for rank in ranks) and time.monotonic() < end:
            if any(rank.poll() for rank in ranks):
                end = min(end, time.monotonic() + grace)
            time.sleep(0.02)
    finally:
        for process in ranks:
            if process.poll() is None:
                process.kill()
            process.wait()
    return [
        Ended(process.returncode, log.read_text(errors="replace")) for process, log in zip(ranks, logs, strict=True)
    ]


@pytest.fixture(scope="session")
def start_ranks(tmp_path_factory: pytest.TempPathFactory) -> StartRanks:
    """`start` with a new folder each time."""
    return lambda argv, world_size, **options: start(argv, world_size, tmp_path_factory.mktemp("ranks"), **options)


class Suites:
    """Runs suites of cases: all cases of a suite and world size that are to be tested, in one start of its ranks.

    A suite is a file with `run_case(name) -> object`, which runs on every rank. A case that fails ends its ranks; the
    others go on in new ones.
    """

    def __init__(self, session: pytest.Session, folders: pytest.TempPathFactory) -> None:
        self._session = session
        self._folders = folders
        self._results: dict[tuple[Path, int], dict[str, list[object] | str]] = {}

    def result(self, suite: Path, world_size: int, case: str) -> list[object]:
        """What `run_case` gave on each rank; fails the test with the ranks' errors if it did not."""
        key = (suite, world_size)
        if key not in self._results:
            cases = self._asked_for(suite, world_size)
            self._results[key] = dict.fromkeys(cases, "the ranks were started before, and no result came of it")
            self._results[key] = self._run(suite, world_size, cases)
        found = self._results[key][case]
        if isinstance(found, str):
            pytest.fail(found, pytrace=False)
        return found

    def _asked_for(self, suite: Path, world_size: int) -> list[str]:
        """Tests of a suite have the parameter `case`, an object with `suite`, `world_size` and `name`."""
        cases = [getattr(item, "callspec", None) and item.callspec.params.get("case") for item in self._session.items]
        ours = [case for case in cases if getattr(case, "suite", None) == suite and case.world_size == world_size]
        return list(dict.fromkeys(case.name for case in ours))

    def _run(self, suite: Path, world_size: int, cases: list[str]) -> dict[str, list[object] | str]:
        import torch

        done: dict[str, list[object] | str] = {}
        starts = 0
        while left := [case for case in cases if case not in done]:
            starts += 1
            if starts > MOST_STARTS:
                return {**dict.fromkeys(left, f"was not run: {MOST_STARTS} starts of its ranks failed before"), **done}
            folder = self._folders.mktemp(f"{suite.stem}{world_size}_")
            (folder / "cases.json").write_text(json.dumps(left))
            ended = start([str(RANK_CASES), str(suite), str(folder)], world_size, folder, timeout=400)
            failed: dict[str, str] = {}
            for index, case in enumerate(left):
                files = [folder / f"{index}.{rank}.pt" for rank in range(world_size)]
                found = [torch.load(file, weights_only=False) if file.exists() else {} for file in files]
                if errors := [f"rank {rank}: {f['error']}" for rank, f in enumerate(found) if "error" in f]:
                    failed[case] = "\n".join(errors)
                elif all("result" in f for f in found):
                    done[case] = [f["result"] for f in found]
            if not failed and (undone := [case for case in left if case not in done]):
                tails = [f"rank {rank} ended with {e.exit_code}:\n{e.output[-3000:]}" for rank, e in enumerate(ended)]
                failed[undone[0]] = "\n".join(tails)
            done.update(failed)
        return done


@pytest.fixture(scope="session")
def suites(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Suites:
    """Suites of cases that run on ranks; each is started at most once per session and world size."""
    return Suites(request.session, tmp_path_factory)
