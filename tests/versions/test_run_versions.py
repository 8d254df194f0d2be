"""The run over versions knows those that are accepted, reads what pytest wrote, and says what failed."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from flash_strategies import deepspeed_private

SCRIPT = Path(__file__).with_name("run_versions.py")


@pytest.fixture(scope="module")
def runner() -> ModuleType:
    spec = importlib.util.spec_from_file_location("run_versions", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["run_versions"] = module
    spec.loader.exec_module(module)
    return module


def test_it_runs_what_is_accepted_and_its_tests_are_there(runner: ModuleType) -> None:
    versions = runner.accepted()
    assert [one.version for one in versions if one.library == "deepspeed"] == list(deepspeed_private.READ_VERSIONS)
    assert {one.library for one in versions} == set(runner.TESTS)
    assert all((runner.ROOT / test).is_file() for tests in runner.TESTS.values() for test in tests)


def test_a_version_that_is_not_accepted_is_refused_by_name() -> None:
    command = [sys.executable, str(SCRIPT), "--only", "deepspeed==0.1.0"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert ended.returncode == 2
    assert "deepspeed==0.1.0: accepted are deepspeed==" in ended.stderr


REPORT = """<testsuites><testsuite>
<testcase classname="a.b" name="good"/><testcase classname="a.b" name="left"><skipped/></testcase>
<testcase classname="a.b" name="bad"><failure/></testcase><testcase classname="a.b" name="broken"><error/></testcase>
</testsuite></testsuites>"""


def test_a_report_and_its_row(runner: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "report.xml").write_text(REPORT)
    passed, failed = runner.outcomes(tmp_path / "report.xml")
    assert (passed, failed) == (1, ("a.b::bad", "a.b::broken"))
    version = runner.Version("deepspeed", "0.0.1")
    table = runner.table([runner.Row(version, passed, failed, 61.4)])
    assert "| deepspeed | 0.0.1 | 1 | 2 | 61 s |" in table
    assert "deepspeed==0.0.1: a.b::bad" in table


def test_the_overlay_is_what_an_import_gives(runner: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "deepspeed").mkdir()
    (tmp_path / "deepspeed/__init__.py").write_text('__version__ = "0.0.1"\n')
    runner.check_imported(runner.Version("deepspeed", "0.0.1"), runner.environment(tmp_path))
    with pytest.raises(RuntimeError, match=r"import gives 0\.0\.1"):
        runner.check_imported(runner.Version("deepspeed", "0.0.2"), runner.environment(tmp_path))


def test_what_prevents_the_tests_is_the_versions_failure(runner: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "deepspeed-0.0.1").mkdir()
    (tmp_path / "deepspeed-0.0.1/deepspeed.py").write_text("raise ImportError('odd')\n")
    row = runner.run(runner.Version("deepspeed", "0.0.1"), tmp_path, ())
    assert (row.passed, row.failed) == (0, ("import gives ImportError: odd",))
