"""Soak: many real starts of the command under load, beside other torchrun jobs and somebody who takes ports.

    python benchmarks/soak.py --starts 200 --minutes 90 --at-once 4 --output soak.jsonl

Start number N of a seed is always the same command. Every one must finish, with ranks that are equal, or its verdict
must name a cause outside of us; else the exit code is 1, and its folder is kept beside the output. Called again with
the same output, it goes on with the numbers that are not there yet, so a long soak can be had in pieces.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

SETUPS = ("ddp", "zero1", "zero2", "zero3")
STRATEGIES: dict[str, tuple[str, ...]] = {
    "no_freeze": ("--max-epochs", "1"),
    "freeze": ("--max-epochs", "1"),
    "freeze_unfreeze": ("--max-epochs", "2", "--unfreeze-epoch", "1"),
    "unfreeze_milestones": ("--max-epochs", "3", "--milestones", "1", "2", "--num-layers", "2"),
}
SHAPES = ((1, 1), (1, 2), (2, 1), (2, 1), (2, 2), (3, 1))
"""Nodes and ranks on each."""
COMMAND = Path(sys.executable).with_name("flash-launch")
FOREIGN = Path(__file__).with_name("soak_foreign.py")
RUN_SECONDS = 900.0
OUTSIDE = re.compile(r"out of memory|No space left|ports one after the other were taken|memory limit", re.IGNORECASE)
"""Words of a verdict that name a cause which is not ours."""


@dataclass(frozen=True)
class Start:
    """One start, as it was drawn."""

    number: int
    strategy: str
    setup: str
    nodes: int
    procs: int
    workers: int

    @property
    def argv(self) -> list[str]:
        """The command line, but for its folder."""
        twin = "" if self.setup == "ddp" else "_deepspeed"
        return [
            *("--strategy", self.strategy + twin, *STRATEGIES[self.strategy], "--setup", self.setup),
            *("--nodes", str(self.nodes), "--procs-per-node", str(self.procs), "--accelerator", "cpu"),
            *("--num-workers", str(self.workers), "--batch-size", "16", "--limit-train-batches", "2"),
        ]


@dataclass(frozen=True)
class Outcome:
    """How a start ended."""

    start: Start
    code: int | None
    """Exit code; None: it had not ended in time."""
    seconds: float
    said: str
    """What is wrong; empty: it finished."""
    outside: bool
    """Whether the verdict names a cause outside of us."""


def draw(seed: int, number: int) -> Start:
    """Start number N of a seed."""
    chance = random.Random(f"{seed} {number}")
    nodes, procs = chance.choice(SHAPES)
    return Start(
        number,
        chance.choice(list(STRATEGIES)),
        SETUPS[number % len(SETUPS)],
        nodes,
        procs,
        chance.choice((0, 0, 1)),
    )


def start_and_wait(start: Start, folder: Path) -> Outcome:
    """Run the command to its end in a folder of its own."""
    folder.mkdir(parents=True)
    began = time.monotonic()
    with (folder / "console.log").open("wb") as console:
        process = subprocess.Popen(
            [COMMAND, *start.argv, "--output-dir", "run"],
            cwd=folder,
            env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled"},
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=console,
            start_new_session=True,
        )
        try:
            code: int | None = process.wait(RUN_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()  # its agents and ranks end with it
            process.wait()
            code = None
    seconds = time.monotonic() - began
    text = (folder / "console.log").read_text(errors="replace")
    said = (
        "" if code == 0 else f"no end within {RUN_SECONDS:g} s" if code is None else "\n".join(text.splitlines()[-12:])
    )
    return Outcome(start, code, seconds, said or unequal(folder / "run"), bool(OUTSIDE.search(said)))


def unequal(run: Path) -> str:
    """What is wrong with a run that says it finished."""
    summary = json.loads((run / "summary.json").read_text())
    if summary["status"] != "finished":
        return f"exit code 0, but its summary says {summary['status']}"
    return "" if len(set(summary["parameter_digest"].values())) == 1 else "its ranks' digests differ"


class Neighbours:
    """Who else is on the machine: torchrun jobs that start and end, a taker of ports, and load."""

    def __init__(self, jobs: int, ports: int, load: int, seed: int) -> None:
        self._chance = random.Random(seed)
        self._over = threading.Event()
        self._ports = ports
        self.jobs_ended: list[int] = []
        threads = [threading.Thread(target=self._run_jobs) for _ in range(jobs)]
        threads += [threading.Thread(target=self._take_ports)] if ports else []
        self._threads = threads
        self._load = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(load)]
        for thread in threads:
            thread.start()

    def _run_jobs(self) -> None:
        while not self._over.is_set():
            argv = [*(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")]
            seconds = self._chance.uniform(1, 8)
            with subprocess.Popen(
                [*argv, str(FOREIGN), str(seconds)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
            ) as job:
                self.jobs_ended.append(job.wait())

    def _take_ports(self) -> None:
        """Listen at some ports that the system gives out, each for a few seconds."""
        taken: list[socket.socket] = []
        while not self._over.wait(0.02):
            for _ in range(max(1, self._ports // 100)):
                one = socket.socket()
                one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                one.bind(("", 0))
                one.listen()
                taken.append(one)
            while len(taken) > self._ports:
                taken.pop(self._chance.randrange(len(taken))).close()
        for one in taken:
            one.close()

    def end(self) -> None:
        """End them all, and wait for it."""
        self._over.set()
        for busy in self._load:
            busy.kill()
            busy.wait()
        for thread in self._threads:
            thread.join()


def soak(numbers: Sequence[int], seed: int, at_once: int, minutes: float, folder: Path, output: Path) -> None:
    """Make the starts, some at a time, until they are made or the time is up."""
    end = time.monotonic() + 60 * minutes
    left, lock = list(numbers), threading.Lock()

    def work() -> None:
        while time.monotonic() < end:
            with lock:
                if not left:
                    return
                number = left.pop(0)
            place = folder / f"start_{number}"
            outcome = start_and_wait(draw(seed, number), place)
            with lock:
                with output.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"seed": seed, **asdict(outcome)}) + "\n")
                if outcome.said:
                    kept = output.with_suffix("") / place.name
                    shutil.copytree(place, kept, dirs_exist_ok=True)
                    print(
                        f"start {number} ({' '.join(outcome.start.argv)}), kept in {kept}:\n{outcome.said}", flush=True
                    )
            shutil.rmtree(place)

    threads = [threading.Thread(target=work) for _ in range(at_once)]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join()
    finally:  # Ctrl-C: those that run are waited for
        with lock:
            left.clear()
        for thread in threads:
            thread.join()


def recorded(output: Path, seed: int) -> list[Outcome]:
    """What an output has of a seed."""
    if not output.exists():
        return []
    rows = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    return [
        Outcome(Start(**row["start"]), *(row[key] for key in ("code", "seconds", "said", "outside")))
        for row in rows
        if row["seed"] == seed
    ]


def table(outcomes: Sequence[Outcome]) -> Table:
    """How the starts ended, by setup."""
    shown = Table("setup", "starts", "finished", "outside of us", "failed", "median s", "longest s")
    for setup in (*SETUPS, "all"):
        rows = [one for one in outcomes if setup in (one.start.setup, "all")]
        if rows:
            outside = sum(bool(one.said) and one.outside for one in rows)
            failed = sum(bool(one.said) and not one.outside for one in rows)
            times = [one.seconds for one in rows]
            counts = (len(rows), len(rows) - outside - failed, outside, failed)
            shown.add_row(setup, *map(str, counts), f"{statistics.median(times):.0f}", f"{max(times):.0f}")
    return shown


def main(argv: Sequence[str] | None = None) -> int:
    """Soak, and say how the starts ended; 1 if one failed of us."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--starts", type=int, default=200, help="numbers 0 to STARTS - 1 of the seed (%(default)s)")
    parser.add_argument("--minutes", type=float, default=90.0, help="no start begins later (%(default)g)")
    parser.add_argument("--at-once", type=int, default=3, help="starts at a time (%(default)s)")
    parser.add_argument("--foreign", type=int, default=1, help="torchrun jobs at a time (%(default)s)")
    parser.add_argument("--ports", type=int, default=500, help="ports that are taken at a time (%(default)s)")
    parser.add_argument("--load", type=int, default=0, help="processes that do nothing but compute (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("soak.jsonl"), help="a line per start (%(default)s)")
    asked = parser.parse_args(argv)
    done = recorded(asked.output, asked.seed)
    numbers = sorted(set(range(asked.starts)) - {one.start.number for one in done})
    neighbours = Neighbours(asked.foreign, asked.ports, asked.load, asked.seed)
    try:
        with tempfile.TemporaryDirectory(prefix="soak_") as folder:
            soak(numbers, asked.seed, asked.at_once, asked.minutes, Path(folder), asked.output.absolute())
    finally:
        neighbours.end()
    outcomes = recorded(asked.output, asked.seed)
    Console(width=100).print(table(outcomes))
    ended = len(neighbours.jobs_ended)
    print(
        f"beside {ended} foreign torchrun jobs in this call; {asked.starts - len(outcomes)} starts left; {asked.output}"
    )
    return int(any(one.said and not one.outside for one in outcomes))


if __name__ == "__main__":
    sys.exit(main())
