"""Crash drill: ranks or the launcher are killed at random times; the run's end must be that of a run without kills."""

from __future__ import annotations

import argparse
import ctypes
import functools
import hashlib
import json
import os
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console
from rich.table import Table

from flash_launch.checkpoint.store import Store
from flash_launch.errors import FlashLaunchError
from flash_launch.executors.local import LaunchResult
from flash_launch.executors.ports import held_port
from flash_launch.run_folder import RunFolder, read_json

SETUPS = ("zero2", "ddp", "zero2", "ddp", "zero2", "ddp", "zero2", "zero3")  # zero3 takes long on a CPU
EVERY = (1, 2)
TARGETS = ("rank", "all ranks", "launcher")
MOMENTS = {"launch": 1, "any": 4, "save": 4, "transition": 2, "end": 1}
"""When a kill comes, and how often: before the ranks start, at any time, in a save, between the steps around the
transition, after all steps."""
WORLD_SIZE, POLL_SECONDS = 2, 0.002
ATTEMPT_SECONDS, END_SECONDS = 240.0, 20.0
# 125 images on 2 ranks: 8 steps in each of 4 epochs. The learning rate changes at each step, so that it counts, too.
OPTIONS = (
    *("--nodes", str(WORLD_SIZE), "--accelerator", "cpu"),
    *("--max-epochs", "4", "--unfreeze-epoch", "2", "--batch-size", "8", "--timeout", "60"),
    *("--lr-schedule", "cosine", "--warmup-steps", "3"),
)
_UNFREEZES_AFTER, _STEPS = 16, 32
_VARIES = ("step_seconds", "examples_per_s", "memory_bytes")
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36

Start = Callable[[Sequence[str], Path, float], int]
"""Starts a launcher: its arguments, where it writes, and seconds that ranks have once one has died; its pid."""


@dataclass(frozen=True)
class Kill:
    """One kill, as it was drawn."""

    target: str
    """Of TARGETS."""
    moment: str
    """Of MOMENTS."""
    share: float
    """How far into the moment, from 0 to 1."""
    save: int
    """Moment save: in the how-maniest save of the attempt."""
    rank: float
    """Target rank: which, from 0 to 1."""
    grace: float
    """Seconds that the other ranks live on."""


@dataclass(frozen=True)
class Spans:
    """How long each moment takes, in seconds, from a run without kills."""

    launch: float
    """Until the ranks have started."""
    any: float
    """The whole run."""
    save: float
    transition: float
    end: float
    first_step: float
    """From the start to the first step."""

    def of(self, moment: str, steps: int) -> float:
        """A moment of a run that has done so many steps before."""
        if moment == "any":
            return self.first_step + (self.any - self.first_step) * (1 - steps / _STEPS)
        return float(getattr(self, moment))


@dataclass
class Ended:
    """How an attempt ended."""

    code: int | None
    """The launcher's exit code, negative: killed by that signal; None: it hung."""
    seconds: float
    kill: dict[str, object] | None = None
    """What was killed, if it came to that."""
    strays: list[str] = field(default_factory=list)
    """Command lines of processes that outlived the launcher."""
    ranks: float = 0.0
    """When the ranks were seen first, in seconds from the start."""
    steps: dict[int, float] = field(default_factory=dict)
    """When each step was seen."""


# ---- starting a launcher


def import_all() -> None:
    """Import what ranks need, once; they are forked from here, so no thread may run yet."""
    os.environ |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    import deepspeed.runtime.zero.muon.original_muon  # noqa: F401  torch.compile as a decorator: seconds of imports
    import torch

    import flash_launch.worker  # noqa: F401
    from flash_launch.preflight import examine

    torch.set_num_threads(1)
    examine("{strategy: freeze_unfreeze_deepspeed, nodes: 2, accelerator: cpu}")  # imports what is imported late
    del sys.modules["flash_launch.worker"]  # each rank runs it as its main module
    assert len(os.listdir("/proc/self/task")) == 1, "a thread would be lost in the forks"


def start_forked(argv: Sequence[str], log: Path, grace: float) -> int:
    """The command's own code but for two parts: no preflight, and ranks are forked instead of started by torchrun."""

    def body() -> int:
        from flash_launch import cli, launching
        from flash_launch.preparation import Preparation

        launching.prepare = lambda *_, **__: Preparation({})  # type: ignore[assignment]
        launching.run_local = functools.partial(_fork_ranks, grace=grace)  # type: ignore[assignment]
        return cli.main(argv)

    return _fork(body, log)


