"""What the launcher process imports, and what that costs."""

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

GUARD = ("rank_guard", "agent_guard", "telling", "progress", "oom_evidence")
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
    assert ours == {"flash_launch", *(f"flash_launch.{name}" for name in GUARD)}
    assert not HEAVY & set(json.loads(done.stdout))


def test_help_takes_at_most_0_4_seconds_of_cpu_time() -> None:
    command = Path(sys.executable).with_name("flash-launch")
    best = float("inf")
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([str(command), "--help"], capture_output=True, timeout=60, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        best = min(best, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert best <= 0.4
