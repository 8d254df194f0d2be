"""What is made of the lines of metrics.jsonl and events.jsonl, and that a growing file is read once and wholly."""

from __future__ import annotations

from pathlib import Path

from flash_launch.tracking.rows import Follower, event_values, flat, metric_values


def test_metrics_keep_their_names_and_numbers() -> None:
    row = {"step": 3, "epoch": 1, "phase": "frozen", "kind": "step", "loss": 0.5, "lr": [0.1, 0.01]}
    expected = {"step": 3, "epoch": 1, "phase": "frozen", "loss": 0.5, "lr/group_0": 0.1, "lr/group_1": 0.01}
    assert metric_values(row) == expected


def test_events_stand_below_their_name() -> None:
    row = {
        "event": "transition",
        "time": 1.0,
        "step": 4,
        "epoch": 2,
        "trainable_after": 10,
        "unfrozen": ["a.weight", "b.weight"],
        "refrozen": [],
        "bytes_after": {"moments": 8},
        "groups": [{"elements": 5, "lr": 0.1}, {"elements": 5, "lr": 0.2}],
    }
    assert event_values(row) == {
        "event": "transition",
        "step": 4,
        "epoch": 2,
        "transition/trainable_after": 10,
        "transition/unfrozen": 2,
        "transition/unfrozen/names": "a.weight, b.weight",
        "transition/refrozen": 0,
        "transition/bytes_after/moments": 8,
        "transition/groups": 2,
        "transition/groups/0/elements": 5,
        "transition/groups/0/lr": 0.1,
        "transition/groups/1/elements": 5,
        "transition/groups/1/lr": 0.2,
    }


def test_long_lists_of_names_are_cut() -> None:
    found = flat("unfrozen", [f"layer{number}.weight" for number in range(1000)])
    assert found["unfrozen"] == 1000
    assert len(str(found["unfrozen/names"])) < 1100


def test_a_growing_file_is_read_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    follower = Follower(path, 0)
    assert list(follower.rows()) == []
    path.write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert list(follower.rows()) == [{"step": 1}, {"step": 2}]
    with path.open("a") as file:
        file.write('ep": 3}\nbroken\n{"step": 4}\n')
    assert list(follower.rows()) == [{"step": 3}, {"step": 4}]
    assert list(follower.rows()) == []
    assert follower.lines == 5


def test_lines_that_were_recorded_before_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n')
    assert list(Follower(path, 2).rows()) == [{"step": 3}]
    shortened = Follower(path, 9)
    assert shortened.lines == 3
    assert list(shortened.rows()) == []
