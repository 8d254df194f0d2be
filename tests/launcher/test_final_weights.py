"""model.safetensors: every tensor of the task's state_dict, written a piece at a time, whole or not at all."""

from __future__ import annotations

import signal
from pathlib import Path
from resource import RLIMIT_FSIZE, getrlimit, setrlimit

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from flash_launch import final_weights
from flash_launch.checkpoint.tensor_files import Source
from flash_launch.errors import CheckpointError
from flash_launch.final_weights import save_weights
from flash_strategies.engines.ddp import DDPEngine


class Odd(nn.Module):
    """Tensors of many kinds: tied, scalar, empty, channels-last, and of many types."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.tied = nn.Linear(5, 7), nn.Linear(5, 7, bias=False)
        self.tied.weight = self.first.weight
        self.scale = nn.Parameter(torch.tensor(2.5))
        self.images = nn.Parameter(torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last))
        self.narrow = nn.Parameter(torch.randn(3, 3).to(torch.bfloat16))
        self.register_buffer("empty", torch.zeros(0, 3))
        for dtype in (torch.bool, torch.int64, torch.float64, torch.complex64, torch.uint16):
            self.register_buffer(f"of_{str(dtype)[6:]}", torch.arange(5).to(dtype))


class WithExtras(Odd):
    """State that is no tensor."""

    def get_extra_state(self) -> dict[str, int]:
        return {"steps": 3}


def engine(task: nn.Module) -> DDPEngine:
    return DDPEngine(task, torch.optim.SGD(task.parameters(), lr=1.0))


def test_every_tensor_is_there_as_it_was(tmp_path: Path) -> None:
    task = Odd()
    save_weights(engine(task), task, tmp_path / "model.safetensors", write=True)
    found, expected = load_file(tmp_path / "model.safetensors"), task.state_dict()
    assert sorted(found) == sorted(expected)
    for name, value in expected.items():
        assert (found[name].dtype, found[name].shape) == (value.dtype, value.shape), name
        assert torch.equal(found[name], value), name
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_tensors_are_written_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the rank that writes holds a whole copy of the largest, or of all."""
    task, most = Odd(), []
    monkeypatch.setattr(final_weights, "_PIECE", 4)
    write = Source.write

    def watched(source: Source, file: object) -> None:
        most.append(max((piece.numel() for piece in source.pieces()), default=0))
        write(source, file)  # type: ignore[arg-type]

    monkeypatch.setattr(Source, "write", watched)
    save_weights(engine(task), task, tmp_path / "model.safetensors", write=True)
    assert max(most) == 4
    assert torch.equal(load_file(tmp_path / "model.safetensors")["images"], task.images)


def test_what_is_no_tensor_is_left_out_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task = WithExtras()
    save_weights(engine(task), task, tmp_path / "model.safetensors", write=True)
    assert "note: _extra_state of the task's state_dict is no tensor" in capsys.readouterr().out
    assert "_extra_state" not in load_file(tmp_path / "model.safetensors")


def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    task, path = nn.Linear(200, 200), tmp_path / "model.safetensors"
    path.write_bytes(b"before")
    limit, handler = getrlimit(RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    setrlimit(RLIMIT_FSIZE, (50_000, limit[1]))
    try:
        with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be written: File too large"):
            save_weights(engine(task), task, path, write=True)
    finally:
        setrlimit(RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == b"before"
    assert [one.name for one in tmp_path.iterdir()] == ["model.safetensors"]
