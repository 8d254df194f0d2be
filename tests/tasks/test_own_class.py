"""Classes of the user's own: found from the current folder, and every fault told with its line."""

import itertools
import sys
from pathlib import Path

import pytest
from pytorch_lightning import LightningDataModule, LightningModule

from flash_launch.errors import TaskError
from flash_launch.tasks.own import build_own, load_class

_names = (f"own_task_{number}" for number in itertools.count())

GOOD = """
import pytorch_lightning as pl

class MyTask(pl.LightningModule):
    def __init__(self, width: int = 3):
        super().__init__()
        if width < 1:
            raise ValueError("width must be 1 or more")
        self.width = width

class Other:
    pass

class Needy(MyTask):
    def __init__(self, depth, *, height):
        super().__init__()
"""


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(sys.path))

    def write(text: str) -> str:
        name = next(_names)
        (tmp_path / f"{name}.py").write_text(text)
        return name

    return write


def test_a_class_is_found_and_built(write) -> None:
    own = load_class(f"{write(GOOD)}:MyTask", LightningModule)
    assert build_own(own, {}).width == 3
    assert build_own(own, {"width": 5}).width == 5


def test_what_does_not_name_a_class(write) -> None:
    name = write(GOOD)
    for spec in ("MyTask", f"{name}:", ":MyTask"):
        with pytest.raises(TaskError, match="write module:Class"):
            load_class(spec, LightningModule)
    with pytest.raises(TaskError, match=rf"no module 'x{name}'.*the nearest is {name}:MyTask"):
        load_class(f"x{name}:MyTask", LightningModule)
    with pytest.raises(TaskError, match=rf"no class 'MyTasc', the nearest is {name}:MyTask"):
        load_class(f"{name}:MyTasc", LightningModule)
    with pytest.raises(TaskError, match=r"is not a LightningModule"):
        load_class(f"{name}:Other", LightningModule)
    with pytest.raises(TaskError, match=r"is not a LightningDataModule"):
        load_class(f"{name}:MyTask", LightningDataModule)
    with pytest.raises(TaskError, match=r"it has no LightningDataModule"):
        load_class(f"{name}:MyData", LightningDataModule)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "x = 1\nimport no_such_package\n",
            r"ModuleNotFoundError: No module named 'no_such_package' \(.*, line 2: import",
        ),
        ("import json\n\njson.loads('{')\n", r"JSONDecodeError: .*line 3: json.loads"),
        ("def f(:\n    pass\n", r"SyntaxError: .*line 1"),
        ("raise SystemExit(3)\n", r"SystemExit: 3 \(.*line 1"),
    ],
)
def test_an_error_inside_the_users_file_is_told_with_its_line(write, text: str, told: str) -> None:
    with pytest.raises(TaskError, match=r"(?s)cannot be imported: " + told):
        load_class(f"{write(text)}:MyTask", LightningModule)


def test_constructor_arguments_are_checked_by_name(write) -> None:
    name = write(GOOD)
    own, needy = (load_class(f"{name}:{cls}", LightningModule) for cls in ("MyTask", "Needy"))
    with pytest.raises(TaskError, match=r"MyTask takes no argument 'widht' \(--task-args.widht\): it takes width"):
        build_own(own, {"widht": 3})
    with pytest.raises(TaskError, match=r"Needy needs the argument 'depth', 'height'"):
        build_own(needy, {})
    with pytest.raises(
        TaskError, match=r"MyTask cannot be built: ValueError: width must be 1 or more \(.*line 8: raise"
    ):
        build_own(own, {"width": 0})
