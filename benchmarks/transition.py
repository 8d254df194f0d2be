"""Time and peak memory of a transition, against the two other ways, in one run: a table, and JSON.

The case is freeze_unfreeze: the head and half of the model were trained for some steps, now the rest is unfrozen. The
peers, on the same ranks and interleaved with ours:

(a) destroy the engine and initialise it again with its state kept, warm: the first time in a process is not counted,
    nor is the time to remove what destroy() leaves behind, nor collecting garbage. With DDP: wrapper and AdamW anew.
(b) what people do today: save, stop all processes, start them again, load. To where the next step could begin. With
    DeepSpeed only the weights can be loaded after a change of what trains (its optimizer state cannot).

Every aim is a ratio of medians; a change's time is that of the slowest rank. New state is what masters and moments the
newly unfrozen parameters have on a rank; peaks are above the memory in use before the change. The aim for memory is
about the change itself; what follows is shown beside it: its first step (where moments are made, and gradients, which
are no state) and a later one.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import IO, Any

from rich.console import Console
from rich.table import Table

SETUPS = ("ddp", "zero1", "zero2", "zero3")
AIM_AGAIN, AIM_RESTART, AIM_MEMORY = 0.5, 0.05, 1.25
MIB = 1 << 20


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    size: str
    """As asked for: 10M."""
    parameters: int
    """What it means."""
    setup: str
    """How the ranks hold the model."""
    ranks: int
    """World size."""
    device: str
    """cpu or cuda."""


class Ranks:
    """The processes of one job, told what to do line by line."""

    def __init__(self, case: Case, load: Path | None = None) -> None:
        """Start them; `ready` waits until they are."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        threads = max(1, len(os.sched_getaffinity(0)) // case.ranks)
        self._processes: list[subprocess.Popen[str]] = []
        self._answers: list[IO[str]] = []
        for rank in range(case.ranks):
            read, write = os.pipe()
            environment = {
                **os.environ,
                **{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(case.ranks)},
                **{"LOCAL_WORLD_SIZE": str(case.ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
                **{"OMP_NUM_THREADS": str(threads), "DS_ACCELERATOR": case.device},
            }
            command = [sys.executable, str(Path(__file__).with_name("transition_rank.py"))]
            command += ["--setup", case.setup, "--parameters", str(case.parameters), "--device", case.device]
            command += ["--answers", str(write), *(["--load", str(load)] if load else [])]
            self._processes.append(
                subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    stderr=sys.stderr if "TRANSITION_BENCHMARK_STDERR" in os.environ else subprocess.DEVNULL,
                    pass_fds=(write,),
                    env=environment,
                    text=True,
                )
            )
            os.close(write)
            self._answers.append(os.fdopen(read))

    def ready(self) -> list[dict[str, Any]]:
        """Every rank's next answer.

        Raises:
            RuntimeError: a rank ended instead.
        """
        lines = [answers.readline() for answers in self._answers]
        if not all(lines):
            raise RuntimeError(
                f"rank {lines.index('')} of the benchmark ended; run with TRANSITION_BENCHMARK_STDERR=1 to see why"
            )
        return [json.loads(line) for line in lines]

    def do(self, command: str) -> list[dict[str, Any]]:
        """Have all ranks do something; their answers."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(command + "\n")
            process.stdin.flush()
        return self.ready()

    def stop(self) -> list[int]:
        """Let them end, and wait for it; their exit codes."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.close()
        return [process.wait() for process in self._processes]

    def kill(self) -> None:
        """End them at once."""
        for process in self._processes:
            process.kill()
            process.wait()


def measure(case: Case, repeats: int, memory_repeats: int, folder: Path, *, restart: bool) -> dict[str, Any]:
    """All raw numbers of one case, and what follows from them."""
    ours, again = Ranks(case), Ranks(case)
    restarted: Ranks | None = None
    try:
        parameters = ours.ready()[0]["parameters"]
        again.ready()
        raw: dict[str, Any] = {"ours": [], "again": [], "ours_memory": [], "again_memory": []}
        ours.do("transition")  # the first time in a process is not counted, for both
        again.do("initialise_again")
        for _ in range(repeats):
            raw["ours"].append(ours.do("transition"))
            raw["again"].append(again.do("initialise_again"))
        for name, ranks, command in (("ours", ours, "transition"), ("again", again, "initialise_again")):
            ranks.do("return_freed_memory")
            ranks.do(command)
            raw[f"{name}_memory"] = [ranks.do(f"{command} memory") for _ in range(memory_repeats)]
        codes = {"again": again.stop()}
        if restart:
            began = time.perf_counter()
            ours.do(f"save {folder}")
            saved = time.perf_counter()
            codes["ours"] = ours.stop()
            stopped = time.perf_counter()
            restarted = Ranks(case, folder)
            restarted.ready()
            ready = time.perf_counter()
            raw["restart"] = {"save": saved - began, "stop": stopped - saved, "start": ready - stopped}
            codes["restart"] = restarted.stop()
        else:
            codes["ours"] = ours.stop()
        raw["exit_codes"] = codes
    finally:
        for ranks in (ours, again, restarted):
            if ranks is not None:
                ranks.kill()
    return {**asdict(case), "counted_parameters": parameters, **conclude(raw), "raw": raw}


def conclude(raw: dict[str, Any]) -> dict[str, Any]:
    """Medians, spreads, ratios, and which aims are met."""
    ours, again = (slowest(raw[name], "seconds") for name in ("ours", "again"))
    result: dict[str, Any] = {
        "ours_seconds": spread(ours),
        "again_seconds": spread(again),
        "back_seconds": spread(slowest(raw["ours"], "back_seconds")),
        "first_step_seconds": spread(slowest(raw["ours"], "first_step_seconds")),
        "step_seconds": spread(slowest(raw["ours"], "step_seconds")),
        "again_first_step_seconds": spread(slowest(raw["again"], "first_step_seconds")),
        "ratio_again": statistics.median(ours) / statistics.median(again),
        "ratio_again_of_minima": min(ours) / min(again),
        "ratio_again_of_cpu_seconds": _ratio_of_cpu_seconds(raw),
    }
    result["aims"] = {"time_at_most_half_of_again": result["ratio_again"] <= AIM_AGAIN}
    if "restart" in raw:
        result["restart_seconds"] = sum(raw["restart"].values())
        result["ratio_restart"] = statistics.median(ours) / result["restart_seconds"]
        result["aims"]["time_at_most_a_twentieth_of_restart"] = result["ratio_restart"] <= AIM_RESTART
    if raw["ours_memory"]:
        for key in ("peak_bytes", "held_bytes", "first_step_peak_bytes", "step_peak_bytes", "new_state_bytes"):
            result[key] = statistics.median(slowest(raw["ours_memory"], key))
        result["again_peak_bytes"] = statistics.median(slowest(raw["again_memory"], "peak_bytes"))
        result["ratio_memory"] = result["peak_bytes"] / result["new_state_bytes"]
        result["ratio_memory_first_step"] = result["first_step_peak_bytes"] / result["new_state_bytes"]
        result["ratio_memory_step"] = result["step_peak_bytes"] / result["new_state_bytes"]
        result["aims"]["memory_at_most_new_state_and_a_quarter"] = result["ratio_memory"] <= AIM_MEMORY
    return result


def _ratio_of_cpu_seconds(raw: dict[str, Any]) -> float:
    ours, again = (statistics.median(slowest(raw[name], "cpu_seconds")) for name in ("ours", "again"))
    return ours / again


def slowest(answers: Sequence[Sequence[dict[str, Any]]], key: str) -> list[float]:
    """For each repetition, the largest value of any rank."""
    return [max(rank[key] for rank in ranks) for ranks in answers]


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and greatest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def machine() -> dict[str, Any]:
    """Where this ran, and with what."""
    names = ("torch", "deepspeed", "numpy", "flash-launch")
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor(),
    )
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    return {
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in names},
        "commit": subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip(),
        "platform": platform.platform(),
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "load_average_before": os.getloadavg(),
    }


