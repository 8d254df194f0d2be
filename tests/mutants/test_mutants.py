"""The list of mutants fits the code and the tests, and the run tells red from survived, hung and outdated."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest
from run_mutants import ROOT, Mutant, main, mutants

MUTANTS = mutants(Path(__file__).parent)


@cache
def named_tests(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


def test_names_are_unique() -> None:
    names = [mutant.name for mutant in MUTANTS]
    assert sorted(set(names)) == sorted(names)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_every_entry_fits_the_code_and_names_tests_that_exist(mutant: Mutant) -> None:
    assert mutant.misfit(ROOT) is None
    for test in mutant.tests:
        file, _, name = test.partition("::")
        assert (ROOT / file).is_file(), test
        assert name.partition("[")[0] in named_tests(ROOT / file), test


CODE = "def double(x):\n    return 2 * x\n\n\ndef wait():\n    import time\n    time.sleep(0)\n"
TEST = """import code_of_mine as code


def test_double():
    assert code.double(3) == 6


def test_wait():
    code.wait()
"""


def entry(name: str, old: str, new: str, test: str) -> str:
    return (
        f"[[mutant]]\nname = '{name}'\nfile = 'launcher/code_of_mine.py'\n"
        f"old = '{old}'\nnew = '{new}'\ntests = ['test_it.py::{test}']\n"
    )


@pytest.mark.timeout(900)  # starts pytest seven times; only the one that hangs has a limit of its own
def test_the_run_tells_red_from_survived_hung_outdated_and_never_green(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "launcher").mkdir()
    (tmp_path / "launcher/code_of_mine.py").write_text(CODE)
    (tmp_path / "test_it.py").write_text(TEST + "\n\ndef test_never():\n    assert code.double(1) == 3\n")
    lists = tmp_path / "lists"
    lists.mkdir()
    (lists / "some.toml").write_text(
        entry("killed", "2 * x", "3 * x", "test_double")
        + entry("survives", "2 * x", "x + x", "test_double")
        + entry("hangs", "sleep(0)", "sleep(600)", "test_wait")
        + entry("outdated", "4 * x", "5 * x", "test_double")
        + entry("never_green", "2 * x", "3 * x", "test_never")
    )
    assert main(["--only", "killed"], root=tmp_path, folder=lists) == 0
    others = ["killed", "survives", "outdated", "never_green"]
    assert main(["--only", *others], root=tmp_path, folder=lists) == 1
    assert main(["--only", "hangs", "--seconds", "1"], root=tmp_path, folder=lists) == 1
    said = dict(line.split(" ", 1) for line in capsys.readouterr().out.splitlines())
    assert said["killed"].endswith(" red")
    assert "SURVIVED test_it.py::test_double" in said["survives"]
    assert "no end within 1 s" in said["hangs"]
    assert "0 times in launcher/code_of_mine.py" in said["outdated"]
    assert "not green without the edit" in said["never_green"]
    assert (tmp_path / "launcher/code_of_mine.py").read_text() == CODE