def start_command(argv: Sequence[str], log: Path, grace: float) -> int:
    """The real command. torchrun gives ranks their time to end, so there is no `grace`."""
    command = str(Path(sys.executable).with_name("flash-launch"))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return _fork(lambda: os.execve(command, [command, *argv], environment), log)


def _fork(body: Callable[[], int], log: Path | None) -> int:
    sys.stdout.flush()
    sys.stderr.flush()
    parent, pid = os.getpid(), os.fork()
    if pid:
        return pid
    code = 70
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() == parent:
            if log is not None:
                handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
                os.dup2(handle, 1)
                os.dup2(handle, 2)
            code = body()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _fork_ranks(
    folder: RunFolder, *, nodes: int, environment: Mapping[str, str], grace: float, attempt: int, **_: object
) -> LaunchResult:
    """In the place of run_local: fork the ranks, one per node, and end all when one has died."""
    began = time.monotonic()
    with held_port() as port:  # forked ranks listen at once: it need not be held longer
        pass
    common = {
        **environment,
        **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"},
        **{"WORLD_SIZE": str(nodes), "GROUP_WORLD_SIZE": str(nodes), "LOCAL_WORLD_SIZE": "1", "LOCAL_RANK": "0"},
        **{"TORCHELASTIC_RUN_ID": "drill", "FLASH_LAUNCH_LOGS": str(folder.logs)},
        **{"FLASH_LAUNCH_ENDS": str(folder.ends_of(attempt)), "FLASH_LAUNCH_ATTEMPT": str(attempt)},
        "FLASH_LAUNCH_PARENT": str(os.getpid()),
    }

    def rank(number: int) -> NoReturn:
        from flash_launch import rank_guard

        os.environ.clear()
        os.environ.update({**common, "RANK": str(number), "GROUP_RANK": str(number)})
        rank_guard.main(["-m", "flash_launch.worker", str(folder.path)])
        raise SystemExit(0)

    left = {_fork(functools.partial(rank, number), None) for number in range(nodes)}
    failed: float | None = None
    while left:
        pid, status = os.waitpid(-1, os.WNOHANG)
        left.discard(pid)
        if pid and status and failed is None:
            failed = time.monotonic()
            for other in left:
                os.kill(other, signal.SIGTERM)
        if failed is not None and time.monotonic() - failed > grace:
            for other in left:
                os.kill(other, signal.SIGKILL)
        if not pid:
            time.sleep(0.01)
    return LaunchResult(int(failed is not None), None, time.monotonic() - began)


# ---- one attempt


def attempt(start: Start, argv: Sequence[str], folder: RunFolder, log: Path, kill: Kill | None, spans: Spans) -> Ended:
    """Start a launcher, kill as was drawn, and wait until nothing of it is left."""
    began = time.monotonic()
    before = _unfinished(folder)
    launcher = start(argv, log, kill.grace if kill is not None else 0.0)
    ended = Ended(None, 0.0)
    watch = _Watch(folder, launcher, before, kill, spans)
    while (now := time.monotonic() - began) < ATTEMPT_SECONDS:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == launcher:
            ended.code = os.waitstatus_to_exitcode(status)
            break
        if kill is not None and ended.kill is None and watch.time_has_come(now):
            ended.kill = _strike(kill, folder, launcher, before) | {"seconds": round(now, 3), "moment": watch.moment}
        elif kill is None:
            watch.look(now)
        if not pid:
            time.sleep(POLL_SECONDS)
    ended.seconds, ended.ranks, ended.steps = time.monotonic() - began, watch.ranks or 0.0, watch.steps
    if ended.code is None:
        os.kill(launcher, signal.SIGKILL)
    ended.strays = _wait_for_all()
    if ended.kill is not None:
        # what a killed writer left behind tells that it was writing; a rank that lives on removes it
        ended.kill["saving"] = ended.kill["saving"] or bool(_unfinished(folder) - before)
    return ended


