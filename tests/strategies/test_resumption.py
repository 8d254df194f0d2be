"""`Finetuner.epochs` and `batches`: a loop that is stopped anywhere and started again ends as one that was not."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from flash_strategies import Finetuner, StrategyValueError, TransitionError, run_session
from flash_strategies.errors import CheckpointError
from flash_strategies.resumption import Position, Resumption
from flash_strategies.run_session import EXIT_STOPPED

EPOCHS, BATCHES = 3, 4


class Task(nn.Module):
    """With dropout, whose masks follow from the random state."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.3))
        self.head = nn.Linear(8, 2)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.backbone(inputs))
        return logits


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set: this process is asked to stop."""
    event = threading.Event()
    monkeypatch.setattr(run_session, "_stop", event)
    return event


def train(folder: Path | None, asked: threading.Event, stop_at: int | None = None) -> tuple[Task, list[str]]:
    """One start of the program; what it trained on, an "epoch.inputs" for each batch."""
    torch.manual_seed(5)
    task = Task()
    finetuner = Finetuner(task, ("freeze_unfreeze", 1), max_epochs=EPOCHS)
    optimizer = torch.optim.AdamW(task.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.9)
    finetuner.ddp(optimizer, [schedule])
    inputs = torch.arange(BATCHES * 2 * 4).view(BATCHES * 2, 4) / 10
    loader = DataLoader(TensorDataset(inputs, torch.arange(BATCHES * 2) % 2), batch_size=2, shuffle=True)
    seen: list[str] = []
    try:
        for epoch in finetuner.epochs(folder):
            for images, labels in finetuner.batches(loader):
                nn.functional.cross_entropy(finetuner.model(images), labels).backward()
                finetuner.before_step()
                optimizer.step()
                optimizer.zero_grad()
                finetuner.after_step()
                seen.append(f"{epoch}.{images.flatten().tolist()}")
                if finetuner.steps == stop_at:
                    asked.set()
            schedule.step()
    except SystemExit as stopped:
        seen.append(f"exit {stopped.code}")
    asked.clear()
    return task, seen


def same(left: nn.Module, right: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left.parameters(), right.parameters(), strict=True))


# in the middle of an epoch, before and after the unfreeze; at an epoch's last batch
@pytest.mark.parametrize("stop_at", [2, BATCHES, BATCHES + 1, 3 * BATCHES - 1])
def test_stopped_and_resumed_equals_the_unstopped_run(tmp_path: Path, asked: threading.Event, stop_at: int) -> None:
    whole, every = train(None, asked)
    _, first = train(tmp_path, asked, stop_at)
    (tmp_path / ".0001_00000099.tmp").mkdir()  # of a save that was cut off
    assert first == [*every[:stop_at], f"exit {EXIT_STOPPED}"]
    resumed, rest = train(tmp_path, asked)
    assert rest == every[stop_at:]
    assert same(resumed, whole)
    over, nothing = train(tmp_path, asked)
    assert nothing == []
    assert same(over, whole)
    assert len(list(tmp_path.iterdir())) == 2


def test_without_a_folder_nothing_is_saved_and_a_stop_is_not_looked_for(asked: threading.Event) -> None:
    asked.set()
    _, seen = train(None, asked)
    assert len(seen) == EPOCHS * BATCHES


def test_the_session_of_flash_launch_says_where(
    tmp_path: Path, asked: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(run_session.RUN, str(tmp_path))
    monkeypatch.setenv(run_session.ATTEMPT, "7")
    train(None, asked, stop_at=2)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["0007_00000002"]


def test_a_loop_that_a_newer_attempt_superseded_saves_nothing(
    tmp_path: Path, asked: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "attempts").mkdir()
    (tmp_path / "attempts/0002.json").touch()
    monkeypatch.setenv(run_session.RUN, str(tmp_path))
    monkeypatch.setenv(run_session.ATTEMPT, "1")
    with pytest.raises(CheckpointError, match="attempt 1 of this run was superseded"):
        train(None, asked)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir() if not path.name.startswith(".")] == []


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    task = Task()
    finetuner = Finetuner(task, "no_freeze")
    with pytest.raises(StrategyValueError, match="max_epochs"):
        next(iter(finetuner.epochs()))
    with pytest.raises(TransitionError, match=r"loop over epochs\(\)"):
        next(iter(finetuner.batches([1])))


def test_a_damaged_position_is_refused(tmp_path: Path, asked: threading.Event) -> None:
    train(tmp_path, asked, stop_at=2)
    (tmp_path / "0001_00000002" / "position.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"position\.json cannot be read"):
        train(tmp_path, asked)


@pytest.mark.parametrize(("ranks", "here", "batch"), [(2, 2, 5), (2, 1, 10), (2, 4, 2), (1, 2, 2)])
def test_a_position_is_of_so_many_ranks(ranks: int, here: int, batch: int) -> None:
    resumption = object.__new__(Resumption)
    resumption._control = type("Ranks", (), {"world_size": here})()  # type: ignore[assignment]
    assert resumption._of_these_ranks(Position(3, 5), ranks) == Position(3, batch)
