"""A pytest plugin: writes each test's outcome to the file named by MUTANT_OUTCOMES."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

_OUTCOMES: dict[str, str] = {}


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" or report.outcome != "passed":
        before = _OUTCOMES.get(report.nodeid)
        _OUTCOMES[report.nodeid] = "failed" if before == "failed" else report.outcome


def pytest_sessionfinish() -> None:
    Path(os.environ["MUTANT_OUTCOMES"]).write_text(json.dumps(_OUTCOMES), encoding="utf-8")
