"""Checkpoints: bytes and stall against DeepSpeed's save_checkpoint and Lightning's, same model, phase and run.

    python benchmarks/checkpoint.py [--width 1500] [--setups ddp zero2 ...] [--optimizer adamw|sgd] [--json FILE]

A run of flash-launch on 2 ranks trains the head of a model that is 95 % frozen, and saves every EVERY steps in the
background; in between, a callback saves by the peers' own functions. The stall is the time for which training waits.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

EVERY = 10
SAVES = 8


def measure(setup: str, width: int, optimizer: str, folder: Path) -> dict[str, object]:
    """One run's medians."""
    run, peers = folder / setup, folder / f"{setup}_peers"
    peers.mkdir()
    strategy = "freeze" if setup == "ddp" else "freeze_deepspeed"
    config = folder / f"{setup}.yaml"
    samples = 2 * 2 * EVERY * (SAVES + 1)
    config.write_text(f"task_args: {{width: {width}, samples: {samples}}}\n")
    argv = ["--nodes", "2", "--task", "checkpoint_task:Wide", "--strategy", strategy, "--setup", setup]
    argv += ["--max-epochs", "1", "--val-fraction", "0", "--checkpoint-every", str(EVERY), "steps"]
    argv += ["--optimizer", optimizer, "--config", str(config), "--output-dir", str(run)]
    subprocess.run(
        [sys.executable, "-m", "flash_launch", *argv],
        check=True,
        cwd=Path(__file__).parent,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "CHECKPOINT_BENCHMARK": str(peers), "CHECKPOINT_EVERY": str(EVERY)},
    )
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    # the first save also writes what is frozen, once per run; the last one is at the run's end, and training waits
    ours = [event for event in events if event["event"] == "checkpoint"]
    first, rest = ours[0], ours[1:-1]
    theirs = [json.loads(line) for line in (peers / "peers.jsonl").read_text().splitlines()]
    row: dict[str, object] = {
        "setup": setup,
        "optimizer": optimizer,
        "saves": len(rest),
        "bytes": int(median(event["bytes"] for event in rest)),
        "once_bytes": first["frozen_bytes"],
        "first_stall": first["stall"],
        "stall": median(event["stall"] for event in rest),
        "background": median(event["seconds"] for event in rest),
    }
    for peer in ("deepspeed", "lightning"):
        saves = [save for save in theirs if save["peer"] == peer][1:]
        if saves:
            row[f"{peer}_bytes"] = int(median(save["bytes"] for save in saves))
            row[f"{peer}_stall"] = median(save["seconds"] for save in saves)
    shutil.rmtree(run)
    return row


def table(rows: list[dict[str, object]]) -> str:
    """The rows as Markdown."""
    lines = [
        "| setup | peer | bytes: ours / peer's | ratio | stall: ours / peer's | ratio | once per run |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        for peer in ("deepspeed", "lightning"):
            if f"{peer}_bytes" not in row:
                continue
            sizes = float(str(row["bytes"])), float(str(row[f"{peer}_bytes"]))
            stalls = float(str(row["stall"])), float(str(row[f"{peer}_stall"]))
            lines.append(
                f"| {row['setup']} | {peer} | {sizes[0] / 1e6:.1f} / {sizes[1] / 1e6:.1f} MB | "
                f"{sizes[0] / sizes[1]:.3f} | {stalls[0] * 1e3:.0f} / {stalls[1] * 1e3:.0f} ms | "
                f"{stalls[0] / stalls[1]:.3f} | {float(str(row['once_bytes'])) / 1e6:.1f} MB |"
            )
    return "\n".join(lines)


def main() -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=1500, help="of the layers; 1500: 45 million parameters")
    parser.add_argument("--setups", nargs="+", default=["ddp", "zero1", "zero2", "zero3"])
    parser.add_argument("--optimizer", default="adamw", choices=["adamw", "sgd"])
    parser.add_argument("--json", type=Path, default=Path("checkpoint.json"))
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for setup in options.setups:
            rows.append(measure(setup, options.width, options.optimizer, Path(folder)))
            print(json.dumps(rows[-1]), flush=True)
    print(table(rows))
    options.json.write_text(json.dumps(rows, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
