"""What the launcher process imports, and what that costs."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

GUARD = (
    "quick_end",
    "rank_guard",
    "agent_guard",
    "telling",
    "progress",
    "oom_evidence",
    "processes",
    "script",
    "script.running",
)
HEAVY = {
    "torch",
    "lightning",
    "pytorch_lightning",
    "deepspeed",
    "accelerate",
    "torchvision",
    "wandb",
    "numpy",
    "sklearn",
}

PROBE = """
import contextlib, io, json, sys
from flash_launch.cli import main
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
    main(json.loads(sys.argv[1]))
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""


@pytest.mark.parametrize(
    "argv", [["--help"], ["templates"], ["templates", "zero3"], ["plan", "--help"], ["--print_config"]]
)
def test_the_launcher_imports_nothing_heavy(argv: list[str]) -> None:
    done = subprocess.run([sys.executable, "-c", PROBE, json.dumps(argv)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert not HEAVY & set(json.loads(done.stdout))


def test_the_local_executor_imports_nothing_heavy() -> None:
    code = "import flash_launch.executors.local, sys, json; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert not HEAVY & set(json.loads(done.stdout))


def test_the_guard_imports_the_standard_library_only() -> None:
    code = "import flash_launch.rank_guard, sys, json; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    ours = {name for name in json.loads(done.stdout) if name.startswith("flash_")}
    shared = {"flash_strategies", "flash_strategies.run_session"}
    assert ours == {"flash_launch", *(f"flash_launch.{name}" for name in GUARD)} | shared
    assert not HEAVY & set(json.loads(done.stdout))


def cpu_seconds(*command: str, cache: Path) -> float:
    """The least of three, with Python's bytecode cached, as it is on a user's machine."""
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": str(cache)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    found = []
    for _ in range(4):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, capture_output=True, timeout=120, check=True, env=environment)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        found.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(found[1:])


def test_help_takes_a_fraction_of_what_importing_torch_takes(tmp_path: Path) -> None:
    """Torchrun, accelerate and deepspeed import torch for it. On a machine where that takes 1.8 s, ours takes 0.3."""
    ours = cpu_seconds(str(Path(sys.executable).with_name("flash-launch")), "--help", cache=tmp_path)
    assert ours <= cpu_seconds(sys.executable, "-c", "import torch", cache=tmp_path) / 3