class _Watch:
    """Tells from the run folder when a kill's moment has come."""

    def __init__(self, folder: RunFolder, launcher: int, before: set[str], kill: Kill | None, spans: Spans) -> None:
        self.steps: dict[int, float] = {}
        self.ranks: float | None = None
        self.moment = kill.moment if kill is not None else ""
        self._folder, self._launcher, self._kill, self._spans = folder, launcher, kill, spans
        self._saves, self._size, self._first, self._last = set(before), -1, 0, 0
        self._since: float | None = None

    def look(self, now: float) -> None:
        """Note when the ranks run, and the steps that metrics.jsonl tells of."""
        if self.ranks is None:
            if rank_pids(self._folder, self._launcher):
                # only now, because rows that will be written again are dropped before the ranks start
                self.ranks, self._first = now, _last_step(self._folder)
                done = {"transition": self._first > _UNFREEZES_AFTER, "end": self._first == _STEPS}
                if self.moment == "launch" or done.get(self.moment):
                    self.moment = "any"  # it is past that
            return
        try:
            size = self._folder.metrics_jsonl.stat().st_size
        except FileNotFoundError:
            return
        if size != self._size:
            self._size, self._last = size, _last_step(self._folder)
            self.steps.setdefault(self._last, now)

    def time_has_come(self, now: float) -> bool:
        """Whether to kill now."""
        kill = self._kill
        assert kill is not None
        self.look(now)
        if self.moment in ("launch", "any"):
            return now >= kill.share * self._spans.of(self.moment, self._first)
        if self._since is None:
            new = _unfinished(self._folder) - self._saves
            self._saves |= new
            saves = {name.partition("_attempt")[0] for name in self._saves}
            begun = {
                "save": bool(new) and len(saves) >= kill.save,
                "transition": self._last >= _UNFREEZES_AFTER,
                "end": self._last >= _STEPS,
            }
            if not begun[self.moment]:
                return False
            self._since = now
        return now - self._since >= kill.share * self._spans.of(self.moment, self._first)


def _strike(kill: Kill, folder: RunFolder, launcher: int, before: set[str]) -> dict[str, object]:
    pids = rank_pids(folder, launcher)
    target = kill.target if pids else "launcher"
    victims = {
        "launcher": [launcher],
        "all ranks": pids,
        "rank": pids[int(kill.rank * len(pids)) :][:1],
    }[target]
    saving = bool(_unfinished(folder) - before)
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    return {"target": target, "saving": saving, "ranks": len(pids), "step": _last_step(folder)}


def rank_pids(folder: RunFolder, launcher: int) -> list[int]:
    """The ranks that run below a launcher, in order; files of an attempt before may lie there, too."""
    found: list[int] = []
    for file in sorted(folder.attempts.glob("*/node*_rank*.pid"), key=lambda file: file.name):
        try:
            pid = above = int(file.read_text())
            while above not in (0, 1, launcher):
                above = int(Path(f"/proc/{above}/stat").read_text().rpartition(")")[2].split()[1])
            if above == launcher:
                found.append(pid)
        except (OSError, ValueError):
            continue
    return found


def _unfinished(folder: RunFolder) -> set[str]:
    """Names of what is half-written among the checkpoints."""
    places = (folder.checkpoints, folder.checkpoints / "frozen")
    return {name for place in places for name in _names(place) if name.startswith(".")}


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:  # not there yet, or not any more
        return []


def _last_step(folder: RunFolder) -> int:
    try:
        lines = folder.metrics_jsonl.read_bytes().splitlines()
        return int(json.loads(lines[-1])["step"]) if lines else 0
    except (OSError, ValueError):
        return 0


