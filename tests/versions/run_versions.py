"""Runs the engine and checkpoint tests on each version of DeepSpeed and Lightning that is accepted (READ_VERSIONS).

    python tests/versions/run_versions.py [--only deepspeed==0.18.9 ...] [--folder FOLDER] [--list]

A version other than the installed one is put into a folder of its own by `pip install --no-deps --target`, and that
folder in front of the environment by PYTHONPATH: all else stays as installed. To try another version, add it to
READ_VERSIONS in deepspeed_private.py or lightning/private.py; it may stay there if its row passes. Exit code 1: a
version does not pass, or could not be had.
"""

from __future__ import annotations

import argparse
import ast
import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parents[2]
SECONDS = 3600.0
"""After which a version's tests are ended."""
PRIVATE = {
    "deepspeed": "strategies/flash_strategies/deepspeed_private.py",
    "pytorch-lightning": "strategies/flash_strategies/lightning/private.py",
}
MODULES = {"deepspeed": "deepspeed", "pytorch-lightning": "pytorch_lightning"}
TESTS = {
    "deepspeed": (
        "tests/engines/test_noop.py",
        "tests/engines/test_reference.py",
        "tests/engines/test_survival.py",
        "tests/engines/test_relocate.py",
        "tests/engines/test_bytes.py",
        "tests/engines/test_proof.py",
        "tests/strategies/test_forgotten_gradients.py",
        "tests/strategies/test_plain.py",
        "tests/strategies/test_lightning_checkpoint.py",
        "tests/checkpoint/test_matrix.py",
    ),
    "pytorch-lightning": (
        "tests/parity/test_parity.py",
        "tests/strategies/test_custom.py",
        "tests/strategies/test_lightning_checkpoint.py",
        "tests/checkpoint/test_matrix.py",
        "tests/checkpoint/test_training.py",
        "tests/launcher/test_logged_values.py",
    ),
}
"""Those that reach into the library's private parts: the engines, their checkpoints, and resuming."""


@dataclass(frozen=True)
class Version:
    """A library at a version."""

    library: str
    version: str

    def __str__(self) -> str:
        return f"{self.library}=={self.version}"

    @property
    def installed(self) -> bool:
        """Whether it is the environment's."""
        return metadata.version(self.library) == self.version


@dataclass(frozen=True)
class Row:
    """What came of a version's tests."""

    version: Version
    passed: int
    failed: tuple[str, ...]
    """Names of tests, or why there are none."""
    seconds: float


def read_versions(file: Path) -> tuple[str, ...]:
    """READ_VERSIONS of a file, without importing it.

    Raises:
        ValueError: it has none.
    """
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "READ_VERSIONS":
            return tuple(ast.literal_eval(node.value))
    raise ValueError(f"{file} has no READ_VERSIONS")


def accepted() -> list[Version]:
    """All accepted versions, library by library."""
    return [Version(library, one) for library, file in PRIVATE.items() for one in read_versions(ROOT / file)]


def overlay(version: Version, folder: Path) -> Path:
    """The folder with the version, made if it is not there.

    Raises:
        RuntimeError: pip cannot get it.
    """
    path = folder / str(version).replace("==", "-")
    if path.is_dir():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as new:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--no-build-isolation", "--target", new, str(version)]
        ended = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "DS_BUILD_OPS": "0"})
        if ended.returncode:
            last = ended.stderr.strip().splitlines()[-1:]
            raise RuntimeError(f"pip cannot get it: {' '.join(last)}")
        Path(new).rename(path)
        Path(new).mkdir()  # which is removed on leaving
    return path


def environment(path: Path | None) -> dict[str, str]:
    """With a folder in front of all that is installed; None: as it is."""
    before = [str(path)] if path is not None else []
    given = os.environ.get("PYTHONPATH")
    paths = os.pathsep.join([*before, *([given] if given else [])])
    return {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}


def check_imported(version: Version, env: Mapping[str, str]) -> None:
    """Check that it is this version that an import gives.

    Raises:
        RuntimeError: it is another, or cannot be imported.
    """
    code = f"import {MODULES[version.library]} as one; print(one.__version__)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=dict(env))
    found = (ended.stdout.strip().splitlines() or [""])[-1]
    if ended.returncode or found != version.version:
        last = (ended.stderr.strip().splitlines() or [""])[-1]
        raise RuntimeError(f"import gives {found or last}")


def outcomes(report: Path) -> tuple[int, tuple[str, ...]]:
    """How many tests passed, and which failed, of a JUnit file."""
    passed, failed = 0, []
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        if case.find("failure") is not None or case.find("error") is not None:
            failed.append(f"{case.get('classname')}::{case.get('name')}")
        elif case.find("skipped") is None:
            passed += 1
    return passed, tuple(failed)


def run(version: Version, folder: Path, tests: Sequence[str]) -> Row:
    """One version's tests; what prevents them is its failure."""
    began = time.monotonic()
    try:
        env = environment(None if version.installed else overlay(version, folder))
        check_imported(version, env)
        with tempfile.TemporaryDirectory() as reports:
            report = Path(reports) / "report.xml"
            command = [sys.executable, "-m", "pytest", "-q", "-m", "not slow", "-p", "no:cacheprovider"]
            command += [f"--junit-xml={report}", *tests]
            subprocess.run(command, cwd=ROOT, env=env, timeout=SECONDS)
            passed, failed = outcomes(report) if report.exists() else (0, ("pytest ended without a report",))
    except (RuntimeError, subprocess.TimeoutExpired) as error:
        passed, failed = 0, (str(error),)
    return Row(version, passed, failed, time.monotonic() - began)


def table(rows: Sequence[Row]) -> str:
    """As Markdown, with what failed below."""
    lines = ["| library | version | passed | failed | time |", "| --- | --- | --- | --- | --- |"]
    for row in rows:
        name = row.version.version + (" (installed)" if row.version.installed else "")
        lines.append(f"| {row.version.library} | {name} | {row.passed} | {len(row.failed)} | {row.seconds:.0f} s |")
    return "\n".join([*lines, *(f"{row.version}: {one}" for row in rows for one in row.failed)])


def main() -> int:
    """Run and print."""
    versions = accepted()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="LIBRARY==VERSION", help="these versions alone")
    parser.add_argument("--folder", type=Path, default=ROOT / ".venv" / "versions", help="where versions are kept")
    parser.add_argument("--list", action="store_true", help="print the versions and their tests, and end")
    options = parser.parse_args()
    if unknown := set(options.only or ()) - {str(one) for one in versions}:
        parser.error(f"{', '.join(sorted(unknown))}: accepted are {', '.join(map(str, versions))}")
    chosen = [one for one in versions if not options.only or str(one) in options.only]
    if options.list:
        print("\n".join(f"{one}: {' '.join(TESTS[one.library])}" for one in chosen))
        return 0
    rows = [run(one, options.folder, TESTS[one.library]) for one in chosen]
    print(table(rows))
    return int(any(row.failed or not row.passed for row in rows))


if __name__ == "__main__":
    sys.exit(main())
