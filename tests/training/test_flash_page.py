"""The quick start of docs/flash.md, as it stands there."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_quick_start_runs(tmp_path: Path) -> None:
    text = (ROOT / "docs/flash.md").read_text(encoding="utf-8")
    code = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)[0]
    subprocess.run([sys.executable, ROOT / "examples/flash_guide/make_data.py"], cwd=tmp_path, check=True, timeout=120)
    with zipfile.ZipFile(tmp_path / "digits.zip") as archive:
        archive.extractall(tmp_path / "data")
    variables = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PL_TRAINER_ENABLE_PROGRESS_BAR": "False"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=250, env=variables
    )
    assert done.returncode == 0, done.stderr[-3000:]
    labels = ast.literal_eval(done.stdout.strip().splitlines()[-1])
    assert [len(batch) for batch in labels] == [4, 2]
    assert {label for batch in labels for label in batch} <= {"zero", "one", "two"}
