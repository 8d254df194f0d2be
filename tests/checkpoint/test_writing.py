"""Writing a checkpoint: complete or invisible, with a full disk, a folder that is none, and a fence that has fallen."""

from __future__ import annotations

import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from flash_launch.checkpoint import writing
from flash_launch.checkpoint.attempts import Fence, begin
from flash_launch.checkpoint.manifest import Manifest, Part, Position
from flash_launch.checkpoint.schedule import Keeping
from flash_launch.checkpoint.store import Store
from flash_launch.checkpoint.writing import Job, run_job
from flash_launch.errors import CheckpointError, FencedError
from flash_strategies.agreement import ControlGroup
from flash_strategies.checkpoint.chunks import Slice, read_chunks

RUN = "run"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    begin(tmp_path / "attempts")
    return Store(tmp_path / "checkpoints")


def job(step: int, elements: int = 1000, *, part: bool = False) -> Job:
    """A checkpoint of one tensor, and one that is frozen."""
    values = torch.arange(elements, dtype=torch.float32) + step
    frozen = {f"step_{step}_attempt_1": ["weight/b"]} if part else {}
    manifest = Manifest(
        f"step_{step}", RUN, 1, Position(step, 0, step, step), 0.0, "", "", (), 1, "ddp", 1, 1, {}, (), frozen
    )
    return Job(
        manifest,
        b"{}",
        [Slice("weight/a", 0, values, elements)],
        Part(f"step_{step}_attempt_1", RUN, {"weight/b": "float32 0"}, {}) if part else None,
        [Slice("weight/b", 0, values, elements)] if part else [],
        b"rank",
    )


def save(store: Store, one: Job, keep: int = 9) -> None:
    run_job(one, store, Fence(store.folder.parent / "attempts", 1), Keeping(keep, None), ControlGroup())


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """The disk is full: a file that grows past this cannot be written on."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def hidden(store: Store) -> list[str]:
    """What is left half-written."""
    return [path.name for path in store.folder.rglob(".*")]


def test_what_was_written_is_read_back(store: Store) -> None:
    save(store, job(4, part=True))
    found = store.newest(RUN)
    assert found is not None
    values = torch.zeros(10)
    read_chunks(store.path("step_4"), [Slice("weight/a", 5, values, 1000)])
    assert torch.equal(values, torch.arange(5, 15) + 4.0)
    assert sorted(found.manifest.files) == [
        "engine.json",
        "rank_00000.pt",
        "shard-00001-model-00001-of-00001.safetensors",
    ]
    assert hidden(store) == []


def test_a_full_disk_leaves_what_was_there(store: Store) -> None:
    save(store, job(4))
    with files_of_at_most(50_000), pytest.raises(CheckpointError, match=r"saving step_8.*(File too large|shard-)"):
        save(store, job(8, 100_000))
    assert (store.names(), hidden(store)) == (["step_4"], [])
    assert store.newest(RUN) is not None
    save(store, job(8))  # there is room again
    assert store.names() == ["step_8", "step_4"]


def test_a_full_disk_while_a_part_is_written_leaves_no_part(store: Store) -> None:
    with files_of_at_most(50_000), pytest.raises(CheckpointError, match="saving step_8"):
        save(store, job(8, 100_000, part=True))
    assert (store.names(), store.parts(RUN), hidden(store)) == ([], {}, [])


def test_a_folder_that_is_a_file_is_named(store: Store) -> None:
    store.folder.write_text("no folder")
    with pytest.raises(CheckpointError, match=r"checkpoints/\.tmp_step_4_attempt_1 cannot be written"):
        save(store, job(4))
    assert store.folder.read_text() == "no folder"


def test_a_fenced_attempt_publishes_nothing_and_deletes_nothing(store: Store) -> None:
    save(store, job(4))
    begin(store.folder.parent / "attempts", resumed_from="step_4", resumed_step=4)
    with pytest.raises(FencedError, match="attempt 1 of this run was superseded by attempt 2"):
        save(store, job(8, part=True), keep=1)
    assert (store.names(), store.parts(RUN), hidden(store)) == (["step_4"], {}, [])


@pytest.mark.parametrize("part", [False, True])
def test_the_fence_is_looked_at_last_before_a_checkpoint_is_published(
    store: Store, monkeypatch: pytest.MonkeyPatch, part: bool
) -> None:
    """A newer attempt begins when all is written and, where there is one, the part is published."""
    attempts, write_manifest = store.folder.parent / "attempts", writing.write

    def written(folder: Path, manifest: Manifest | Part) -> None:
        write_manifest(folder, manifest)
        if isinstance(manifest, Manifest):
            begin(attempts)

    monkeypatch.setattr(writing, "write", written)
    with pytest.raises(FencedError, match="attempt 1 of this run was superseded by attempt 2"):
        save(store, job(8, part=part))
    assert (store.names(), hidden(store)) == ([], [])


def test_the_fence_is_looked_at_before_a_part_is_published(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    attempts, write_manifest = store.folder.parent / "attempts", writing.write

    def written(folder: Path, manifest: Manifest | Part) -> None:
        write_manifest(folder, manifest)
        begin(attempts)

    monkeypatch.setattr(writing, "write", written)
    with pytest.raises(FencedError):
        save(store, job(8, part=True))
    assert (store.names(), store.parts(RUN)) == ([], {})


def test_what_nobody_expects_is_a_failed_save_too(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the other ranks would wait for this one."""

    def fails(*_: object) -> None:
        raise ValueError("no such thing")

    monkeypatch.setattr(writing, "write_chunks", fails)
    with pytest.raises(CheckpointError, match="at saving step_8, rank 0: ValueError: no such thing"):
        save(store, job(8))
    assert (store.names(), hidden(store)) == ([], [])


def test_a_hole_in_the_shards_is_told(store: Store) -> None:
    save(store, job(4))
    with pytest.raises(CheckpointError, match=r"weight/a has 1,000 elements in the checkpoint and 2,000 in the model"):
        read_chunks(store.path("step_4"), [Slice("weight/a", 0, torch.zeros(2000), 2000)])
    with pytest.raises(CheckpointError, match="there is no weight/z"):
        read_chunks(store.path("step_4"), [Slice("weight/z", 0, torch.zeros(1), 1)])
