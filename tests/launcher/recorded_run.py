"""Makes small run folders as a run leaves them, for tests of what reads them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from flash_launch.run_folder import RunFolder

BEGAN = 1_800_000_000.0
TOTAL = 1000


@dataclass
class Recorded:
    """A run folder, written piece by piece; a step takes one second."""

    path: Path
    per_epoch: int = 4
    phases: tuple[tuple[str, int, int], ...] = (("frozen", 0, 100), ("unfrozen", 2, TOTAL))
    config: dict[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        (self.path / "logs").mkdir(parents=True)
        config = {"strategy": "freeze_unfreeze", "nodes": 1, "max_epochs": 4, "lr": 0.001, **self.config}
        (self.path / "config.yaml").write_text(yaml.safe_dump(config))
        planned = [
            {"name": name, "first_epoch": epoch, "trainable": count, "frozen": TOTAL - count, "layers": ["a", "b"]}
            for name, epoch, count in self.phases
        ]
        plan = {"strategy": config["strategy"], "setup": "ddp", "world_size": 2, "task": "T", "data": "d"}
        self.write("plan.json", {**plan, "phases_known": True, "phases": planned})

    @property
    def folder(self) -> RunFolder:
        return RunFolder(self.path)

    def write(self, name: str, value: object) -> None:
        (self.path / name).parent.mkdir(parents=True, exist_ok=True)
        (self.path / name).write_text(json.dumps(value))

    def append(self, name: str, *rows: object) -> None:
        with (self.path / name).open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)

    def attempt(
        self, number: int = 1, at: float = 0.0, *, step: int = 0, host: str = "elsewhere", pid: int = 7
    ) -> None:
        values = {"number": number, "run": "abc", "began": BEGAN + at, "host": host, "pid": pid, "config": {}}
        resumed = f"step_{step}" if step else None
        self.write(f"attempts/{number:04}.json", {**values, "resumed_from": resumed, "resumed_step": step})

    def end(self, code: int, number: int = 1, at: float = 100.0, verdict: str | None = None) -> None:
        self.write(
            f"attempts/{number:04}/end.json",
            {"exit_code": code, "time": BEGAN + at, "seconds": at, "verdict": verdict},
        )

    def event(self, kind: str, at: float, **facts: object) -> None:
        self.append("events.jsonl", {"event": kind, "time": BEGAN + at, **facts})

    def train(self, first: int, last: int, *, at: float = 0.0, **values: object) -> None:
        """Steps and the epochs they end, with the transitions, each at `at` seconds after its number."""
        for step in range(first, last + 1):
            epoch = (step - 1) // self.per_epoch
            name, begins, count = [phase for phase in self.phases if phase[1] <= epoch][-1]
            if step == begins * self.per_epoch + 1:
                kind = "transition" if begins else "start"
                self.event(kind, at + step - 1, step=step - 1, epoch=epoch, phase=name, trainable_after=count)
            row = {"step": step, "epoch": epoch, "phase": name}
            measured = {"loss": 1 / step, "lr": [0.001], "step_seconds": 1.0, "examples_per_s": 64.0}
            self.append("metrics.jsonl", {**row, "kind": "step", **measured, "memory_bytes": step * 1000, **values})
            if step % self.per_epoch == 0:
                epoch_values = {"val_loss": 1 / step, "val_accuracy": 1 - 1 / step}
                self.append("metrics.jsonl", {**row, "kind": "epoch", **epoch_values})
