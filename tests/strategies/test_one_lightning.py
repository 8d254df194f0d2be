"""Both of Lightning's names lead to the same modules, whichever was imported first and whichever is installed."""

import os
import pickle
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import ModuleType

import pytest
import pytorch_lightning as pl

from flash_strategies.errors import UnsupportedVersionError
from flash_strategies.lightning import FinetuningCallback, FinetuningDDPStrategy, one_lightning

SITE = Path(pl.__file__).parents[1]

USE = """
import flash_strategies.lightning
import lightning as L
import lightning.fabric
import lightning.pytorch
import lightning.pytorch.callbacks
import lightning_fabric
import pytorch_lightning
import pytorch_lightning.cli
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.utilities.types import STEP_OUTPUT

from flash_strategies.lightning import FinetuningCallback, FinetuningDDPStrategy, one_lightning

assert lightning.pytorch is pytorch_lightning
assert lightning.fabric is lightning_fabric
assert L.Trainer is pytorch_lightning.Trainer and L.Fabric is lightning_fabric.Fabric
assert pytorch_lightning.cli.LightningCLI is LightningCLI
assert issubclass(FinetuningCallback, L.Callback) and issubclass(FinetuningCallback, pytorch_lightning.Callback)
assert issubclass(FinetuningDDPStrategy, lightning.pytorch.strategies.DDPStrategy)
print(one_lightning.used_distribution(), L.LightningModule.__module__)
"""


def python(code: str, *, flags: tuple[str, ...] = (), path: str | None = None) -> str:
    environment = {**os.environ, **({"PYTHONPATH": path} if path else {})}
    done = subprocess.run(
        [sys.executable, *flags, "-c", code], capture_output=True, text=True, timeout=240, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_both_names_are_one() -> None:
    import lightning as L
    import lightning.fabric
    import lightning.pytorch.callbacks
    import lightning_fabric
    from lightning.pytorch.strategies import DDPStrategy

    assert lightning.pytorch is pl
    assert lightning.fabric is lightning_fabric
    assert lightning.pytorch.callbacks.Callback is pl.Callback
    assert L.LightningModule is pl.LightningModule
    assert issubclass(FinetuningCallback, L.Callback)
    assert issubclass(FinetuningDDPStrategy, DDPStrategy)


def test_a_module_keeps_the_name_it_was_imported_with() -> None:
    import lightning.pytorch.callbacks.early_stopping as theirs
    import pytorch_lightning.callbacks.early_stopping as ours

    assert theirs is ours
    assert ours.__spec__ is not None
    assert ours.__spec__.name == ours.__name__ == "pytorch_lightning.callbacks.early_stopping"
    assert sys.modules["lightning.pytorch.callbacks.early_stopping"] is ours


def test_pickles_of_either_name_give_the_same_class() -> None:
    stopping = pl.callbacks.EarlyStopping("loss", patience=5)
    text = pickle.dumps(stopping, protocol=0)
    assert b"pytorch_lightning.callbacks.early_stopping" in text
    other = text.replace(b"cpytorch_lightning.callbacks.early_stopping", b"clightning.pytorch.callbacks.early_stopping")
    assert other != text
    for one in (text, other):
        again = pickle.loads(one)
        assert type(again) is pl.callbacks.EarlyStopping
        assert again.patience == 5


def test_what_the_other_does_not_have_is_not_found() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"lightning\.pytorch\.no_such_module"):
        import lightning.pytorch.no_such_module  # noqa: F401


def test_two_versions_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"pytorch-lightning": "2.6.6", "lightning": "2.5.0"}
    monkeypatch.setattr(metadata, "version", versions.__getitem__)
    finder = one_lightning.OneLightning("pytorch-lightning", other=True)
    with pytest.raises(UnsupportedVersionError, match=r"pytorch-lightning 2\.6\.6 and lightning 2\.5\.0 are installed"):
        finder.find_spec("lightning.pytorch.trainer")
    assert finder.find_spec("lightning.data") is None  # who imports one of the two names alone is not refused
    assert finder.find_spec("pytorch_lightning.trainer") is None


def test_both_imported_before_us(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        sys, "meta_path", [one for one in sys.meta_path if not isinstance(one, one_lightning.OneLightning)]
    )
    monkeypatch.setitem(sys.modules, "lightning.pytorch", ModuleType("lightning.pytorch"))
    with pytest.raises(UnsupportedVersionError, match=r"pytorch_lightning and lightning\.pytorch were both imported.*"):
        one_lightning.install()
    assert not any(isinstance(one, one_lightning.OneLightning) for one in sys.meta_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("missing", "expected"),
    [
        (("lightning",), "pytorch-lightning pytorch_lightning.core.module"),
        (("pytorch_lightning", "lightning_fabric"), "lightning lightning.pytorch.core.module"),
    ],
)
def test_one_of_the_two_is_installed(missing: tuple[str, ...], expected: str, tmp_path: Path) -> None:
    left_out = {*missing, *(name.replace("_", "-") for name in missing)}
    for entry in SITE.iterdir():
        if entry.name.split("-")[0] not in left_out and entry.suffix != ".pth":
            (tmp_path / entry.name).symlink_to(entry)
    strategies = Path(one_lightning.__file__).parents[2]
    found = python(USE, flags=("-S",), path=f"{tmp_path}{os.pathsep}{strategies}")
    assert found == expected


@pytest.mark.slow
@pytest.mark.parametrize("first", ["", "import pytorch_lightning", "import lightning.pytorch.callbacks"])
def test_the_name_imported_first_stays(first: str) -> None:
    used = "lightning" if "lightning.pytorch" in first else "pytorch-lightning"
    assert python(first + USE).split()[0] == used


@pytest.mark.slow
def test_flashs_names_are_built_upon_what_the_user_imported() -> None:
    code = """
import lightning as L
import flash_launch as flash
from flash_launch.image import ImageClassifier
from flash_launch.core.finetuning import FlashBaseFinetuning
assert issubclass(flash.Trainer, L.Trainer)
assert issubclass(ImageClassifier, L.LightningModule)
assert issubclass(FlashBaseFinetuning, L.Callback)
print(L.Trainer.__module__)
"""
    assert python(code) == "lightning.pytorch.trainer.trainer"