def table(cases: Sequence[dict[str, Any]]) -> Table:
    """The cases, one a row; a missed aim is red and has an exclamation mark."""
    shown = Table(title="A transition: half of the model trains, the rest is unfrozen (medians)")
    for heading in ("", "ours", "(a) again", "(b) restart", "ours/(a)", "ours/(b)"):
        shown.add_column(heading, justify="right")
    for heading in ("new state", "peak", "peak/new", "with 1st step", "a later step", "(a) peak"):
        shown.add_column(heading, justify="right")
    for case in cases:
        aims = case["aims"]
        row = [f"{case['setup']} {case['size']}"]
        row += [f"{case[key]['median']:.3f} s" for key in ("ours_seconds", "again_seconds")]
        row += [f"{case['restart_seconds']:.1f} s" if "restart_seconds" in case else "-"]
        row += [_ratio(case["ratio_again"], aims["time_at_most_half_of_again"])]
        row += [
            _ratio(case["ratio_restart"], aims["time_at_most_a_twentieth_of_restart"])
            if "ratio_restart" in case
            else "-"
        ]
        if "peak_bytes" in case:
            row += [f"{case[key] / MIB:.0f} MiB" for key in ("new_state_bytes", "peak_bytes")]
            row += [_ratio(case["ratio_memory"], aims["memory_at_most_new_state_and_a_quarter"])]
            row += [
                f"{case[key] / MIB:.0f} MiB" for key in ("first_step_peak_bytes", "step_peak_bytes", "again_peak_bytes")
            ]
        shown.add_row(*row)
    return shown


