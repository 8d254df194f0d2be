"""The run folder: which folders are taken, and files that are whole or not there."""

import json
from pathlib import Path

import pytest

from flash_launch.errors import ConfigError
from flash_launch.run_folder import (
    RunFolder,
    append_jsonl,
    check_free,
    create,
    default_path,
    read_json,
    read_jsonl,
    write_json,
)


def test_a_new_folder_has_logs_only(tmp_path: Path) -> None:
    folder = create(tmp_path / "a" / "b")
    assert [path.name for path in folder.path.iterdir()] == ["logs"]
    assert folder.path.is_absolute()


def test_an_existing_folder_without_a_run_is_used(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert create(tmp_path).path == tmp_path
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_another_runs_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("")
    with pytest.raises(ConfigError, match=r"holds another run.*give a new folder"):
        create(tmp_path)


def test_a_folder_below_a_file_is_refused_without_writing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="is a file"):
        check_free(tmp_path / "file" / "run")
    check_free(tmp_path / "new" / "run")
    assert not (tmp_path / "new").exists()


def test_names_say_node_and_rank() -> None:
    folder = RunFolder(Path("/r"))
    assert folder.rank_log(1, 3) == Path("/r/logs/node1_rank3.log")
    assert folder.agent_log(0) == Path("/r/logs/node0_agent.log")
    members = ("config_yaml", "deepspeed_json", "plan_json", "metrics_jsonl", "events_jsonl", "summary_json")
    assert [getattr(folder, name).name for name in members] == [name.replace("_", ".") for name in members]
    assert (folder.checkpoints.name, folder.weights.name) == ("checkpoints", "model.safetensors")


def test_default_paths_differ() -> None:
    first, second = default_path("freeze"), default_path("my/../strategy")
    assert first.parent == second.parent == Path("runs")
    assert "-freeze-" in first.name
    assert first != default_path("freeze")


def test_json_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert read_json(path) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_line_cut_short_by_a_crash_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    assert list(read_jsonl(path)) == []
    append_jsonl(path, {"step": 1})
    with path.open("a") as file:
        file.write('{"step": 2, "lo')
    assert list(read_jsonl(path)) == [{"step": 1}]
    append_jsonl(path, {"step": 3})
    assert list(read_jsonl(path)) == [{"step": 1}, {"step": 3}]
    assert json.loads(path.read_text().splitlines()[-1]) == {"step": 3}
