"""What an optimizer step costs through the command's worker, against plain Lightning: time, and calls that wait.

    python benchmarks/step_cost.py [--setups ddp zero2 zero3] [--repeats 5] [--before CHECKOUT] [--output FILE]

Two ranks on this machine (gloo), the same task, data and strategy, turn about. `--before` also measures another
checkout of this project. Lightning's DeepSpeed strategy needs CUDA: at ZeRO the peer is its Trainer on our subclass,
which does not.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

HERE = Path(__file__).parent
RANKS = 2
WARM_UP = 20
"""Steps that are not counted: the first is proved, and the interval of the looks is not found yet."""
LOGGED = (0, 1)
"""Every tenth step is logged, the recorder's and Lightning's ones after each other."""
COUNTED = ("reads", "waits", "talks")
TIMES = ("median_seconds", "mean_seconds", "cpu_seconds")


def start(kind: str, setup: str, checkout: Path, args: dict[str, object], folder: Path) -> list[dict[str, object]]:
    """Run the ranks; what each wrote.

    Raises:
        RuntimeError: a rank failed.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(RANKS),
        "LOCAL_WORLD_SIZE": str(RANKS),
        "GROUP_RANK": "0",
        "TORCHELASTIC_RUN_ID": "step_cost",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": os.pathsep.join(str(checkout / root) for root in ("launcher", "strategies")),
    }
    argv = [sys.executable, str(HERE / "step_rank.py"), kind, setup, str(folder), json.dumps(args)]
    ranks = []
    for rank in range(RANKS):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        with (folder.parent / f"{folder.name}_{rank}.log").open("wb") as log:
            ranks.append(
                subprocess.Popen(
                    argv, stdout=log, stderr=subprocess.STDOUT, cwd=HERE, env={**os.environ, **common, **own}
                )
            )
    codes = [rank.wait(600) for rank in ranks]
    if any(codes):
        logs = [(folder.parent / f"{folder.name}_{rank}.log").read_text()[-2000:] for rank in range(RANKS)]
        raise RuntimeError(f"{kind} at {setup} ended with {codes}:\n" + "\n".join(logs))
    return [json.loads((folder / f"step_rank_{rank}.json").read_text()) for rank in range(RANKS)]


def step_seconds(found: list[dict[str, object]]) -> tuple[float, float, float]:
    """Median and mean over the steps, and the mean of the CPU time of all threads; each of the slowest rank."""
    medians, means, cpu = [], [], []
    for rank in found:
        began, began_cpu = rank["began"], rank["began_cpu"]
        assert isinstance(began, list)
        assert isinstance(began_cpu, list)
        steps = [after - before for before, after in zip(began[WARM_UP:-1], began[WARM_UP + 1 :], strict=True)]
        medians.append(median(steps))
        means.append(sum(steps) / len(steps))
        cpu.append((began_cpu[-1] - began_cpu[WARM_UP]) / len(steps))
    return max(medians), max(means), max(cpu)


def unlogged(calls: list[dict[str, dict[str, int]]]) -> list[dict[str, dict[str, int]]]:
    """Of the steps that are neither the first ones, nor logged, nor the last."""
    return [one for step, one in enumerate(calls[:-1]) if step > WARM_UP and step % 10 not in LOGGED]


def count(found: list[dict[str, object]]) -> dict[str, object]:
    """Calls in an unlogged step, the mean of the worst rank, and the lines they are made by."""
    result: dict[str, object] = {}
    for kind in COUNTED:
        means, where = [], {}
        for rank in found:
            steps = unlogged(rank["calls"])  # type: ignore[arg-type]
            means.append(sum(sum(one[kind].values()) for one in steps) / len(steps))
            for one in steps:
                for line, times in one[kind].items():
                    where[line] = where.get(line, 0) + times / len(steps) / RANKS
        result[kind] = round(max(means), 3)
        result[f"{kind}_from"] = {line: round(times, 3) for line, times in sorted(where.items())}
    return result


def measure(setup: str, options: argparse.Namespace, folder: Path) -> dict[str, object]:
    """One setup: the variants turn about, and then once more, counted."""
    ours = HERE.parent
    variants = {"lightning": ("lightning", ours), "ours": ("ours", ours)}
    if options.before is not None:
        variants["before"] = ("ours", options.before.absolute())
    args: dict[str, object] = {"width": options.width, "depth": options.depth, "steps": options.steps}
    times: dict[str, list[tuple[float, float, float]]] = {name: [] for name in variants}
    for repeat in range(options.repeats):
        order = list(variants.items())
        for name, (kind, checkout) in order if repeat % 2 == 0 else reversed(order):
            found = start(kind, setup, checkout, {**args, "count": False}, folder / f"{setup}_{name}_{repeat}")
            times[name].append(step_seconds(found))
    row: dict[str, object] = {"setup": setup, **args}
    for name, (kind, checkout) in variants.items():
        found = start(kind, setup, checkout, {**args, "count": True}, folder / f"{setup}_{name}_counted")
        row[name] = {
            **{key: median(one[index] for one in times[name]) for index, key in enumerate(TIMES)},
            "raw": times[name],
            "calls": count(found),
        }
    return row


def table(rows: list[dict[str, object]]) -> str:
    """The rows as Markdown."""
    lines = [
        "| setup | variant | step, median | ratio | step, mean | ratio | step, CPU | ratio | reads | waits | talks |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        peer = row["lightning"]
        assert isinstance(peer, dict)
        for name in ("lightning", "before", "ours"):
            found = row.get(name)
            if isinstance(found, dict):
                times = [f"{found[key] * 1e3:.2f} ms | {found[key] / peer[key]:.3f}" for key in TIMES]
                counts = [f"{found['calls'][kind]:g}" for kind in COUNTED]
                lines.append("| " + " | ".join([str(row["setup"]), name, *times, *counts]) + " |")
    return "\n".join(lines)


def main() -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--setups", nargs="+", default=["ddp", "zero2", "zero3"])
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--steps", type=int, default=300, help="per run; more than 100, so that every tenth is logged")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--before", type=Path, help="another checkout of this project, measured as well")
    parser.add_argument("--output", type=Path, default=Path("step_cost.json"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = [measure(setup, options, Path(folder)) for setup in options.setups]
    options.output.write_text(json.dumps({"benchmark": "step_cost", "ranks": RANKS, "cases": rows}, indent=2) + "\n")
    print(table(rows))
    print(f"written to {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
