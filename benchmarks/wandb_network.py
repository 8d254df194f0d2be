"""What recording at W&B costs a run, with and without a network: against the same run that records nothing.

    python benchmarks/wandb_network.py [--repeats 3] [--epochs 20] [--json FILE]

Runs of the demo's task on 2 ranks (ddp), interleaved: recording nothing, offline, online with a server that refuses
connections, and online with one that takes them and never answers. Both servers are on loopback. Peer: Lightning's own
WandbLogger, in one process, with the same two servers.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "tracking"))
from wandb_server import KEY, black_hole, nobody

PEER_SECONDS = 200
PEER = """
import sys, time
import pytorch_lightning as pl
import torch
from pytorch_lightning.demos.boring_classes import BoringModel
from pytorch_lightning.loggers import WandbLogger

began = time.perf_counter()
class Timed(pl.Callback):
    def on_train_batch_end(self, *args):
        print("step after", time.perf_counter() - began, flush=True)

trainer = pl.Trainer(max_epochs=1, limit_train_batches=5, limit_val_batches=0, accelerator="cpu", callbacks=[Timed()],
                     logger=WandbLogger(save_dir=sys.argv[1]), enable_checkpointing=False, enable_progress_bar=False)
trainer.fit(BoringModel())
"""


def environment(folder: Path, url: str) -> dict[str, str]:
    """The variables of a run that is to record at a server."""
    keep = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    own = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HOME": str(folder)}
    return {**keep, **own, "WANDB_API_KEY": KEY, "WANDB_BASE_URL": url}


def ours(folder: Path, name: str, mode: str, url: str, epochs: int) -> dict[str, float]:
    """One run: its median step, the time from its first step to its last, and the time of the whole command."""
    argv = ["--nodes", "2", "--strategy", "freeze_unfreeze", "--max-epochs", str(epochs), "--batch-size", "4"]
    argv += ["--checkpoint-every", "0", "epochs", "--wandb", mode, "--output-dir", name]
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "flash_launch", *argv],
        check=True,
        cwd=folder,
        env=environment(folder, url),
        stdout=subprocess.DEVNULL,
    )
    whole = time.perf_counter() - began
    rows = [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
    steps = [row["step_seconds"] for row in rows if row["kind"] == "step"]
    return {"step": median(steps), "training": sum(steps), "command": whole}


def peer(folder: Path, url: str) -> dict[str, object]:
    """Lightning's WandbLogger: when its first step was done, and how it ended."""
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-c", PEER, str(folder)],
        cwd=folder,
        env=environment(folder, url),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    try:
        out, _ = process.communicate(timeout=PEER_SECONDS)
        code: int | None = process.returncode
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        out, _ = process.communicate()
        code = None
    steps = [float(line.split()[-1]) for line in out.splitlines() if line.startswith("step after")]
    ended = time.perf_counter() - began
    return {"first_step": steps[0] if steps else None, "exit_code": code, "seconds": ended}


def table(results: dict[str, list[dict[str, float]]]) -> str:
    """Medians as Markdown, as ratios to the run that records nothing."""
    lines = [
        "| W&B | median step | ratio | all steps | ratio | whole command | ratio |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    base = {key: median(one[key] for one in results["disabled"]) for key in ("step", "training", "command")}
    for name, runs in results.items():
        at = {key: median(one[key] for one in runs) for key in base}
        lines.append(
            f"| {name} | {at['step'] * 1e3:.1f} ms | {at['step'] / base['step']:.2f} | {at['training']:.1f} s | "
            f"{at['training'] / base['training']:.2f} | {at['command']:.1f} s | {at['command'] / base['command']:.2f} |"
        )
    return "\n".join(lines)


def main() -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=20, help="of 16 steps each")
    parser.add_argument("--json", type=Path, default=Path("wandb_network.json"))
    options = parser.parse_args()
    results: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as name, black_hole() as hole:
        folder = Path(name)
        refused = nobody()
        ways = {
            "disabled": ("disabled", refused),
            "offline": ("offline", refused),
            "connection refused": ("online", refused),
            "no answer": ("online", hole),
        }
        for repeat in range(options.repeats):
            for way, (mode, url) in ways.items():
                one = ours(folder, f"{way.replace(' ', '_')}_{repeat}", mode, url, options.epochs)
                results.setdefault(way, []).append(one)
                print(json.dumps({"wandb": way, **one}), flush=True)
        peers = {way: peer(folder, url) for way, (mode, url) in ways.items() if mode == "online"}
    print(table(results))
    for way, told in peers.items():
        print(f"peer, Lightning's WandbLogger, {way}: {json.dumps(told)}")
    options.json.write_text(json.dumps({"ours": results, "peer": peers}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
