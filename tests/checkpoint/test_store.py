"""The folder of checkpoints: what is complete, what is damaged, what is kept; nothing good is deleted."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from flash_launch.checkpoint.attempts import Attempt
from flash_launch.checkpoint.manifest import Manifest, Part, Position, record, write
from flash_launch.checkpoint.schedule import Keeping
from flash_launch.checkpoint.store import Store
from flash_launch.errors import CheckpointError
from flash_launch.metric_goal import MetricGoal

SHARD = "shard-00001-model-00001-of-00001.safetensors"


def save(store: Store, step: int, *, run: str = "run", attempt: int = 1, batch: int = 0, **metrics: float) -> Path:
    """A checkpoint as `writing` leaves it, with one part that all share."""
    part = store.part_path("step_1_attempt_1")
    if not part.exists():
        part.mkdir(parents=True)
        (part / SHARD).write_bytes(b"frozen" * 100)
        write(part, Part(part.name, run, {"weight/a": "float32 00"}, {SHARD: record(part / SHARD)}))
    temporary = store.folder / f".tmp_step_{step}"
    temporary.mkdir()
    (temporary / SHARD).write_bytes(b"trains" * step)
    manifest = Manifest(
        f"step_{step}",
        run,
        attempt,
        Position(step, 0, batch, 0),
        0.0,
        "frozen",
        "plan",
        (),
        2,
        "zero2",
        8,
        1,
        dict(metrics),
        (),
        {part.name: ["weight/a"]},
        {SHARD: record(temporary / SHARD)},
    )
    write(temporary, manifest)
    store.publish(temporary, manifest.name)
    return store.path(manifest.name)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "checkpoints")
    for step in (4, 8, 12):
        save(store, step)
    return store


def test_the_newest_is_found(store: Store) -> None:
    found = store.newest("run")
    assert found is not None
    assert (found.manifest.name, found.notes) == ("step_12", ())
    named = store.newest("run", name="step_4")
    assert named is not None
    assert named.manifest.position.step == 4


def test_where_there_is_none(tmp_path: Path) -> None:
    assert Store(tmp_path / "nothing").newest("run") is None


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGE: dict[str, Callable[[Path], None]] = {
    "is damaged, its checksum": flip,
    "bytes instead of": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "is missing": Path.unlink,
}


@pytest.mark.parametrize("said", DAMAGE)
def test_a_damaged_file_is_named_and_the_one_before_is_used(store: Store, said: str) -> None:
    file = store.path("step_12") / SHARD
    DAMAGE[said](file)
    found = store.newest("run")
    assert found is not None
    assert found.manifest.name == "step_8"
    assert len(found.notes) == 1
    assert str(file) in found.notes[0]
    assert said in found.notes[0]
    assert store.names() == ["step_12", "step_8", "step_4"]  # looking deletes nothing


@pytest.mark.parametrize("damage", [flip, Path.unlink, lambda path: path.write_text("{}")])
def test_a_damaged_manifest_is_named(store: Store, damage: Callable[[Path], object]) -> None:
    damage(store.path("step_12") / "manifest.json")
    found = store.newest("run")
    assert found is not None
    assert found.manifest.name == "step_8"
    assert str(store.path("step_12") / "manifest.json") in found.notes[0]


def test_every_single_character_of_a_manifest_counts(store: Store) -> None:
    path = store.path("step_12") / "manifest.json"
    text = path.read_text()
    for place in range(0, len(text), 37):
        if text[place].isspace():
            continue
        path.write_text(text[:place] + ("1" if text[place] != "1" else "2") + text[place + 1 :])
        with pytest.raises(CheckpointError, match=r"manifest\.json|is missing|instead of|damaged"):
            store.checked("step_12", "run")
    path.write_text(text)
    store.checked("step_12", "run")


def test_a_damaged_part_spoils_all_that_refer_to_it(store: Store) -> None:
    flip(store.part_path("step_1_attempt_1") / SHARD)
    with pytest.raises(CheckpointError, match=r"no checkpoint can be used.*step_12.*step_8.*step_4"):
        store.newest("run")


def test_a_manifest_of_another_run_is_passed_over(store: Store, tmp_path: Path) -> None:
    other = Store(tmp_path / "other")
    save(other, 16, run="other")
    shutil.copytree(other.path("step_16"), store.path("step_16"))
    found = store.newest("run")
    assert found is not None
    assert found.manifest.name == "step_12"
    assert "is of another run" in found.notes[0]


def test_what_a_fenced_attempt_saved_late_is_passed_over(store: Store) -> None:
    attempts = [Attempt(1, "run", 0, "h", 1), Attempt(2, "run", 0, "h", 2, "step_8", 8)]
    found = store.newest("run", attempts)
    assert found is not None
    assert found.manifest.name == "step_8"
    assert "attempt 1 saved it after a newer began" in found.notes[0]


def test_an_unknown_name_tells_what_there_is(store: Store) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint 'step_5'; it has step_12, step_8, step_4"):
        store.newest("run", name="step_5")


def test_half_written_ones_are_invisible_and_swept(store: Store) -> None:
    half = store.folder / ".tmp_step_16_attempt_1"
    half.mkdir()
    (half / SHARD).write_bytes(b"x")
    assert store.names() == ["step_12", "step_8", "step_4"]
    store.sweep()
    assert not half.exists()
    assert store.newest("run") is not None


def test_the_newest_are_kept(store: Store) -> None:
    assert store.keep(2, "step_12") == ["step_4"]
    assert store.names() == ["step_12", "step_8"]
    assert store.part_path("step_1_attempt_1").exists()


def test_later_ones_that_were_passed_over_do_not_push_out_good_ones(store: Store) -> None:
    flip(store.path("step_12") / SHARD)  # the run went on from step 8, and has just saved step 10
    save(store, 10)
    assert store.keep(1, "step_10") == ["step_8", "step_4"]
    found = store.newest("run")
    assert found is not None
    assert found.manifest.name == "step_10"


def test_the_best_is_kept_too(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for step, accuracy, batch in ((1, 0.5, 0), (2, 0.9, 0), (3, 0.9, 2), (4, 0.7, 0), (5, 0.6, 0)):
        save(store, step, batch=batch, val_accuracy=accuracy)
    keeping = Keeping(1, MetricGoal("val_accuracy", True))
    assert set(store.keep(keeping.last, "step_5", keeping.score)) == {"step_1", "step_3", "step_4"}
    checkpoint = replace(store.checked("step_5", "run"), metrics={"val_loss": 2.0})
    assert Keeping(1, MetricGoal("val_loss", False)).score(checkpoint) == -2.0


def test_publishing_over_a_damaged_one_replaces_it(store: Store) -> None:
    flip(store.path("step_12") / SHARD)
    save(store, 12)
    found = store.newest("run")
    assert found is not None
    assert (found.manifest.name, found.notes) == ("step_12", ())
    assert [path.name for path in store.folder.iterdir() if path.name.startswith(".")] == []