def _ratio(value: float, met: bool) -> str:
    return f"{value:.3f}" if met else f"[red]{value:.3f} ![/red]"


def size(text: str) -> tuple[str, int]:
    """A number of parameters, as 10M or 250K or 12345."""
    units = {"K": 10**3, "M": 10**6, "B": 10**9}
    try:
        unit = units.get(text[-1:].upper(), 1)
        number = int(float(text[:-1] if unit > 1 else text) * unit)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of parameters; write 10M or 250K") from None
    return text, number


def _device(asked: str, ranks: int) -> str:
    if asked != "auto":
        return asked
    import torch

    return "cuda" if torch.cuda.device_count() >= ranks else "cpu"


def main(arguments: Sequence[str] | None = None, report: Callable[[str], None] | None = None) -> int:
    """Run the cases asked for, print the table and write the JSON; 0 when all was measured, aims met or not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = ["10M", "100M"]
    parser.add_argument(
        "--sizes",
        nargs="+",
        type=size,
        default=[size(text) for text in default],
        metavar="SIZE",
        help=f"parameters of the model (default: {' '.join(default)})",
    )
    parser.add_argument("--setups", nargs="+", choices=SETUPS, default=list(SETUPS), help="default: all")
    parser.add_argument("--ranks", type=int, default=2, help="world size (default: 2)")
    parser.add_argument("--repeats", type=int, default=5, help="timed repetitions of ours and (a) (default: 5)")
    parser.add_argument("--memory-repeats", type=int, default=2, help="repetitions that measure memory (default: 2)")
    parser.add_argument("--skip-restart", action="store_true", help="leave peer (b) out")
    parser.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="auto: cuda where there is a GPU for each rank, else cpu with gloo",
    )
    parser.add_argument("--output", type=Path, default=Path("transition.json"), help="default: transition.json")
    options = parser.parse_args(arguments)
    console = Console(stderr=True)
    began, device = time.perf_counter(), _device(options.device, options.ranks)
    where, cases = machine(), list[dict[str, Any]]()
    for text, parameters in options.sizes:
        for setup in options.setups:
            case = Case(text, parameters, setup, options.ranks, device)
            console.print(f"{time.perf_counter() - began:5.0f} s  {setup} {text} ...")
            folder = Path(tempfile.mkdtemp(prefix="transition-"))
            try:
                cases.append(
                    measure(case, options.repeats, options.memory_repeats, folder, restart=not options.skip_restart)
                )
            finally:
                shutil.rmtree(folder)
            finished = {
                "benchmark": "transition",
                "device": device,
                "machine": {**where, "load_average_after": os.getloadavg()},
                "seconds": time.perf_counter() - began,
                "aims": {"again": AIM_AGAIN, "restart": AIM_RESTART, "memory": AIM_MEMORY},
                "cases": cases,
            }
            options.output.write_text(json.dumps(finished, indent=1) + "\n")
    Console(width=None if sys.stdout.isatty() else 160).print(table(cases))
    print(f"written to {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
