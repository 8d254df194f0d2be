"""`accelerator.save_state` and `load_state` across transitions: the phase and its groups come before the rest is read.

Where processes hold the model whole, Accelerate's files stay as they are, and `finetuner.json` beside them says which
groups the optimizer's file is of. At ZeRO, DeepSpeed's files fit one phase and one number of ranks only: the
finetuner's checkpoint, by parameter name, takes their place.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from flash_strategies.accelerate import private
from flash_strategies.checkpoint.engine_state import EngineState, put_back, take_out
from flash_strategies.errors import CheckpointError
from flash_strategies.reporting import NOTES, say

if TYPE_CHECKING:
    from flash_strategies.accelerate.finetuner import AccelerateFinetuner

_FILE = "finetuner.json"
_CURE = "for another setup, save with finetuner.save(folder) and read it there with finetuner.load(folder)"


class SavedState:
    """What a finetuner adds to `save_state` and takes from `load_state`; Accelerate calls it on every process."""

    def __init__(self, finetuner: AccelerateFinetuner) -> None:
        """Of a finetuner whose engine is built."""
        self._finetuner = finetuner
        self._loaded: EngineState | None = None

    def register(self) -> None:
        """Take part in the accelerator's `save_state` and `load_state` from now on."""
        accelerator = self._finetuner.accelerator
        accelerator.register_save_state_pre_hook(self._before_saving)
        accelerator.register_load_state_pre_hook(self._before_loading)
        accelerator.register_for_checkpointing(self)
        if self._finetuner.stage:
            private.replace_checkpoints(private.engine_of(accelerator), self._save_partitioned, self._load_partitioned)

    # ---- called by Accelerate, in this order

    def _before_saving(self, models: Sequence[object], weights: Sequence[object], folder: str) -> None:
        finetuner = self._finetuner
        if private.is_open(finetuner.accelerator):
            say(
                f"save_state({folder!r}) in the midst of an accumulation: the gradients of "
                f"{finetuner.accelerator.step} micro batches are not in it. Save where accelerator.sync_gradients",
                NOTES,
            )
        transitions = finetuner.transitions
        transitions.equalise_buffers()
        state = {
            "stage": finetuner.stage,
            "processes": transitions.control.world_size,
            "steps": finetuner.steps,
            "engine": take_out(transitions).to_json(),
        }
        if transitions.control.rank == 0:
            (Path(folder) / _FILE).write_text(json.dumps(state, indent=1))

    def state_dict(self) -> dict[str, object]:
        """Where the run is; for the eyes of who opens the file, since the hooks have the rest."""
        return {"phase": self._finetuner.transitions.phase, "steps": self._finetuner.steps}

    def _before_loading(self, models: Sequence[object], folder: str) -> None:
        """Where processes hold the model whole: rebuild the optimizer's groups, before its file is read."""
        if self._finetuner.stage:
            return  # _load_partitioned was called before
        state = self._read(Path(folder))
        put_back(self._finetuner.transitions, state, lambda slices: None)
        self._loaded = state

    def load_state_dict(self, state: object) -> None:
        """When all else is loaded: prove the ranks equal, and remember what is frozen."""
        if self._loaded is not None:
            loaded, self._loaded = self._loaded, None
            self._finetuner.transitions.resume(loaded.phase, loaded.number, loaded.fingerprint, loaded.watched)

    def _read(self, folder: Path) -> EngineState:
        """The phase and its groups; what fits another setup is refused, and other numbers of processes are said."""
        try:
            saved = json.loads((folder / _FILE).read_text())
            stage, processes, steps, engine = (saved[key] for key in ("stage", "processes", "steps", "engine"))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{folder} holds no {_FILE} that can be read ({type(error).__name__}: {error}), and does not say which "
                f"phase it is of: give a folder that save_state wrote after finetuner.prepare(); {_CURE}"
            ) from error
        here = self._finetuner
        if bool(stage) != bool(here.stage):
            raise CheckpointError(f"{folder} was saved at {_setup(stage)} and this is {_setup(here.stage)}: {_CURE}")
        if processes != here.transitions.control.world_size:
            say(
                f"{folder} was saved by {processes} processes and is read by {here.transitions.control.world_size}: "
                "weights, optimizer and schedules are resumed, random states are not those of an unstopped run",
                NOTES,
            )
        here.set_steps(int(steps))
        return EngineState.from_json(engine)

    # ---- in place of DeepSpeed's

    def _save_partitioned(self, folder: str, tag: str) -> None:
        path, control = Path(folder) / tag, self._finetuner.transitions.control
        new = path.with_name(f"{tag}.new")
        if control.rank == 0:
            shutil.rmtree(new, ignore_errors=True)
        control.meet(f"saving {path}")
        self._finetuner.save(new)
        if control.rank == 0:
            shutil.rmtree(path, ignore_errors=True)
            new.rename(path)
        control.meet(f"saving {path}")

    def _load_partitioned(self, folder: str, tag: str) -> None:
        self._read(Path(folder))
        self._finetuner.load(Path(folder) / tag)


def _setup(stage: int) -> str:
    return f"ZeRO stage {stage}" if stage else "DDP or one process"
