"""Every bad input of the table is answered by its one message and exit code 2; nothing is started or left behind."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from bad_inputs import AT_ONCE, MILESTONES, PREFLIGHT, Row, write
from command import Answer, files, flash_launch, working_in

from flash_launch.cli import main
from flash_launch.config import RunConfig
from flash_launch.errors import FlashLaunchError
from flash_launch.preparation import PreflightRefused, Preparation

# These go through the real command with its real preflight too: data, weights, and two kinds of the user's own code.
WHOLE = tuple(
    next(row for row in PREFLIGHT if start in row.message)
    for start in ("the class 'bird' is empty", "(16, 3, 7, 7)", "width 65 is too wide", "Mine freezes the attribute")
)
PREPARING = "flash-launch: preparing: building the model and scanning the data\n"


def name(row: Row) -> str:
    return row.typed.replace(MILESTONES, "").strip()


def check_message(row: Row, err: str, here: Path) -> None:
    """It is the row's message, of one line, and nothing else."""
    expected = re.escape(row.message).replace("…", ".*").replace(re.escape("{here}"), re.escape(str(here)))
    assert re.fullmatch(f"flash-launch: error: {expected}\n", err), f"{err}is not\n{row.message}"


@pytest.fixture(scope="module")
def answers(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[int, Future[tuple[Answer, Path, bool]]]]:
    """The real command's answers to all rows that are to be tested with it, two at a time; by the row's identity."""

    def answer(row: Row) -> tuple[Answer, Path, bool]:
        here = tmp_path_factory.mktemp("here")
        write(row, here)
        before = files(here)
        answer = flash_launch(here, *row.typed.split(), timeout=120)
        return answer, here, files(here) == before

    asked = [item.callspec.params.get("row") for item in request.session.items if hasattr(item, "callspec")]
    by_command = [row for row in (*AT_ONCE, *WHOLE) if any(row is other for other in asked)]
    with ThreadPoolExecutor(2) as pool:
        yield {id(row): pool.submit(answer, row) for row in by_command}


@pytest.mark.parametrize("row", [*AT_ONCE, *WHOLE], ids=name)
def test_the_command_answers(row: Row, answers: dict[int, Future[tuple[Answer, Path, bool]]]) -> None:
    answer, here, untouched = answers[id(row)].result()
    check_message(row, answer.err, here)
    assert answer.code == 2
    assert answer.out == (PREPARING if row in WHOLE else "")
    assert untouched, f"{sorted(files(here))} is left"
    assert answer.alive == ()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty current folder; the preflight runs in this process, and nothing can be started."""
    from flash_launch.preflight import examine

    def prepare(config: RunConfig, preflight: object, *, checkpoint: object = None) -> Preparation:
        try:
            answer = examine(config.to_yaml())
        except FlashLaunchError as error:
            raise PreflightRefused(str(error)) from error
        raise AssertionError(f"not refused: {answer}")

    def run_local(*args: object, **options: object) -> None:
        raise AssertionError("ranks were started")

    monkeypatch.setattr("flash_launch.launching.prepare", prepare)
    monkeypatch.setattr("flash_launch.launching.run_local", run_local)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # as the preflight sets it
    monkeypatch.setattr(sys, "path", list(sys.path))
    for variable in ("CUDA_VISIBLE_DEVICES", "PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        monkeypatch.setenv(variable, "")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for module in [
        m for m, value in sys.modules.items() if str(getattr(value, "__file__", "")).startswith(f"{tmp_path}/")
    ]:
        del sys.modules[module]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("row", PREFLIGHT, ids=name)
def test_the_preflight_answers(row: Row, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(row, here)
    before = files(here)
    code = main(row.typed.split())
    check_message(row, capsys.readouterr().err, here)
    assert code == 2
    assert files(here) == before
    assert working_in(here) == ()


def test_the_table_covers_all_kinds_of_bad_input() -> None:
    rows = (*AT_ONCE, *PREFLIGHT)
    assert len({(row.typed, str(row.files)) for row in rows}) == len(rows) >= 40
    for option in (
        "--strategy",
        "--unfreeze-epoch",
        "--setup",
        "--data",
        "--weights",
        "--task",
        "--backbone",
        "--config",
    ):
        assert any(option in row.typed for row in rows), option
    for row in rows:
        assert "Traceback" not in row.message
        assert "strategy=(" not in row.message  # that is Python, not the command line
