"""Each folder of examples/: what it holds, that ours is a small change of the original, and that its command runs.

README.md is read for two things. Its first ```console block is the command; lines that begin with `$ ` are typed, the
others are output (without any `$ `, all lines are typed). A comment `<!-- environment: examples -->` says that it needs
timm or transformers. A block that names original.py is how the original is run.
"""

import ast
import difflib
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

FOLDERS = sorted(path for path in (Path(__file__).parents[2] / "examples").iterdir() if (path / "README.md").is_file())
MOST_LINES = 10
SECONDS = 240  # of one command; it takes seconds on a quiet machine
ABOVE = Path(sys.prefix) / "examples/bin/python"
# commands whose scripts are of the environment below, where they would not see what is above it
COMMANDS = {
    "torchrun": "torch.distributed.run",
    "flash-launch": "flash_launch",
    "accelerate": "accelerate.commands.accelerate_cli",
}

every_example = pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)


def blocks(folder: Path) -> list[str]:
    """What is typed in each ```console block of the README."""
    found = re.findall(r"^```console\n(.*?)^```", (folder / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    typed = [[line.removeprefix("$ ") for line in block.splitlines() if line.startswith("$ ")] for block in found]
    return ["\n".join(lines) if lines else block for lines, block in zip(typed, found, strict=True)]


def without_docstring(file: Path) -> list[str]:
    """A program's lines, but for its docstring."""
    text = file.read_text()
    lines, first = text.splitlines(), ast.parse(text).body[0]
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        del lines[first.lineno - 1 : first.end_lineno]
    return lines


def changed_lines(original: list[str], ours: list[str]) -> list[str]:
    """Lines that a unified diff adds and removes."""
    diff = list(difflib.unified_diff(original, ours, n=0, lineterm=""))[2:]
    return [line for line in diff if not line.startswith("@@")]


def environment(folder: Path, scratch: Path) -> dict[str, str]:
    """The variables of a reader who has what the README asks for; skips where this machine has not."""
    path = [str(Path(sys.executable).parent), os.environ["PATH"]]
    if re.search(r"<!--[^>]*environment: examples", (folder / "README.md").read_text()):
        if not ABOVE.exists():
            pytest.skip(f"{folder.name} needs timm or transformers, and there is no {ABOVE}: make test installs them")
        shims = scratch / "bin"
        shims.mkdir()
        for command, module in COMMANDS.items():
            (shims / command).write_text(f'#!/bin/sh\nexec "{ABOVE}" -m {module} "$@"\n')
            (shims / command).chmod(0o755)
        path = [str(shims), str(ABOVE.parent), *path]
    return {
        **os.environ,
        "PATH": os.pathsep.join(path),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "WANDB_MODE": "disabled",
        "HF_HUB_OFFLINE": "1",
        "TORCH_EXTENSIONS_DIR": str(scratch / "extensions"),
    }


def run(folder: Path, command: str, scratch: Path) -> None:
    """Type the command in a copy of the folder; exit 0 is expected."""
    copy = shutil.copytree(folder, scratch / folder.name, ignore=shutil.ignore_patterns("__pycache__"))
    variables, log = environment(folder, scratch), scratch / "output"
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["bash", "-euc", command],
            cwd=copy,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            end(process)
    ended = f"did not end within {SECONDS} s" if code is None else f"ended with exit code {code}"
    assert code == 0, f"{command!r} {ended}:\n{log.read_text(errors='replace')[-4000:]}"


def end(process: subprocess.Popen[bytes]) -> None:
    """Nothing of a command that runs still survives; launchers end their ranks when they are asked to."""
    for signum in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            os.killpg(process.pid, signum)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                continue


@every_example
def test_ours_is_a_small_change_of_the_original(folder: Path) -> None:
    missing = [name for name in ("README.md", "original.py", "train.py") if not (folder / name).is_file()]
    assert not missing
    assert blocks(folder), "README.md has no ```console block"
    changed = changed_lines(*(without_docstring(folder / name) for name in ("original.py", "train.py")))
    assert 0 < len(changed) <= MOST_LINES, "\n".join(changed)


@every_example
def test_the_command_of_the_readme_runs(folder: Path, tmp_path: Path) -> None:
    run(folder, blocks(folder)[0], tmp_path)


@pytest.mark.slow
@every_example
def test_the_original_runs(folder: Path, tmp_path: Path) -> None:
    of_the_original = [block for block in blocks(folder) if "original.py" in block]
    if not of_the_original:
        pytest.skip(f"the README of {folder.name} does not say how its original is run")
    run(folder, of_the_original[0], tmp_path)


def test_lines_are_counted_as_a_diff_counts_them() -> None:
    assert changed_lines(["a", "b", "c"], ["a", "x", "c", "d"]) == ["-b", "+x", "+d"]
    assert changed_lines(["a"], ["a"]) == []
    assert changed_lines(["-- a"], ["++ b"]) == ["--- a", "+++ b"]
