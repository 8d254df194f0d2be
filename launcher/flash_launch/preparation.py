"""Asks the preflight, in a process of its own, for the plan of a run: this one never imports torch."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from flash_launch import rank_guard
from flash_launch.config import RunConfig
from flash_launch.errors import FlashLaunchError, LaunchError

__all__ = ["PREFLIGHT", "PreflightRefused", "Preparation", "prepare"]

PREFLIGHT = ("-m", "flash_launch.preflight")


class PreflightRefused(FlashLaunchError, ValueError):
    """A user fault that the preflight found; the message is its own."""


@dataclass(frozen=True)
class Preparation:
    """What the preflight answered."""

    plan: dict[str, object]
    """What plan.json will hold."""
    messages: tuple[str, ...] = ()
    """What the user should know before the start."""
    world_size: int = 1
    """Number of ranks the plan was made for."""
    phases: tuple[Mapping[str, object], ...] = field(default=(), repr=False)
    """The phases of the plan."""

    def describe(self) -> Iterator[str]:
        """The data, the phases and what gets no weight decay, a line each, as far as the plan has them."""
        if data := self.plan.get("data"):
            yield f"data: {data}"
        width = max((len(str(phase.get("name"))) for phase in self.phases), default=0)
        for phase in self.phases:
            line = f"epoch {phase.get('first_epoch')}: {phase.get('name')!s:<{width}}"
            trainable, frozen = phase.get("trainable"), phase.get("frozen")
            if isinstance(trainable, int) and isinstance(frozen, int):
                line += f"  trains {trainable:,} of {trainable + frozen:,} parameters"
            if isinstance(layers := phase.get("layers"), list):
                line += f", {len(layers)} layer{'s' * (len(layers) != 1)} of the backbone"
            if isinstance(parts := phase.get("estimated_bytes_per_rank"), dict):
                line += f", about {sum(parts.values()) / 2**20:,.1f} MiB per rank before activations"
            yield line
        if isinstance(names := self.plan.get("no_decay"), list):
            shown = f": {', '.join(names[:3])}{', ...' * (len(names) > 3)}" if names else ""
            yield f"no weight decay on {len(names)} tensors{shown} (--no-decay says on which)"
        if self.plan.get("phases_known") is False:
            strategy = self.plan.get("strategy")
            yield f"what follows is not known beforehand: {strategy} decides at the start of each epoch"


def prepare(config: RunConfig, preflight: Sequence[str] = PREFLIGHT, *, checkpoint: Path | None = None) -> Preparation:
    """Let the preflight build the task, scan the data and resolve the plan. Writes nothing.

    Raises:
        PreflightRefused: a user fault.
        LaunchError: the preflight itself broke.
    """
    environment = {
        key: value for key, value in os.environ.items() if key not in ("RANK", rank_guard.LOGS, rank_guard.ENDS)
    }
    done = subprocess.run(
        [sys.executable, "-m", "flash_launch.rank_guard", *preflight, *([str(checkpoint)] if checkpoint else [])],
        input=config.to_yaml(),
        capture_output=True,
        text=True,
        errors="replace",
        env={**environment, rank_guard.PARENT: str(os.getpid())},
        start_new_session=True,  # a Ctrl-C is for the launcher, which kills this one
    )
    try:
        if done.returncode not in (0, 2):
            raise ValueError(f"it ended with code {done.returncode}")
        answer: object = json.loads(done.stdout.rstrip().rpartition("\n")[2])
        if not isinstance(answer, dict) or (done.returncode == 2) != ("error" in answer):
            raise ValueError("it gave no JSON object")
    except ValueError as error:
        raise LaunchError(
            f"the preflight broke, {error}; nothing was started. It wrote:\n{(done.stderr or done.stdout).strip()}"
        ) from error
    if "error" in answer:
        raise PreflightRefused(str(answer["error"]))
    plan = answer.get("plan", {})
    phases = tuple(phase for phase in plan.get("phases", ()) if isinstance(phase, dict))
    return Preparation(plan, tuple(answer.get("messages", ())), int(answer.get("world_size", 1)), phases)
