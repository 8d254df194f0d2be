"""Versions of DeepSpeed and Lightning: which are accepted, what another is told, and who needs neither."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from packaging.version import Version
from torch import nn

from flash_strategies import Finetuner, deepspeed_private, finetuning_callback
from flash_strategies.engines.zero3 import Zero3Engine
from flash_strategies.engines.zero12 import Zero12Engine
from flash_strategies.errors import UnsupportedVersionError
from flash_strategies.lightning import FinetuningDDPStrategy, FinetuningDeepSpeedStrategy, private

PROJECT = Path(__file__).parents[2] / "pyproject.toml"

# the two packages cannot be imported, and no metadata of theirs are found: a machine without them
ALONE = """
import sys
from importlib import metadata

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("deepspeed", "pytorch_lightning", "lightning", "lightning_fabric"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

def version(name, plain=metadata.version):
    if name in ("deepspeed", "pytorch-lightning", "lightning"):
        raise metadata.PackageNotFoundError(name)
    return plain(name)

sys.meta_path.insert(0, Absent())
metadata.version = version

import torch
from torch import nn
from flash_strategies import Finetuner
from flash_strategies.errors import UnsupportedVersionError

task = nn.Module()
task.backbone, task.head = nn.Linear(3, 3), nn.Linear(3, 2)
finetuner = Finetuner(task, ("freeze_unfreeze", 1), max_epochs=2)
optimizer = torch.optim.SGD(task.parameters(), lr=0.1)
before = task.backbone.weight.detach().clone()
finetuner.ddp(optimizer)
for epoch in range(2):
    finetuner.begin_epoch(epoch)
    task.head(task.backbone(torch.ones(1, 3))).sum().backward()
    finetuner.before_step()
    optimizer.step()
    optimizer.zero_grad()
    finetuner.after_step()
    print(torch.equal(task.backbone.weight, before))
    finetuner.end_epoch()
try:
    Finetuner(task, max_epochs=1).deepspeed(optimizer, {"zero_optimization": {"stage": 2}})
except UnsupportedVersionError as error:
    print(error)
"""


class Task(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.head = nn.Linear(3, 3), nn.Linear(3, 2)


@pytest.fixture
def faked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other versions than those that are installed."""
    fakes = {"deepspeed": "0.16.9", "pytorch-lightning": "2.3.0", "lightning": "2.3.0"}
    plain = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: fakes.get(name) or plain(name))


@pytest.mark.usefixtures("faked")
@pytest.mark.parametrize("engine", [Zero12Engine, Zero3Engine])
def test_another_deepspeed_is_named_with_those_that_are_accepted(engine: type[Zero12Engine]) -> None:
    task = Task()
    with pytest.raises(UnsupportedVersionError) as raised:
        engine(task, torch.optim.AdamW(task.parameters()))
    message = str(raised.value)
    assert message.startswith("deepspeed 0.16.9 is installed")
    assert ", ".join(deepspeed_private.READ_VERSIONS) in message
    assert f"pip install deepspeed=={deepspeed_private.READ_VERSIONS[-1]}" in message
    assert "DDP needs none of DeepSpeed" in message


@pytest.mark.usefixtures("faked")
def test_another_lightning_is_named_with_those_that_are_accepted() -> None:
    with pytest.raises(UnsupportedVersionError) as raised:
        finetuning_callback("freeze")
    message = str(raised.value)
    assert "lightning 2.3.0 is installed" in message
    assert ", ".join(private.READ_VERSIONS) in message
    assert f"lightning=={private.READ_VERSIONS[-1]}" in message


def test_ddp_is_not_refused_for_deepspeeds_version(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "0.16.9" if name == "deepspeed" else plain(name))
    task = Task()
    finetuner = Finetuner(task, "freeze", max_epochs=1)
    finetuner.ddp(torch.optim.SGD(task.parameters(), lr=0.1))
    finetuner.begin_epoch(0)
    FinetuningDDPStrategy()
    finetuning_callback("freeze")
    with pytest.raises(UnsupportedVersionError, match=r"deepspeed 0\.16\.9"):
        FinetuningDeepSpeedStrategy({})


def test_a_loop_with_ddp_needs_neither_of_them(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    frozen, unfrozen, refused = done.stdout.splitlines()[-3:]
    assert (frozen, unfrozen) == ("True", "False"), "whether the backbone stands where it was"
    assert refused.startswith("deepspeed is not installed; at ZeRO"), refused
    assert "pip install deepspeed==" in refused


@pytest.mark.parametrize("version", ["0.19.8", "0.19.8+cu130"])
def test_a_build_of_an_accepted_version_is_accepted(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", lambda name: version)
    deepspeed_private.check_version()


@pytest.mark.parametrize(
    ("name", "versions"), [("deepspeed", deepspeed_private.READ_VERSIONS), ("pytorch-lightning", private.READ_VERSIONS)]
)
def test_what_is_accepted_can_be_installed_beside_us(name: str, versions: tuple[str, ...]) -> None:
    required = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]["dependencies"]
    (bounds,) = (one.specifier for one in map(Requirement, required) if one.name == name)
    assert list(versions) == sorted(versions, key=Version)
    assert all(bounds.contains(version) for version in versions)
    assert f">={versions[0]}" in str(bounds), "the lower bound is the oldest that is accepted"
    assert metadata.version(name) == versions[-1], "the newest is what `make test` runs"


@pytest.mark.parametrize(
    ("version", "refused"), [("0.17.6", True), ("0.18.9", True), ("0.19.8", False), ("0.20.0", False)]
)
def test_gradients_that_a_version_would_not_reduce_are_refused(
    version: str, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metadata, "version", lambda name: version)
    config = {"zero_optimization": {"stage": 2, "contiguous_gradients": False}}
    if not refused:
        deepspeed_private.refuse_unreduced(config)
        return
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UnsupportedVersionError, match="contiguous_gradients is false"):
        deepspeed_private.refuse_unreduced(config)
    deepspeed_private.refuse_unreduced({"zero_optimization": {"stage": 2}})
    deepspeed_private.refuse_unreduced({"zero_optimization": {"stage": 3, "contiguous_gradients": False}})
