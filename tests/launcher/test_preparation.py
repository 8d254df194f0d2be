"""The preflight as the launcher asks it: a crash, a hang and errors of the user's own are one message each."""

from __future__ import annotations

from pathlib import Path

import pytest

from flash_launch import preparation
from flash_launch.config import RunConfig
from flash_launch.errors import LaunchError
from flash_launch.preparation import PreflightRefused, prepare
from flash_launch.tasks.own import users_fault


def preflight(folder: Path, text: str) -> tuple[str]:
    path = folder / "preflight.py"
    path.write_text(text)
    return (str(path),)


def test_a_crash_names_its_signal_and_its_last_words(tmp_path: Path) -> None:
    words = "import os, sys\nfor n in range(99): print('word', n, file=sys.stderr)\nsys.stderr.flush()\n"
    with pytest.raises(LaunchError) as caught:
        prepare(RunConfig(), preflight(tmp_path, words + "os.kill(os.getpid(), 11)"))
    text = str(caught.value)
    assert text.startswith(
        "the preflight broke, it was ended by SIGSEGV (a crash in native code); nothing was started."
    )
    assert text.endswith("word 98")
    assert "word 10\n" not in text


def test_a_hang_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparation, "SECONDS", 1.5)
    with pytest.raises(LaunchError, match=r"took over 1\.5 s and was ended; nothing was started\. It wrote"):
        prepare(RunConfig(), preflight(tmp_path, "import time\ntime.sleep(20)"))


def test_a_users_fault_is_told_from_ours(tmp_path: Path) -> None:
    path = tmp_path / "theirs.py"
    path.write_text("def broken():\n    raise KeyboardInterrupt('stop')\n")
    names: dict[str, object] = {}
    exec(compile(path.read_text(), str(path), "exec"), names)
    with pytest.raises(KeyboardInterrupt) as caught:
        names["broken"]()  # type: ignore[operator]
    assert f"KeyboardInterrupt: stop ({path}, line 2: " in str(users_fault(caught.value))
    with pytest.raises(FileNotFoundError) as ours:
        Path("/nowhere/at/all").read_text()
    ours.value.__traceback__ = ours.value.__traceback__.tb_next  # without the frame of this file
    assert users_fault(ours.value) is None


@pytest.mark.parametrize("code", [0, 3, 255])
def test_a_process_that_the_users_code_ended_is_their_fault(tmp_path: Path, code: int) -> None:
    text = f"import os, sys\nprint('goodbye', file=sys.stderr, flush=True)\nos._exit({code})"
    with pytest.raises(PreflightRefused, match=rf"exit code {code} by the code of the task or the data.*\ngoodbye$"):
        prepare(RunConfig(), preflight(tmp_path, text))
