"""Under `flash-launch script`, a fit of flash.Trainer saves, stops when it is asked to, and resumes where it was.

A checkpoint is a folder in RUN/checkpoints, `fitCALL_ATTEMPT_STEP`: Lightning's own (`fit.ckpt`), what only each rank
knows (`rankN.pt`), and `position.json`. It is there whole or not at all, and the newest of each fit stays.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint

from flash_strategies.agreement import ControlGroup
from flash_strategies.errors import CheckpointError
from flash_strategies.lightning import private
from flash_strategies.random_states import RandomStates, give_back, take
from flash_strategies.reporting import NOTES, say
from flash_strategies.run_session import RunSession, current_session, note_stop
from flash_strategies.stop_lookout import StopLookout
from flash_strategies.whole_folder import POSITION, leave, remove_cut_off, write_whole

__all__ = ["ScriptStop", "resumable"]

_FIT = "fit.ckpt"
_calls = itertools.count(1)


def resumable(trainer: pl.Trainer, ckpt_path: str | Path | None) -> str | Path | None:
    """Let the coming fit save and stop, if flash-launch runs this script; the checkpoint that it begins with.

    Args:
        trainer: whose fit comes; a callback of the fit before is replaced.
        ckpt_path: what the script asks for; it holds until there is a checkpoint of this very fit.
    """
    others = [one for one in trainer.callbacks if not isinstance(one, ScriptStop)]  # type: ignore[attr-defined]
    session = current_session()
    if session is None or trainer.fast_dev_run:  # type: ignore[attr-defined]
        trainer.callbacks = others  # type: ignore[attr-defined]
        return ckpt_path
    stop = ScriptStop(session, next(_calls))
    trainer.callbacks = [*others, stop]  # type: ignore[attr-defined]
    newest = stop.newest()
    return newest / _FIT if newest is not None else ckpt_path


class ScriptStop(Checkpoint):
    """Saves after each epoch and when a stop was asked for, after which it ends the script with EXIT_STOPPED.

    The ranks agree on the stop between two optimizer steps, and none waits for another in a step. The last of the
    callbacks, so that what it saves has the others' state.
    """

    def __init__(self, session: RunSession, call: int) -> None:
        """Of one fit.

        Args:
            session: the run.
            call: the number of the fit in this script, from 1: the same in each attempt.
        """
        self._session, self._call = session, call
        self._resumed = self.newest()
        self._control: ControlGroup | None = None
        self._lookout: StopLookout | None = None
        self._start: RandomStates | None = None
        self._now: RandomStates | None = None
        self._batch = self._step = 0

    def newest(self) -> Path | None:
        """The newest whole checkpoint of this fit."""
        names = self._names()
        return self._session.checkpoints / names[-1] if names else None

    def _names(self) -> list[str]:
        folder = self._session.checkpoints
        found = [path.parent.name for path in folder.glob(f"fit{self._call}_*/{POSITION}")]
        return sorted((name for name in found if re.fullmatch(r"fit\d+_\d+_\d+", name)), key=_age)

    # ---- Lightning's hooks

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Get ready, and take back what only this rank knew.

        Raises:
            CheckpointError: the ranks do not see the same checkpoint, or it cannot be read.
        """
        if "SLURM_JOB_ID" in os.environ:  # Lightning has set handlers of its own
            for number in (signal.SIGTERM, signal.SIGUSR1):
                signal.signal(number, note_stop)
        self._control = ControlGroup()
        self._lookout = StopLookout(self._control)
        seen = self._control.gather(str(self._resumed), "the start of a fit")
        if len(set(seen)) > 1:
            raise CheckpointError(f"the ranks see other checkpoints in {self._session.checkpoints}: {seen}")
        if self._control.rank == 0:
            remove_cut_off(self._session.checkpoints, f"fit{self._call}_")
        self._step = trainer.global_step
        if self._resumed is not None:
            self._take_back(self._resumed, pl_module)
        private.before_each_iteration(trainer, lambda: self._in_this_fit(trainer, self._begin_iteration))
        private.before_each_fetch(trainer, lambda: self._in_this_fit(trainer, self._between_batches))
        private.after_whole_epochs(trainer, lambda: self._in_this_fit(trainer, self._between_epochs))

    def _in_this_fit(self, trainer: pl.Trainer, action: Callable[[pl.Trainer], None]) -> None:
        """The loops of a trainer stay for its next fit, which another of these serves."""
        if self in trainer.callbacks:  # type: ignore[attr-defined]
            action(trainer)

    def _take_back(self, path: Path, task: pl.LightningModule) -> None:
        assert self._control is not None
        try:
            at = json.loads((path / POSITION).read_text(encoding="utf-8"))
            ranks, self._batch = int(at["ranks"]), int(at["batch"])
            saved = torch.load(path / f"rank{self._control.rank % ranks}.pt", weights_only=True)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{path} cannot be read: {error}") from error
        if ranks != self._control.world_size:
            here = self._control.world_size
            self._batch = self._batch * ranks // here
            say(f"saved by {ranks} ranks and resumed by {here}: random states are new ones", NOTES)
            return
        self._start, self._now = saved["start"], saved["now"]
        for name, buffer in task.named_buffers():  # statistics differ between ranks in the middle of an epoch
            if name in saved["buffers"] and buffer.shape == saved["buffers"][name].shape:
                buffer.copy_(saved["buffers"][name])

    # ---- where the fit is

    def _begin_iteration(self, trainer: pl.Trainer) -> None:
        """The loader's order follows from the random states that its iteration begins with, and these are known."""
        loader = trainer.train_dataloader
        batch, now, start = self._batch, self._now, self._start
        self._batch, self._now = 0, None
        if batch and start is not None:
            give_back(start, loader)
        elif now is not None:
            give_back(now, loader)
        self._start = take(loader)
        if batch or now is not None or trainer.current_epoch == 0:
            private.iterate_anew(trainer)
        private.skip_batches(trainer, batch)
        if batch and now is not None:
            give_back(now)

    def _between_batches(self, trainer: pl.Trainer) -> None:
        done, step = private.batches_done(trainer), trainer.global_step
        if done == 0 or step == self._step:  # the epoch's start, or the middle of an accumulation
            return
        self._step = step
        assert self._lookout is not None
        if self._lookout.agreed(step):
            self._save(trainer, done)
            leave(groups=False)

    def _between_epochs(self, trainer: pl.Trainer) -> None:
        assert self._lookout is not None
        self._step = trainer.global_step
        stop = self._lookout.now(self._step)
        self._save(trainer, 0)
        if stop and not trainer.fit_loop.done:
            leave(groups=False)

    # ---- checkpoints

    def _save(self, trainer: pl.Trainer, batch: int) -> None:
        control, session = self._control, self._session
        assert control is not None
        task = trainer.lightning_module

        def write(into: Path) -> None:
            mine = {
                "start": self._start if batch else None,
                "now": take(trainer.train_dataloader),
                "buffers": {name: buffer.detach().cpu().clone() for name, buffer in task.named_buffers()},
            }
            torch.save(mine, into / f"rank{control.rank}.pt")
            trainer.save_checkpoint(into / _FIT)

        write_whole(
            control,
            session.checkpoints / f"fit{self._call}_{session.attempt:04d}_{trainer.global_step:08d}",
            write,
            {"batch": batch},
            session=session,
            outdated=lambda: [session.checkpoints / name for name in self._names()[:-1]],
        )


def _age(name: str) -> list[int]:
    return [int(part) for part in name.removeprefix("fit").split("_")]
