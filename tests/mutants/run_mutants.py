"""The mutation run: each listed edit of the code must turn the tests red that are named beside it.

    python tests/mutants/run_mutants.py [--only NAME ...] [--list]

An entry of the `*.toml` files beside this one is an edit: a file, a text that stands there once, and what to put in
its place. The tree is copied, so that nobody's files are edited; the named tests must be green without any edit, and
each of them must fail with it. Exit code 1: a mutant survived, hung, or an entry no longer fits the code.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

ROOT = Path(__file__).parents[2]
SECONDS = 400.0
SOURCES = ("launcher", "strategies")
PLUGIN = "mutant_outcomes"


@dataclass(frozen=True)
class Mutant:
    """One edit, and the tests that must notice it."""

    name: str
    """What the edit takes away, in a few words joined by hyphens."""
    file: str
    """The file, from the root of the tree."""
    old: str
    """A text that is in the file once."""
    new: str
    """What stands there instead."""
    tests: tuple[str, ...]
    """Node ids of pytest; one without parameters in brackets is red if any of its cases is."""

    def misfit(self, root: Path) -> str | None:
        """Why the entry does not fit the tree; None if it does."""
        path = root / self.file
        if not path.is_file():
            return f"there is no {self.file}"
        text = path.read_text(encoding="utf-8")
        if (found := text.count(self.old)) != 1:
            return f"its text is {found} times in {self.file}, not once"
        if self.old == self.new:
            return "it changes nothing"
        try:
            compile(text.replace(self.old, self.new), self.file, "exec", dont_inherit=True)
        except SyntaxError as error:
            return f"the edited {self.file} is not Python: {error}"
        return None if self.tests else "it names no test"


def mutants(folder: Path) -> list[Mutant]:
    """The entries of all lists in a folder."""
    found = []
    for path in sorted(folder.glob("*.toml")):
        for entry in tomllib.loads(path.read_text(encoding="utf-8"))["mutant"]:
            found.append(Mutant(**{**entry, "tests": tuple(entry["tests"])}))
    return found


def copy_tree(root: Path, target: Path) -> None:
    """Copy what git knows or would add; without git, all but environments, caches and hidden folders."""
    listed = subprocess.run(
        ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard", "."],
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode or not listed.stdout:
        shutil.copytree(root, target, ignore=shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build"))
        return
    for name in filter(None, listed.stdout.split("\0")):
        if (root / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, target / name)


def outcomes(tree: Path, tests: Sequence[str], seconds: float) -> dict[str, str] | str:
    """Run tests in a tree: "passed" or "failed" by node id; or why there is no result."""
    with tempfile.TemporaryDirectory() as scratch:
        told = Path(scratch, "outcomes.json")
        sources = [str(tree / name) for name in SOURCES]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([*sources, str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]),
            "MUTANT_SOURCES": os.pathsep.join(sources),  # for tests that start the command without our PYTHONPATH
            "PYTHONDONTWRITEBYTECODE": "1",  # an edit within the same second and of the same size would not be seen
            "MUTANT_OUTCOMES": str(told),
        }
        argv = [sys.executable, "-m", "pytest", "-q", "-p", PLUGIN, "-p", "no:cacheprovider", *tests]
        with Path(scratch, "output").open("w+", encoding="utf-8") as output:
            process = subprocess.Popen(
                argv, cwd=tree, env=environment, stdout=output, stderr=output, start_new_session=True
            )
            try:
                code = process.wait(seconds)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, 9)
                process.wait()
                return f"no end within {seconds:g} s"
            output.seek(0)
            tail = "\n".join(output.read().splitlines()[-15:])
        if code not in (0, 1) or not told.exists():
            return f"the tests could not be run, pytest ended with {code}:\n{tail}"
        return dict(json.loads(told.read_text(encoding="utf-8")))


def cases(test: str, found: Mapping[str, str]) -> dict[str, str]:
    """Those of the outcomes that a named test stands for."""
    return {node: said for node, said in found.items() if node == test or node.startswith((f"{test}[", f"{test}::"))}


def verdict(tree: Path, mutant: Mutant, seconds: float) -> str:
    """What became of a mutant, "red" where every named test fails; the tree is left as it was."""
    path = tree / mutant.file
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
    try:
        found = outcomes(tree, mutant.tests, seconds)
    finally:
        path.write_text(text, encoding="utf-8")
    if isinstance(found, str):
        return found
    green = [test for test in mutant.tests if "failed" not in cases(test, found).values()]
    return f"SURVIVED {', '.join(green)}" if green else "red"


def not_green(tree: Path, tests: Sequence[str], seconds: float) -> dict[str, str]:
    """Named tests that do not pass without an edit, and what they do instead."""
    found = outcomes(tree, tests, seconds)
    if isinstance(found, str):  # one test that cannot be run keeps pytest from running the others
        if len(tests) == 1:
            return dict.fromkeys(tests, found)
        return {key: said for test in tests for key, said in not_green(tree, [test], seconds).items()}
    wrong = {}
    for test in tests:
        said = cases(test, found)
        if "passed" not in said.values() or "failed" in said.values():
            wrong[test] = "not green without the edit: " + (", ".join(sorted(set(said.values()))) or "not run")
    return wrong


def run(root: Path, chosen: Sequence[Mutant], seconds: float) -> Iterator[tuple[Mutant, str, float]]:
    """(mutant, verdict, seconds) of each, one after the other, in a copy of the tree."""
    with tempfile.TemporaryDirectory(prefix="mutants_") as scratch:
        tree = Path(scratch, "tree")
        copy_tree(root, tree)
        misfits = {mutant.name: why for mutant in chosen if (why := mutant.misfit(tree))}
        fitting = [mutant for mutant in chosen if mutant.name not in misfits]
        tests = sorted({test for mutant in fitting for test in mutant.tests})
        wrong = not_green(tree, tests, max(seconds, SECONDS) * len(fitting)) if tests else {}
        for mutant in chosen:
            began = time.monotonic()
            why = misfits.get(mutant.name) or next((wrong[test] for test in mutant.tests if test in wrong), None)
            yield mutant, why or verdict(tree, mutant, seconds), time.monotonic() - began


def main(argv: Sequence[str] | None = None, *, root: Path = ROOT, folder: Path = Path(__file__).parent) -> int:
    """Run the mutants that are asked for; 0 if all are red."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", default=["*"], metavar="NAME", help="names, or patterns of names")
    parser.add_argument("--list", action="store_true", help="name the mutants and run none")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="time limit of one mutant's tests (%(default)g)")
    asked = parser.parse_args(argv)
    chosen = [one for one in mutants(folder) if any(fnmatchcase(one.name, pattern) for pattern in asked.only)]
    if not chosen:
        names = ", ".join(one.name for one in mutants(folder))
        parser.error(f"no mutant is named {' or '.join(asked.only)}; there are {names}")
    if asked.list:
        print("\n".join(f"{one.name:<44} {one.file}" for one in chosen))
        return 0
    bad = 0
    for mutant, said, took in run(root, chosen, asked.seconds):
        bad += said != "red"
        print(f"{mutant.name:<44} {took:5.0f} s  {said}", flush=True)
    print(f"{len(chosen)} mutants, {len(chosen) - bad} red, {bad} not")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
