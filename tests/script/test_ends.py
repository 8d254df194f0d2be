"""What the ends of a script's ranks come to: finished, stopped after saving, or failed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flash_launch.executors.local import LaunchResult
from flash_launch.run_folder import RunFolder
from flash_launch.script.config import ScriptConfig
from flash_launch.script.ends import exit_codes, record_end
from flash_launch.script.tracking import tracking_environment
from flash_launch.verdict import Verdict

VERDICT = Verdict(1, 0, "exited with code 75")


def write(ends: Path, ranks: dict[int, dict[str, object]]) -> None:
    """Files of each rank: kind -> content, besides the one that says it began."""
    ends.mkdir(parents=True)
    for rank, kinds in ranks.items():
        for kind, content in {"begin": {}, **kinds}.items():
            (ends / f"node0_rank{rank}.{kind}").write_text(json.dumps(content))


EXIT, OS_EXIT = {"exit": {"exit_code": 75}}, {"pid": 7, "end": {"exit_code": 75}}
ENDED = {"pid": 7, "end": {"exit_code": -15, "ended": True}}
FAILED = {"pid": 7, "failure": {"error": "x"}, "end": {"exit_code": 1}}


@pytest.mark.parametrize(
    ("ranks", "code", "status", "becomes"),
    [
        ({0: {}, 1: {}}, 0, "finished", 0),
        ({0: EXIT, 1: EXIT}, 0, "stopped", 0),
        ({0: EXIT, 1: {}}, 0, "stopped", 0),  # only rank 0 says it
        ({0: OS_EXIT, 1: ENDED}, 1, "stopped", 0),  # os._exit(75), after which torchrun ends the others
        ({0: EXIT, 1: FAILED}, 1, "failed", 1),  # one left a step that the other waited in
        ({0: OS_EXIT, 1: {"pid": 7, "end": {"exit_code": -11}}}, 1, "failed", 1),
        ({0: FAILED, 1: ENDED}, 1, "failed", 1),
        ({0: ENDED, 1: ENDED}, 130, "stopped", 130),
        ({0: {"pid": 7, "exit": {"exit_code": 143, "unheeded": True}, "end": {"exit_code": -15}}}, 1, "stopped", 143),
    ],
)
def test_ends(tmp_path: Path, ranks: dict[int, dict[str, object]], code: int, status: str, becomes: int) -> None:
    folder = RunFolder(tmp_path)
    write(folder.ends_of(1), ranks)
    result = record_end(folder, 1, LaunchResult(code, VERDICT if code == 1 else None, 1.0))
    summary = json.loads(folder.summary_json.read_text())
    assert summary["status"] == status
    assert summary["saved"] is (status == "stopped" and becomes == 0)
    assert summary["world_size"] == len(ranks)
    assert (result.exit_code, result.verdict is None) == (becomes, becomes != 1)


def test_exit_codes_by_rank(tmp_path: Path) -> None:
    write(tmp_path / "ends", {0: {}, 1: EXIT, 10: ENDED, 2: {"pid": 7}})
    assert exit_codes(tmp_path / "ends") == {0: 0, 1: 75, 2: None, 10: -15}


def test_all_attempts_are_one_run_at_wandb_and_no_key_is_written(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    config = ScriptConfig(script="a.py", wandb="online", wandb_entity="me", wandb_tags="a,b")
    environment = {"WANDB_API_KEY": "secret", "WANDB_PROJECT": "p"}
    first, second = (tracking_environment(config, folder, environment) for _ in range(2))
    assert first == second
    assert len(first.pop("WANDB_RUN_ID")) == 8
    assert first == {
        "WANDB_MODE": "online",
        "WANDB_DIR": str(folder.path),
        "WANDB_RESUME": "allow",
        "WANDB_PROJECT": "p",
        "WANDB_ENTITY": "me",
        "WANDB_NAME": "run",
        "WANDB_RUN_GROUP": "run",
        "WANDB_TAGS": "a,b",
    }
    assert not any("secret" in path.read_text() for path in folder.path.rglob("*") if path.is_file())
    assert tracking_environment(config.replace(wandb="disabled"), folder, environment) == {"WANDB_MODE": "disabled"}
