"""Lightning's two names, `pytorch_lightning` and `lightning.pytorch`, lead to one and the same modules.

The packages `pytorch-lightning` and `lightning` hold the same source twice. Imported side by side, they are two sets of
classes: a `lightning.pytorch` task is no `pytorch_lightning` LightningModule. A finder, first on `sys.meta_path`, gives
for one of the names the module of the other, and the same for `lightning_fabric` and `lightning.fabric`. The name that
was imported first stays; where neither was, `pytorch_lightning` does, and `lightning.pytorch` where it alone is there.

Importing this module installs the finder: the one import of ours with a side effect, as it must come before others'.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib import metadata
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

from flash_strategies.errors import UnsupportedVersionError

__all__ = ["OneLightning", "install", "used_distribution"]

_PACKAGES = {"pytorch_lightning": "lightning.pytorch", "lightning_fabric": "lightning.fabric"}
"""The package of the distribution `pytorch-lightning`, and the same in `lightning`."""
_WHOLE = {
    "Trainer": "lightning.pytorch",
    "LightningModule": "lightning.pytorch",
    "LightningDataModule": "lightning.pytorch",
    "Callback": "lightning.pytorch",
    "seed_everything": "lightning.fabric.utilities.seed",
    "Fabric": "lightning.fabric.fabric",
    "__version__": "lightning.pytorch",
}
"""What `import lightning` gives, and the modules that have it."""


class _Alias(Loader):
    """Gives the module of another name."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._spec: ModuleSpec | None = None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """The other module; what the import system is about to write over is kept."""
        module = importlib.import_module(self._name)
        self._spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Nothing is left to run: it keeps the name and the spec that it was imported with."""
        module.__spec__ = self._spec


class _Whole(Loader):
    """A package `lightning` where it is not installed: what `import lightning as L` gives, and its two packages."""

    def create_module(self, spec: ModuleSpec) -> None:
        """An empty module."""

    def exec_module(self, module: ModuleType) -> None:
        """Names are looked up when they are asked for, as Lightning is slow to import."""

        def get(name: str) -> object:
            if name not in _WHOLE:
                raise AttributeError(f"module 'lightning' has no attribute {name!r}")
            return getattr(importlib.import_module(_WHOLE[name]), name)

        module.__dict__.update(__getattr__=get, __all__=list(_WHOLE))


class OneLightning(MetaPathFinder):
    """Finds the modules of one of Lightning's names under the other."""

    def __init__(self, used: str, *, other: bool) -> None:
        """Decide.

        Args:
            used: the distribution whose modules are used: "pytorch-lightning" or "lightning".
            other: the other one is installed, too.
        """
        self.used, self._other = used, other
        pairs = _PACKAGES.items()
        self._packages = {theirs: ours for ours, theirs in pairs} if used == "pytorch-lightning" else dict(pairs)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec of an alias; None for every other module.

        Raises:
            UnsupportedVersionError: both packages are installed, at different versions.
        """
        if fullname == "lightning" and self.used == "pytorch-lightning" and not self._other:
            return ModuleSpec(fullname, _Whole(), is_package=True)
        package = next((one for one in self._packages if fullname == one or fullname.startswith(f"{one}.")), None)
        if package is None:
            return None
        if self._other:
            check_same_version()
        name = self._packages[package] + fullname.removeprefix(package)
        if importlib.util.find_spec(name) is None:
            return None  # such as pytorch_lightning.__version__, which lightning.pytorch does not have
        return ModuleSpec(fullname, _Alias(name))


def check_same_version() -> None:
    """Check that the two packages hold the same source.

    Raises:
        UnsupportedVersionError: they do not.
    """
    ours, theirs = metadata.version("pytorch-lightning"), metadata.version("lightning")
    if ours != theirs:
        raise UnsupportedVersionError(
            f"pytorch-lightning {ours} and lightning {theirs} are installed, and both are imported: a run takes one "
            f"version. Make them the same, with pip install pytorch-lightning=={ours} lightning=={ours}, or import one "
            "of them everywhere"
        )


def install() -> OneLightning:
    """Put the finder first, once.

    Raises:
        UnsupportedVersionError: both packages were imported before, as two sets of classes.
    """
    for finder in sys.meta_path:
        if isinstance(finder, OneLightning):
            return finder
    loaded = {name for pair in _PACKAGES.items() for name in pair if name in sys.modules}
    first, second = loaded & _PACKAGES.keys(), loaded - _PACKAGES.keys()
    if first and second:
        raise UnsupportedVersionError(
            f"{max(first)} and {max(second)} were both imported before flash_strategies.lightning, so each has classes "
            "of its own, and a task of one is none of the other. Import flash_strategies.lightning before them: both "
            "names then lead to the same classes. Or import one of the two everywhere"
        )
    there = {name for name in ("pytorch_lightning", "lightning") if PathFinder.find_spec(name) is not None}
    used = "lightning" if second or "pytorch_lightning" not in there else "pytorch-lightning"
    finder = OneLightning(used, other=len(there) == 2)
    sys.meta_path.insert(0, finder)
    return finder


def used_distribution() -> str:
    """The distribution whose modules are used: "pytorch-lightning" or "lightning"."""
    return install().used


install()
