"""The wheel holds everything: packages, templates and weights that an editable install would find anyway."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

LIST = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]

USE = """
import json, flash_launch, flash_strategies
from importlib import resources
from flash_launch.setups import load_setup, setup_names
from flash_launch.tasks.digits_net import DIGITS_NET_WEIGHTS
import flash_strategies.engines.zero3, flash_strategies.lightning, flash_launch.worker
print(json.dumps({
    "homes": [flash_launch.__file__, flash_strategies.__file__, str(DIGITS_NET_WEIGHTS)],
    "setups": {name: load_setup(name).stage for name in setup_names()},
    "weights": DIGITS_NET_WEIGHTS.stat().st_size,
    "typed": [(resources.files(p) / "py.typed").is_file() for p in ("flash_launch", "flash_strategies")],
}))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel's content, built from a copy of what git does not ignore."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    files = subprocess.run(LIST, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in files.splitlines():
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(source)]
    subprocess.run(build, check=True, capture_output=True, timeout=120)
    (wheel,) = folder.glob("*.whl")
    target = folder / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target), str(wheel)]
    subprocess.run(install, check=True, capture_output=True, timeout=120)
    return target


def test_wheel_is_complete(installed: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", USE],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout.splitlines()[-1])
    assert all(home.startswith(str(installed)) for home in told["homes"])
    assert told["setups"]["zero2"] == 2
    assert len(told["setups"]) == 8
    assert told["weights"] > 100_000
    assert told["typed"] == [True, True]


def test_console_script(installed: Path, tmp_path: Path) -> None:
    """The command works from a folder with packages called `launcher` and `strategies` of the user's own."""
    for name in ("launcher", "strategies"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('shadowed')\n")
    ran = subprocess.run(
        [sys.executable, str(installed / "bin/flash-launch"), "templates"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f".{os.pathsep}{installed}"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ran.returncode == 0, ran.stderr
    assert "zero3_offload" in ran.stdout
