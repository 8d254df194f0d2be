"""Asks the preflight, in a process of its own, for the plan of a run: this one never imports torch."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flash_launch import rank_guard
from flash_launch.config import RunConfig
from flash_launch.errors import FlashLaunchError, LaunchError

__all__ = ["PREFLIGHT", "PreflightRefused", "Preparation", "prepare"]

SECONDS = 3600.0
"""The longest that it may take to build a task and to look at its data."""
_MOST_LINES = 30

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
            if rate := phase.get("rate"):
                line += f"; what it unfreezes at {rate}"
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
    try:
        done = subprocess.run(
            [sys.executable, "-m", "flash_launch.rank_guard", *preflight, *([str(checkpoint)] if checkpoint else [])],
            input=config.to_yaml(),
            capture_output=True,
            text=True,
            errors="replace",
            env={**environment, rank_guard.PARENT: str(os.getpid())},
            start_new_session=True,  # a Ctrl-C is for the launcher, which kills this one
            timeout=SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise LaunchError(
            f"the preflight, which builds the task and looks at the data, took over {SECONDS:g} s and was ended; "
            f"nothing was started. {_last_words(_text(error.stderr))}"
        ) from None
    answer = _answer(done)
    if "error" in answer:
        raise PreflightRefused(str(answer["error"]))
    plan = answer.get("plan", {})
    phases = tuple(phase for phase in plan.get("phases", ()) if isinstance(phase, dict))
    return Preparation(plan, tuple(answer.get("messages", ())), int(answer.get("world_size", 1)), phases)


def _answer(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """What the preflight gave; a LaunchError, or PreflightRefused where the user's code ended it."""
    if (done.returncode == 0 and not done.stdout.strip()) or done.returncode > 2:
        raise PreflightRefused(
            f"the preflight, which builds the task and looks at the data, was ended with exit code {done.returncode} "
            "by the code of the task or the data, as os._exit does: see which of them ends its process when it is "
            f"imported or built. {_last_words(done.stderr)}"
        )
    try:
        if done.returncode < 0:
            raise ValueError(f"it was ended by {_signal(-done.returncode)}")
        if done.returncode not in (0, 2):
            raise ValueError(f"it ended with code {done.returncode}")
        answer: object = json.loads(done.stdout.rstrip().rpartition("\n")[2])
        if not isinstance(answer, dict) or (done.returncode == 2) != ("error" in answer):
            raise ValueError("it gave no JSON object")
    except ValueError as error:
        raise LaunchError(
            f"the preflight broke, {error}; nothing was started. {_last_words(done.stderr or done.stdout)}"
        ) from error
    return answer


def _signal(number: int) -> str:
    name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
    what = {"SIGSEGV": "a crash in native code", "SIGABRT": "a crash in native code", "SIGKILL": "memory used up?"}
    return f"{name} ({what[name]})" if name in what else name


def _last_words(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return "It wrote:\n" + "\n".join(lines[-_MOST_LINES:]) if lines else "It wrote nothing"


def _text(written: object) -> str:
    return written.decode(errors="replace") if isinstance(written, bytes) else str(written or "")
