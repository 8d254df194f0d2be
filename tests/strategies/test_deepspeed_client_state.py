"""What is read of a checkpoint of DeepSpeed's own before DeepSpeed loads it: no code in it is run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from flash_strategies.errors import CheckpointError
from flash_strategies.lightning.checkpoint import client_state


class Touching:
    """Writes a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def folder(path: Path, **more: object) -> Path:
    (path / "checkpoint").mkdir()
    (path / "latest").write_text("checkpoint\n")
    torch.save({"module": {}, "epoch": 3, **more}, path / "checkpoint" / "mp_rank_00_model_states.pt")
    return path


def test_plain_values_are_read(tmp_path: Path) -> None:
    assert client_state(folder(tmp_path, rates=[0.5]), 0) == {"epoch": 3, "rates": [0.5]}


def test_objects_are_refused_and_not_made(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="its code is not run"):
        client_state(folder(tmp_path, mine=Touching(tmp_path / "was run")), 0)
    assert not (tmp_path / "was run").exists()
