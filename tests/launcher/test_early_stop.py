"""A run that its task ends early has ended: it is said by what and why, and it trains no more."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from pytorch_lightning.callbacks import EarlyStopping
from pytorch_lightning.callbacks.early_stopping import EarlyStoppingReason

from flash_launch.checkpoint.attempts import begin
from flash_launch.config import RunConfig
from flash_launch.continuation import find
from flash_launch.early_stop import EarlyStop, find_early_stop
from flash_launch.run_folder import RunFolder, write_json
from flash_launch.viewing.run_state import State, state_of
from flash_launch.viewing.run_view import read_run

STOP = EarlyStop("EarlyStopping", "val_loss did not improve", 2, 8, ("phase unfrozen (epoch 4)",))


def trainer(done: int, total: int, *callbacks: object, stops: bool = True) -> object:
    return SimpleNamespace(current_epoch=done, max_epochs=total, should_stop=stops, callbacks=callbacks)


FINETUNING = SimpleNamespace(
    phases=[
        SimpleNamespace(phase=SimpleNamespace(name=name, first_epoch=epoch)) for name, epoch in (("a", 0), ("b", 4))
    ]
)


def test_who_stopped_it_and_what_never_came() -> None:
    stopper = EarlyStopping("val_loss")
    stopper.stopping_reason = EarlyStoppingReason.PATIENCE_EXHAUSTED
    stopper.stopping_reason_message = "Monitored metric val_loss did not improve. Signaling Trainer to stop."
    found = find_early_stop(trainer(3, 8, EarlyStopping("x"), stopper), FINETUNING)  # type: ignore[arg-type]
    assert str(found) == (
        "stopped early by EarlyStopping in epoch 2, 3 of 8 done (Monitored metric val_loss did not improve); never "
        "began: phase b (epoch 4)"
    )
    own = find_early_stop(trainer(5, 8), FINETUNING)  # type: ignore[arg-type]
    assert own is not None
    assert (own.by, own.missed) == ("the task, which set trainer.should_stop", ())
    for ended in (trainer(8, 8), trainer(3, 8, stops=False)):
        assert find_early_stop(ended, FINETUNING) is None  # type: ignore[arg-type]
    assert EarlyStop.from_json(STOP.to_json()) == STOP
    assert EarlyStop.from_json(None) is None


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    run = RunFolder(tmp_path)
    begin(run.attempts)
    write_json(run.summary_json, {"status": "finished", "epochs": 3, "stopped_early": STOP.to_json()})
    return run


def test_it_trains_no_more(folder: RunFolder) -> None:
    config = RunConfig(max_epochs=8)
    for epochs in (8, 5):
        continuation = find(folder, config.replace(max_epochs=epochs))
        assert continuation.finished
        assert "stopped early by EarlyStopping in epoch 2, 3 of 8 done" in continuation.notes[0]
    assert not find(folder, config.replace(max_epochs=9)).finished


def test_status_says_so(folder: RunFolder) -> None:
    state = state_of(read_run(folder), time.time())
    assert (state.name, state.words) == (State.FINISHED, str(STOP))
