"""What other people's code imports: the names stay, each is documented, and no door imports what it does not need."""

from __future__ import annotations

import ast
import importlib
import inspect
import itertools
import json
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from types import FunctionType, ModuleType

import pytest

from flash_strategies import FinetuningStrategy

NAMES = {
    "flash_strategies": """
        AgreementError Everything Finetuner FinetuningStrategy FlashBaseFinetuning FlashLaunchError Freeze
        FreezeUnfreeze LastLayers Layer Matching ModulesToFreezeError NoFreeze Nothing Phase ProofError Rate
        ScheduledFinetuning Selection StrategyNameError StrategySpec StrategyTypeError StrategyValueError
        TransitionError UnfreezeMilestones UnsupportedVersionError finetuning_callback freezable_layers
        freezable_modules freezes frozen_by_user parse_strategy register_strategy resolve strategy_names
        validated_phases with_rate
    """,
    "flash_strategies.lightning": """
        FinetuningCallback FinetuningDDPStrategy FinetuningDeepSpeedStrategy FlashBaseFinetuning ScheduledFinetuning
        finetuning_callback
    """,
    "flash_strategies.accelerate": "AccelerateFinetuner",
    "flash_strategies.run_session": """
        ATTEMPT EXIT_STOPPED RUN RunSession current_session looks_for_stops note_stop stop_requested
    """,
    "flash_launch": "Trainer",
    "flash_launch.image": "ImageClassificationData ImageClassifier",
    "flash_launch.core.finetuning": """
        FinetuningStrategies FlashBaseFinetuning FlashDeepSpeedFinetuning Freeze FreezeDeepSpeed FreezeUnfreeze
        FreezeUnfreezeDeepSpeed NoFreeze NoFreezeDeepSpeed UnfreezeMilestones UnfreezeMilestonesDeepSpeed
    """,
}
"""`__all__` of each public module. To add a name, add it here, too; one that is taken away breaks somebody's code."""

HEAVY = """
    accelerate deepspeed lightning lightning_fabric matplotlib numpy pytorch_lightning sklearn tensorboard timm torch
    torchmetrics torchvision transformers wandb
"""
DOORS = {
    "flash_strategies": "",
    "flash_strategies.run_session": "",
    "flash_strategies.plain": "numpy torch",
    "flash_strategies.accelerate": "accelerate numpy torch",
    "flash_strategies.lightning": "lightning_fabric matplotlib numpy pytorch_lightning torch torchmetrics torchvision",
    "flash_launch": "",
    "flash_launch.image": """
        lightning_fabric matplotlib numpy pytorch_lightning torch torchmetrics torchvision
    """,
    "flash_launch.training.trainer": """
        lightning_fabric matplotlib numpy pytorch_lightning torch torchmetrics torchvision
    """,
}
"""What importing a module may import of HEAVY. torchmetrics imports matplotlib and torchvision where they are there."""


def module(name: str) -> ModuleType:
    return importlib.import_module(name)


@pytest.mark.parametrize("name", NAMES)
def test_public_names_stay(name: str) -> None:
    found = module(name)
    came, went = set(found.__all__) - set(NAMES[name].split()), set(NAMES[name].split()) - set(found.__all__)
    assert not went, f"public names are gone from {name}: {sorted(went)}"
    assert not came, f"{name} has new public names: add {sorted(came)} to NAMES"
    assert len(found.__all__) == len(set(found.__all__))
    for public in found.__all__:
        assert getattr(found, public) is not None


# ---- docstrings


def members() -> Iterator[tuple[str, object]]:
    """Public functions, classes and their public methods, by dotted name."""
    for name in NAMES:
        for public in module(name).__all__:
            value = getattr(module(name), public)
            yield f"{name}.{public}", value
            for key, method in vars(value).items() if inspect.isclass(value) else ():
                if not key.startswith("_") and isinstance(method, (FunctionType, staticmethod, classmethod)):
                    yield f"{name}.{public}.{key}", method


MEMBERS = dict(members())


def inherited(name: str) -> bool:
    """Whether it overrides a method of another package's class, whose documentation holds."""
    owner, _, key = name.rpartition(".")
    bases = MEMBERS[owner].__mro__[1:] if inspect.isclass(MEMBERS.get(owner)) else ()
    return any(key in vars(base) for base in bases if not ours(base))


def ours(value: object) -> bool:
    return str(getattr(value, "__module__", "")).startswith("flash_")


def parameters(value: object) -> list[str]:
    """Of a callable of ours; of a class, those of its constructor, if that is not another package's."""
    if inspect.isclass(value):
        owner = next(one for one in value.__mro__ if "__init__" in vars(one))
        value = owner.__init__ if ours(owner) else None
    try:
        found = inspect.signature(value).parameters if callable(value) else {}
    except (TypeError, ValueError):  # without a signature
        return []
    given = ("self", "cls", "args", "kwargs")
    return [name for name in found if name not in given and not name.startswith("_")]


def strings(value: type) -> Iterator[str]:
    """The docstrings in a class, and the names of its fields with a string below."""
    for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(value)))):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            yield str(node.value.value)
        for before, after in itertools.pairwise(node.body if isinstance(node, ast.ClassDef) else ()):
            if isinstance(before, ast.AnnAssign) and isinstance(after, ast.Expr):
                yield ast.unparse(before.target)


def documentation(name: str) -> str:
    """All that is said of a function; of a class, in it; and in our classes that it is derived from."""
    value, (owner, _, key) = MEMBERS[name], name.rpartition(".")
    if inspect.isclass(value):
        return "\n".join(text for one in value.__mro__ if ours(one) for text in strings(one))
    bases = (*MEMBERS[owner].__mro__, FinetuningStrategy) if inspect.isclass(MEMBERS.get(owner)) else ()
    of_bases = [vars(one)[key] for one in bases if key in vars(one)]
    return "\n".join(inspect.getdoc(one) or "" for one in [value, *of_bases])


@pytest.mark.parametrize("name", [name for name in MEMBERS if not inherited(name)])
def test_public_names_are_documented(name: str) -> None:
    value = MEMBERS[name]
    assert (inspect.getdoc(value) or "").strip(), f"{name} has no docstring"
    documented = documentation(name)
    missing = [one for one in parameters(value) if not re.search(rf"\b{one}\b", documented)]
    assert not missing, f"the docstring of {name} does not say what {', '.join(missing)} is"


# ---- imports

PROBE = """
import importlib, json, sys
importlib.import_module(sys.argv[1])
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""


@pytest.mark.parametrize("door", DOORS)
def test_a_door_imports_what_it_needs(door: str) -> None:
    done = subprocess.run([sys.executable, "-c", PROBE, door], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    roots = set(json.loads(done.stdout.splitlines()[-1]))
    assert not (roots & set(HEAVY.split())) - set(DOORS[door].split())
    if door.startswith("flash_strategies"):
        assert "flash_launch" not in roots


BOTH_NAMES = """
import lightning.pytorch
import flash_launch.image
import flash_launch as flash
import pytorch_lightning
from flash_launch.core.finetuning import FlashBaseFinetuning
assert issubclass(flash.Trainer, lightning.pytorch.Trainer)
assert issubclass(flash_launch.image.ImageClassifier, lightning.pytorch.LightningModule)
assert issubclass(FlashBaseFinetuning, pytorch_lightning.Callback)
"""


def test_flashs_names_after_the_package_lightning() -> None:
    done = subprocess.run([sys.executable, "-c", BOTH_NAMES], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
