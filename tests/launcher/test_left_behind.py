"""SLURM_* variables of a job that is over are refused, with those to unset."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from flash_launch.errors import ConfigError
from flash_launch.launching import read_options

VARIABLES = {"SLURM_JOB_ID": "77", "SLURM_JOB_NODELIST": "gpu01", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4"}
UNSET = "unset SLURM_JOB_ID SLURM_JOB_NODELIST SLURM_STEP_ID SLURM_STEP_NUM_TASKS$"


def scontrol(folder: Path, script: str) -> None:
    (folder / "scontrol").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "scontrol").chmod(0o755)


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("exit 127", "SLURM_JOB_ID names job 77, and scontrol failed without a word; "),
        ("echo 'Invalid job id specified' >&2; exit 1", "SLURM_JOB_ID names job 77, which is unknown to Slurm; "),
        ("echo JobId=77 JobState=CANCELLED NodeList=gpu01", "SLURM_JOB_ID names job 77, which is CANCELLED; "),
        ("echo JobId=77 JobState=RUNNING NodeList=gpu01", "srun has started this command 4 times: .*; if this shell "),
    ],
)
def test_they_are_refused(script: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scontrol(tmp_path, script)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=f"{message}.*{UNSET}"):
        read_options(["--accelerator", "cpu"])


def test_no_slurm_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=f"scontrol is not on this machine.*{UNSET}"):
        read_options(["--accelerator", "cpu"])
