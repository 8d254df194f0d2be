"""Records a run in a process of its own, as rank 0 does, and prints what a training beside it would notice.

python record_script.py RUN MODE STATUS SECONDS [artifact]
"""

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

from flash_launch.run_folder import RunFolder, append_jsonl, write_json
from flash_launch.tracking.record import Identity
from flash_launch.tracking.recording import Recording
from flash_launch.tracking.session import SessionOptions


def main() -> None:
    folder = RunFolder(Path(sys.argv[1]))
    mode, status, seconds = sys.argv[2], sys.argv[3], float(sys.argv[4])
    folder.path.mkdir(exist_ok=True)
    (folder.path / "wandb").mkdir(exist_ok=True)
    stopped: list[bool] = []
    identity = Identity("abc", "tests", None)
    write_json(folder.path / "wandb" / "run.json", asdict(identity))
    options = SessionOptions(
        folder.path,
        identity,
        "a run",
        None,
        None,
        (),
        {"lr": 0.1},
        4.0,
        lambda: stopped.append(True),
    )
    assert mode in ("online", "offline")
    began = time.perf_counter()
    recording = Recording(folder, options, mode, step=0, artifact="artifact" in sys.argv, told=False)
    started = time.perf_counter() - began
    slowest, end = 0.0, time.perf_counter() + seconds
    step = len(folder.metrics_jsonl.read_text().splitlines()) if folder.metrics_jsonl.exists() else 0
    while time.perf_counter() < end and not stopped:
        before = time.perf_counter()
        step += 1
        append_jsonl(folder.metrics_jsonl, {"step": step, "epoch": 0, "kind": "step", "loss": 1 / step})
        recording.submit({"own": step}, step)
        time.sleep(0.05)
        slowest = max(slowest, time.perf_counter() - before)
    if status == "finished":
        folder.weights.write_bytes(b"weights")
        write_json(folder.summary_json, {"status": status, "steps": step, "parameter_digest": {"0": "d"}})
    before = time.perf_counter()
    recording.close(status)
    closing = time.perf_counter() - before
    told = {"started": started, "slowest": slowest, "steps": step, "closing": closing, "stopped": bool(stopped)}
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
