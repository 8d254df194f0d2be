"""`trainer.fit(ckpt_path=...)` after an unfreeze: bit for bit the fit that was not stopped; what cannot be says so."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
from lightning_checkpoint_suite import SAVED, STRATEGY, Case, Save, Task, run_case, trainer_on
from pytorch_lightning.strategies import DeepSpeedStrategy
from pytorch_lightning.trainer.states import TrainerFn

from flash_strategies.errors import CheckpointError
from flash_strategies.lightning import FinetuningDDPStrategy, FinetuningDeepSpeedStrategy, ScheduledFinetuning
from flash_strategies.lightning.checkpoint import taken_from

if TYPE_CHECKING:
    from conftest import Suites

CASES = [
    *(Case(2, setup) for setup in ("ddp", "zero2", "zero3")),
    *(Case(2, "ddp", callback) for callback in ("custom", "rates")),
    *(pytest.param(Case(2, setup, "rates"), marks=pytest.mark.slow) for setup in ("zero1", "zero2", "zero3")),
]


def check(found: dict[str, object]) -> None:
    assert {when: found[when] for when in SAVED} == dict.fromkeys(SAVED, ([], True))
    losses = found["losses"]
    assert isinstance(losses, list)
    assert losses == sorted(losses, reverse=True)
    assert len(set(losses)) == len(SAVED)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_resumed_fit_equals_the_unstopped_one(case: Case, suites: Suites) -> None:
    for found in suites.result(case.suite, case.world_size, case.name):
        check(found)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["milestones", "custom", "rates"])
def test_on_one_device(kind: str) -> None:
    check(run_case(f"1-single-{kind}"))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    trainer_on("single", [ScheduledFinetuning(STRATEGY), Save(tmp_path)]).fit(Task())
    return tmp_path


def test_what_cannot_be_resumed_is_refused_with_the_cure(saved: Path) -> None:
    def resume(path: Path, strategy: object = STRATEGY) -> None:
        trainer_on("single", [ScheduledFinetuning(strategy)]).fit(Task(), ckpt_path=path)

    # another strategy, or the same with other epochs
    with pytest.raises(CheckpointError, match=r"trained 4 parameters in epoch 1.*trains 2 in it"):
        resume(saved / "4.ckpt", "freeze")
    with pytest.raises(CheckpointError, match=r"trained 4 parameters in epoch 1.*write out its epochs"):
        resume(saved / "4.ckpt", ("freeze_unfreeze", 3))
    # made without the callback
    trainer_on("single", [Bare(saved)]).fit(Task())
    with pytest.raises(CheckpointError, match=r"made without a finetuning callback.*flash-launch resume"):
        resume(saved / "bare.ckpt")
    trainer_on("single", [ScheduledFinetuning(STRATEGY)]).test(Task(), ckpt_path=saved / "bare.ckpt", verbose=False)


class Bare(Save):
    """Saves without a finetuning callback."""

    def on_train_batch_end(self, trainer: object, task: object, *_: object) -> None:
        """Not here."""

    def on_train_epoch_end(self, trainer: object, task: object) -> None:
        """Once."""
        trainer.save_checkpoint(self._folder / "bare.ckpt")  # type: ignore[attr-defined,operator]

    def on_train_end(self, trainer: object, task: object) -> None:
        """Nothing to gather."""


@pytest.mark.parametrize(
    ("stage", "world_size", "said"),
    [
        (2, 4, "ZeRO-2 on 4 ranks, and this fit is at ZeRO-2 on 2 ranks"),
        (3, 2, "ZeRO-3 on 2"),
        (0, 2, "DDP or one device"),
    ],
)
def test_deepspeed_resumes_on_the_same_stage_and_ranks(stage: int, world_size: int, said: str) -> None:
    strategy = FinetuningDeepSpeedStrategy({"zero_optimization": {"stage": 2}})
    state = SimpleNamespace(fn=TrainerFn.FITTING)
    trainer = SimpleNamespace(state=state, strategy=strategy, world_size=2, ckpt_path="x.ckpt")
    saved = {"epoch": 1, "setup": {"stage": stage, "world_size": world_size}}
    with pytest.raises(CheckpointError, match=f"x.ckpt was made at {said}.*use the same.*flash-launch resume"):
        taken_from({"loops": {}, "flash_strategies": saved}, trainer)  # type: ignore[arg-type]
    state.fn = TrainerFn.TESTING
    assert taken_from({"loops": {}, "flash_strategies": saved}, trainer) is None  # type: ignore[arg-type]


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="is a folder, and this strategy reads a single file"):
        FinetuningDDPStrategy().load_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="is a single file, and this strategy reads a folder of DeepSpeed's"):
        FinetuningDeepSpeedStrategy({"zero_optimization": {"stage": 2}}).load_checkpoint(tmp_path / "file")


def test_a_fit_that_is_over_has_the_checkpoints_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    strategy = FinetuningDeepSpeedStrategy({"zero_optimization": {"stage": 2}})
    loaded: list[str] = []
    monkeypatch.setattr(strategy, "load_weights", lambda: loaded.append("weights"))
    callback = ScheduledFinetuning("no_freeze")
    for saved in (object(), None):  # `on_train_start`, which does not come where nothing is left to train, takes it
        callback._saved = saved  # type: ignore[assignment]
        callback.on_fit_end(SimpleNamespace(strategy=strategy), Task())  # type: ignore[arg-type]
    assert loaded == ["weights"]


def test_at_stage_3_another_engine_than_a_fits_writes_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strategy = FinetuningDeepSpeedStrategy({"zero_optimization": {"stage": 3}})
    written: list[object] = []
    monkeypatch.setattr(DeepSpeedStrategy, "save_checkpoint", lambda *args: written.append(args[2]))
    fitted, other = object(), object()
    strategy.transition_engine = SimpleNamespace(engine=fitted)  # type: ignore[assignment]
    strategy.model = other  # type: ignore[assignment]
    with pytest.raises(CheckpointError, match=r"Call save_checkpoint\(\) before them"):
        strategy.save_checkpoint({}, tmp_path / "a")
    strategy.model = fitted  # type: ignore[assignment]
    strategy.save_checkpoint({}, tmp_path / "b")
    assert written == [tmp_path / "b"]