def _wait_for_all() -> list[str]:
    """Wait until no process is left of an attempt, as its orphans are children of this one; names those that stay."""
    end, strays = time.monotonic() + END_SECONDS, list[str]()
    while True:
        try:
            if os.waitpid(-1, os.WNOHANG)[0]:
                continue
        except ChildProcessError:
            return strays
        if time.monotonic() > end:
            for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
                strays.append(Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").strip())
                os.kill(int(pid), signal.SIGKILL)
            end += END_SECONDS
        time.sleep(0.01)


# ---- what came of it


def outcome(folder: RunFolder) -> dict[str, Any]:
    """All that must not depend on kills."""
    summary = read_json(folder.summary_json)
    assert isinstance(summary, dict)
    told = ("status", "steps", "epochs", "world_size", "parameter_digest", "metrics")
    counted = ("name", "first_epoch", "trainable", "frozen", "steps")
    rows = [json.loads(line) for line in folder.metrics_jsonl.read_text().splitlines()]
    return {
        "summary": {key: summary.get(key) for key in told},
        "phases": [{key: phase[key] for key in counted} for phase in summary["phases"]],
        "weights": hashlib.sha256(folder.weights.read_bytes()).hexdigest(),
        "rows": [{key: value for key, value in row.items() if key not in _VARIES} for row in rows],
    }


def differences(expected: Mapping[str, Any], folder: RunFolder) -> list[str]:
    """What differs from a run without kills, a sentence each."""
    try:
        found = outcome(folder)
    except (OSError, ValueError, KeyError, AssertionError) as error:
        return [f"the run's end cannot be read: {type(error).__name__}: {error}"]
    wrong = [
        f"summary.json has {key} {value!r} instead of {expected['summary'][key]!r}"
        for key, value in found["summary"].items()
        if value != expected["summary"][key]
    ]
    if found["weights"] != expected["weights"]:
        wrong.append(f"model.safetensors is {found['weights']} instead of {expected['weights']}")
    if found["phases"] != expected["phases"]:
        wrong.append(f"the phases are {found['phases']} instead of {expected['phases']}")
    steps = [row["step"] for row in found["rows"] if row["kind"] == "step"]
    if steps != list(range(1, _STEPS + 1)):
        wrong.append(f"metrics.jsonl has the steps {steps}")
    elif found["rows"] != expected["rows"]:
        pairs = zip(found["rows"], expected["rows"], strict=False)
        first = next((f"{a} instead of {b}" for a, b in pairs if a != b), f"{len(found['rows'])} rows")
        wrong.append(f"metrics.jsonl has {first}")
    if left := _unfinished(folder):
        wrong.append(f"left among the checkpoints: {', '.join(sorted(left))}")
    return wrong + _checkpoint_problems(folder)


def _checkpoint_problems(folder: RunFolder) -> list[str]:
    store, wrong = Store(folder.checkpoints), list[str]()
    run = json.loads((folder.attempts / "0001.json").read_text())["run"]
    for name in store.names():
        try:
            store.checked(name, run)
        except FlashLaunchError as error:
            wrong.append(f"checkpoint {name}: {error}")
    return wrong


# ---- trials


@dataclass(frozen=True)
class Reference:
    """A run without kills, and without checkpoints."""

    outcome: dict[str, Any]
    """What all others must come to."""
    spans: dict[int, Spans]
    """By steps between two checkpoints, from a run with them."""


def arguments(setup: str, every: int) -> list[str]:
    """The options of a run that saves after so many steps; 0: never."""
    strategy = "freeze_unfreeze" if setup == "ddp" else "freeze_unfreeze_deepspeed"
    return ["--strategy", strategy, "--setup", setup, *OPTIONS, "--checkpoint-every", str(every), "steps"]


def make_reference(start: Start, setup: str, every: Sequence[int], folder: Path) -> Reference:
    """Run without kills: once without checkpoints, and once for each distance of checkpoints, which changes nothing.

    Raises:
        RuntimeError: such a run failed, or checkpoints did change something.
    """
    expected: dict[str, Any] = {}
    spans: dict[int, Spans] = {}
    for steps in (0, *every):
        run = RunFolder(folder / f"reference_{setup}_{steps}")
        log = folder / f"reference_{setup}_{steps}.log"
        argv = [*arguments(setup, steps), "--output-dir", str(run.path)]
        ended = attempt(start, argv, run, log, None, Spans(0, 0, 0, 0, 0, 0))
        wrong = [f"exit code {ended.code}"] * (ended.code != 0) + ended.strays
        if not wrong:
            expected = expected or outcome(run)
            wrong = differences(expected, run)
        if wrong:
            raise RuntimeError(f"without kills, {' '.join(argv)} came to another end: {'; '.join(wrong)}; see {log}")
        if steps:
            events = [json.loads(line) for line in run.events_jsonl.read_text().splitlines()]
            save = statistics.mean(event["seconds"] for event in events if event["event"] == "checkpoint")
            transition = ended.steps[_UNFREEZES_AFTER + 1] - ended.steps[_UNFREEZES_AFTER]
            spans[steps] = Spans(
                ended.ranks, ended.seconds, save, transition, ended.seconds - ended.steps[_STEPS], ended.steps[1]
            )
    return Reference(expected, spans)


def draw(number: int, seed: int, most: int) -> list[Kill]:
    """The kills of a trial, one at least: a pure function of the seed and the trial."""
    drawn = random.Random(f"{seed} {number}")
    return [
        Kill(
            drawn.choice(TARGETS),
            drawn.choices(list(MOMENTS), list(MOMENTS.values()))[0],
            drawn.random(),
            drawn.randint(1, 6),
            drawn.random(),
            drawn.choice((0.0, drawn.uniform(0, 1))),
        )
        for _ in range(drawn.randint(1, most))
    ]


def trial(
    start: Start, number: int, kills: Sequence[Kill], setup: str, every: int, reference: Reference, folder: Path
) -> dict[str, Any]:
    """Start, kill, and start again until the run is done; then compare. A folder without differences is deleted."""
    began = time.monotonic()
    place = folder / f"trial_{number:04}"
    place.mkdir(parents=True)
    run, log = RunFolder(place / "run"), place / "launcher.log"
    argv = [*arguments(setup, every), "--output-dir", str(run.path), "--resume", "auto"]
    attempts: list[Ended] = []
    wrong: list[str] = []
    while not wrong and (not attempts or attempts[-1].code != 0):
        kill = kills[len(attempts)] if len(attempts) < len(kills) else None
        ended = attempt(start, argv, run, log, kill, reference.spans[every])
        attempts.append(ended)
        which = f"attempt {len(attempts)}"
        if ended.code is None:
            wrong.append(f"{which} hung for {ATTEMPT_SECONDS:g} s")
        elif ended.code not in ((0, 1, -signal.SIGKILL) if ended.kill is not None else (0,)):
            wrong.append(f"{which} ended with {ended.code}, and {'a kill' if ended.kill else 'nothing'} before")
        wrong += [f"{which} left a process: {stray}" for stray in ended.strays]
    wrong += differences(reference.outcome, run)
    wrong += [line for line in log.read_text().splitlines() if "is passed over" in line]  # a torn one was visible
    if not wrong:
        shutil.rmtree(place)
    return {
        "trial": number,
        "setup": setup,
        "checkpoint_every_steps": every,
        "drawn": [asdict(kill) for kill in kills],
        "kills": [ended.kill for ended in attempts if ended.kill is not None],
        "attempts": len(attempts),
        "seconds": round(time.monotonic() - began, 3),
        "differences": wrong,
        "folder": str(place) if wrong else None,
    }


def run_trials(
    start: Start,
    trials: Mapping[int, Sequence[Kill]],
    setups: Sequence[str],
    folder: Path,
    say: Callable[[str], None],
) -> tuple[dict[str, Reference], list[dict[str, Any]]]:
    """References of all setups, then the trials, which take setups and distances of checkpoints in turn."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # orphans of a killed launcher become ours
    cases = {number: (setups[number % len(setups)], EVERY[number // len(setups) % len(EVERY)]) for number in trials}
    references: dict[str, Reference] = {}
    for setup in dict.fromkeys(setup for setup, _ in cases.values()):
        every = sorted({steps for other, steps in cases.values() if other == setup})
        references[setup] = make_reference(start, setup, every, folder)
        say(f"{setup}: without kills, {', '.join(f'{s.any:.1f} s' for s in references[setup].spans.values())}")
    done: list[dict[str, Any]] = []
    for number, (setup, every) in cases.items():
        one = trial(start, number, trials[number], setup, every, references[setup], folder)
        done.append(one)
        killed = ", ".join(f"{kill['target']} at step {kill['step']}" for kill in one["kills"]) or "nothing"
        say(f"trial {number}, {setup}, every {every}: {one['seconds']:.1f} s, {one['attempts']} attempts, {killed}")
        for difference in one["differences"]:
            say(f"  DIFFERENT: {difference}")
    return references, done


def conclude(trials: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Figures of all trials together."""
    kills = [kill for one in trials for kill in one["kills"]]
    attempts = [one["attempts"] for one in trials]
    return {
        "trials": len(trials),
        "different": [one["trial"] for one in trials if one["differences"]],
        "kills": len(kills),
        "kills_by_target": dict(Counter(kill["target"] for kill in kills)),
        "kills_by_moment": dict(Counter(kill["moment"] for kill in kills)),
        "kills_while_saving": sum(kill["saving"] for kill in kills),
        "kills_before_ranks": sum(not kill["ranks"] for kill in kills),
        "attempts": sum(attempts),
        "attempts_per_trial": {"mean": statistics.mean(attempts), "max": max(attempts)},
        "trials_by_setup": dict(Counter(one["setup"] for one in trials)),
    }


def table(trials: Sequence[dict[str, Any]]) -> Table:
    """Kills by what was killed and when."""
    kills = [kill for one in trials for kill in one["kills"]]
    counts = Counter((kill["target"], kill["moment"]) for kill in kills)
    shown = Table(title="Kills, by what was killed and at which moment")
    for heading in ("", *MOMENTS, "all", "of these while saving"):
        shown.add_column(heading, justify="right")
    for target in TARGETS:
        row = [counts[target, moment] for moment in MOMENTS]
        saving = sum(kill["saving"] for kill in kills if kill["target"] == target)
        shown.add_row(target, *map(str, (*row, sum(row), saving)))
    return shown


def main(given: Sequence[str] | None = None) -> int:
    """Run the drill, print its figures and write the JSON; 1 if any run came to another end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=100, help="trials with forked ranks (default: 100)")
    parser.add_argument("--real", type=int, metavar="N", help="N trials with the real command instead, 20 s a start")
    parser.add_argument("--first", type=int, default=0, help="number of the first trial (default: 0)")
    parser.add_argument("--seed", type=int, default=0, help="of targets and moments (default: 0)")
    parser.add_argument("--kills", type=int, default=4, help="at most so many in a trial (default: 4)")
    parser.add_argument("--setups", nargs="+", choices=sorted(set(SETUPS)), default=list(SETUPS), help="in turn")
    parser.add_argument("--folder", type=Path, help="where the runs are (default: a new one in the temporary folder)")
    parser.add_argument("--output", type=Path, default=Path("crash_drill.json"), help="default: crash_drill.json")
    options = parser.parse_args(given)
    began, console = time.monotonic(), Console(stderr=True, highlight=False, soft_wrap=True)
    folder = (options.folder or Path(tempfile.mkdtemp(prefix="crash-drill-"))).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    start: Start = start_command
    if options.real is None:
        import_all()
        start = start_forked
    count = options.trials if options.real is None else options.real
    references, trials = run_trials(
        start,
        {number: draw(number, options.seed, options.kills) for number in range(options.first, options.first + count)},
        options.setups,
        folder,
        lambda text: console.print(f"{time.monotonic() - began:6.0f} s  {text}", markup=False),
    )
    figures = conclude(trials)
    result = {
        "benchmark": "crash_drill",
        "real": options.real is not None,
        "seed": options.seed,
        "command": [*OPTIONS],
        "versions": {name: metadata.version(name) for name in ("torch", "deepspeed", "flash-launch")},
        "cores": len(os.sched_getaffinity(0)),
        "seconds": round(time.monotonic() - began, 1),
        **figures,
        "references": {
            setup: {"outcome": one.outcome, "spans": {str(key): asdict(value) for key, value in one.spans.items()}}
            for setup, one in references.items()
        },
        "runs": trials,
    }
    options.output.write_text(json.dumps(result, indent=1) + "\n")
    Console(width=None if sys.stdout.isatty() else 120).print(table(trials))
    print(
        f"{len(trials)} trials, {figures['kills']} kills, {figures['kills_while_saving']} of them while a checkpoint "
        f"was being written; {figures['attempts_per_trial']['mean']:.1f} attempts a trial, at most "
        f"{figures['attempts_per_trial']['max']}; {result['seconds']:.0f} s"
    )
    if figures["different"]:
        print(f"{len(figures['different'])} came to ANOTHER END: see {', '.join(filter(None, _folders(trials)))}")
    else:
        print("all came to the end of the run without kills, bit for bit")
        if options.folder is None:
            shutil.rmtree(folder)
    print(f"written to {options.output}")
    return int(bool(figures["different"]))


def _folders(trials: Sequence[dict[str, Any]]) -> list[str | None]:
    return [one["folder"] for one in trials]


if __name__ == "__main__":
    sys.exit(main())
