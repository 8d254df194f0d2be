"""The registry: what may be given as strategy, what is refused as which error, and strategies of other packages."""

import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest

import flash_strategies
from flash_strategies import registry
from flash_strategies.errors import FlashLaunchError, StrategyNameError, StrategyTypeError, StrategyValueError
from flash_strategies.freeze import Freeze
from flash_strategies.freeze_unfreeze import FreezeUnfreeze
from flash_strategies.no_freeze import NoFreeze
from flash_strategies.registry import StrategySpec, parse_strategy, register_strategy, strategy_names
from flash_strategies.schedule import FinetuningStrategy
from flash_strategies.unfreeze_milestones import UnfreezeMilestones

FLASH_NAMES = (
    "no_freeze",
    "no_freeze_deepspeed",
    "freeze",
    "freeze_deepspeed",
    "freeze_unfreeze",
    "freeze_unfreeze_deepspeed",
    "unfreeze_milestones",
    "unfreeze_milestones_deepspeed",
)


@pytest.fixture
def clean_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package that brings a strategy, and entry points that are broken in each way there is."""
    (tmp_path / "flash_plugin_for_tests.py").write_text(
        "print('imported')\n"
        "from flash_strategies.freeze_unfreeze import FreezeUnfreeze\n"
        "def late(metadata):\n    return FreezeUnfreeze(metadata)\n"
        "def wrong(metadata):\n    return 'late'\n"
        "number = 3\n"
    )
    for package, points in {
        "flash-plugin": "late = flash_plugin_for_tests:late\nwrong = flash_plugin_for_tests:wrong\n"
        "number = flash_plugin_for_tests:number\ngone = no_such_module_for_tests:late\n"
        "missing = flash_plugin_for_tests:no_such\ntwin_deepspeed = flash_plugin_for_tests:late\n"
        "twice = flash_plugin_for_tests:late\nfreeze = flash_plugin_for_tests:late\n",
        "other-plugin": "twice = flash_plugin_for_tests:wrong\n",
    }.items():
        info = tmp_path / f"{package.replace('-', '_')}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[flash_strategies]\n{points}")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "flash_plugin_for_tests", raising=False)
    return tmp_path


@pytest.mark.parametrize(
    ("spec", "strategy"),
    [
        ("no_freeze", NoFreeze()),
        ("freeze", Freeze()),
        (("freeze", None), Freeze()),
        (("freeze_unfreeze", 7), FreezeUnfreeze(7)),
        (("freeze_unfreeze", 0), FreezeUnfreeze(0)),
        (("unfreeze_milestones", ((3, 8), 2)), UnfreezeMilestones((3, 8), 2)),
        (("unfreeze_milestones", ((3, 8), Fraction(1, 3))), UnfreezeMilestones((3, 8), Fraction(1, 3))),
    ],
)
def test_names_and_pairs_with_and_without_deepspeed(spec: str | tuple[str, object], strategy: object) -> None:
    name = spec if isinstance(spec, str) else spec[0]
    assert parse_strategy(spec) == StrategySpec(name, strategy, deepspeed=False)  # type: ignore[arg-type]
    twin = f"{name}_deepspeed" if isinstance(spec, str) else (f"{name}_deepspeed", spec[1])
    assert parse_strategy(twin) == StrategySpec(f"{name}_deepspeed", strategy, deepspeed=True)  # type: ignore[arg-type]


def test_objects_and_specs() -> None:
    spec = parse_strategy(UnfreezeMilestones())
    assert spec == StrategySpec("unfreeze_milestones", UnfreezeMilestones(), deepspeed=False)
    assert parse_strategy(spec) is spec


def test_flash_names_come_first() -> None:
    assert strategy_names()[:8] == FLASH_NAMES


@pytest.mark.parametrize(
    ("given", "nearest"),
    [
        ("freze", "freeze"),
        ("Freeze", "freeze"),
        ("freeze_unfreez_deepspeed", "freeze_unfreeze_deepspeed"),
        ("milestones", "unfreeze_milestones"),
        ("chocolat", None),
        ("", None),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest_and_all(given: str, nearest: str | None) -> None:
    with pytest.raises(StrategyNameError) as string:
        parse_strategy(given)
    assert isinstance(string.value, ValueError)
    with pytest.raises(StrategyTypeError) as pair:
        parse_strategy((given, 7))
    for message in (str(string.value), str(pair.value)):
        assert repr(given) in message
        assert ("did you mean" in message) == (nearest is not None)
        assert nearest is None or f"did you mean {nearest!r}?" in message
        assert all(name in message for name in FLASH_NAMES)


@pytest.mark.parametrize(
    "spec",
    [
        None,
        7,
        (),
        ("freeze",),
        ("freeze_unfreeze", 7, 8),
        (7, "freeze_unfreeze"),
        (None, 7),
        (NoFreeze(), 7),
        NoFreeze,
        object(),
        # metadata that are missing, of the wrong type or of the wrong shape
        "freeze_unfreeze",
        "freeze_unfreeze_deepspeed",
        "unfreeze_milestones",
        ("freeze_unfreeze", None),
        ("freeze_unfreeze", "7"),
        ("freeze_unfreeze", 7.0),
        ("freeze_unfreeze", True),
        ("freeze_unfreeze", (7,)),
        ("unfreeze_milestones", None),
        ("unfreeze_milestones", 3),
        ("unfreeze_milestones", (3, 8)),
        ("unfreeze_milestones", (3, 8, 2)),
        ("unfreeze_milestones", ((3, 8),)),
        ("unfreeze_milestones", ([3, 8], 2)),
        ("unfreeze_milestones", [(3, 8), 2]),
        ("unfreeze_milestones", ((3, 8, 12), 2)),
        ("unfreeze_milestones", ((3,), 2)),
        ("unfreeze_milestones", ((3, "8"), 2)),
        ("unfreeze_milestones", ((3, True), 2)),
        ("unfreeze_milestones", ((3, 8), "2")),
        ("unfreeze_milestones", ((3, 8), None)),
        ("unfreeze_milestones", (None, 2)),
        ("freeze", 7),
        ("no_freeze_deepspeed", 0),
    ],
    ids=repr,
)
def test_the_wrong_type_or_shape_is_a_type_error(spec: object) -> None:
    with pytest.raises(StrategyTypeError) as caught:
        parse_strategy(spec)
    assert isinstance(caught.value, TypeError)
    assert isinstance(caught.value, FlashLaunchError)


@pytest.mark.parametrize(
    "spec",
    [
        ("freeze_unfreeze", -1),
        ("unfreeze_milestones", ((5, 5), 2)),
        ("unfreeze_milestones", ((8, 3), 2)),
        ("unfreeze_milestones", ((-3, 8), 2)),
        ("unfreeze_milestones_deepspeed", ((3, 8), 0)),
    ],
    ids=repr,
)
def test_values_without_sense_are_a_value_error(spec: object) -> None:
    with pytest.raises(StrategyValueError):
        parse_strategy(spec)


def test_missing_metadata_are_answered_with_an_example() -> None:
    with pytest.raises(StrategyTypeError, match=r"given None: write strategy=\('freeze_unfreeze', 7\)"):
        parse_strategy("freeze_unfreeze")
    with pytest.raises(StrategyTypeError, match=r"write strategy=\('unfreeze_milestones', \(\(3, 8\), 2\)\)"):
        parse_strategy("unfreeze_milestones")


@pytest.mark.usefixtures("clean_registry")
def test_a_registered_strategy_brings_its_twin() -> None:
    def late(metadata: object) -> FinetuningStrategy:
        return FreezeUnfreeze(5 if metadata is None else 6)

    register_strategy("late", late)
    register_strategy("late", late)
    assert strategy_names()[8:10] == ("late", "late_deepspeed")
    assert parse_strategy("late") == StrategySpec("late", FreezeUnfreeze(5), deepspeed=False)
    assert parse_strategy(("late_deepspeed", 1)) == StrategySpec("late_deepspeed", FreezeUnfreeze(6), deepspeed=True)
    with pytest.raises(StrategyValueError, match="taken"):
        register_strategy("late", FreezeUnfreeze.from_metadata)


@pytest.mark.usefixtures("clean_registry")
@pytest.mark.parametrize(
    ("name", "factory", "error", "said"),
    [
        ("freeze", FreezeUnfreeze.from_metadata, StrategyValueError, "'freeze' is taken"),
        ("late_deepspeed", FreezeUnfreeze.from_metadata, StrategyValueError, "register 'late'"),
        ("my strategy", FreezeUnfreeze.from_metadata, StrategyValueError, "letters, digits and underscores"),
        ("", FreezeUnfreeze.from_metadata, StrategyValueError, "letters, digits and underscores"),
        (3, FreezeUnfreeze.from_metadata, StrategyTypeError, "is a string"),
        ("late", 3, StrategyTypeError, "must be called with the metadata"),
    ],
)
def test_a_registration_that_cannot_work_is_refused(
    name: str, factory: object, error: type[Exception], said: str
) -> None:
    before = strategy_names()
    with pytest.raises(error, match=said):
        register_strategy(name, factory)  # type: ignore[arg-type]
    assert strategy_names() == before


def test_an_entry_point_is_loaded_when_it_is_asked_for(plugin: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = strategy_names()
    assert names[:8] == FLASH_NAMES
    assert {"late", "late_deepspeed", "gone", "gone_deepspeed"} <= set(names)
    assert parse_strategy("freeze") == StrategySpec(
        "freeze", Freeze(), deepspeed=False
    )  # Flash's own, not the plugin's
    assert capsys.readouterr().out == ""
    assert parse_strategy(("late_deepspeed", 4)) == StrategySpec("late_deepspeed", FreezeUnfreeze(4), deepspeed=True)
    assert capsys.readouterr().out == "imported\n"


@pytest.mark.parametrize(
    ("name", "error", "said"),
    [
        ("gone", StrategyNameError, "'gone' could not be imported.*of the package flash-plugin: ModuleNotFoundError"),
        ("gone_deepspeed", StrategyNameError, "'gone' could not be imported"),
        ("missing", StrategyNameError, "AttributeError"),
        ("number", StrategyTypeError, "must name a function"),
        ("wrong", StrategyTypeError, "factory gave is 'late'"),
        ("twice", StrategyNameError, "more than one package.*flash-plugin and .*other-plugin"),
        ("twin_deepspeed", StrategyValueError, "register 'twin'"),
        ("latte", StrategyNameError, "did you mean 'late'"),
    ],
)
def test_a_broken_entry_point_is_told_when_it_is_asked_for(
    plugin: Path, name: str, error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        parse_strategy(name)


def test_schedules_and_errors_import_no_torch() -> None:
    code = (
        "import sys, flash_strategies, flash_launch.errors\n"
        "from flash_strategies import parse_strategy, validated_phases, FreezeUnfreeze\n"
        "from flash_strategies.errors import ProofError\n"
        "validated_phases(parse_strategy(('unfreeze_milestones_deepspeed', ((3, 8), 2))).strategy, 10)\n"
        "dir(flash_strategies)\n"
        "print([m for m in ('torch', 'pytorch_lightning', 'deepspeed', 'numpy') if m in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_public_face_is_flat_and_complete() -> None:
    assert [*flash_strategies.__all__] == sorted(flash_strategies.__all__)
    assert sorted(name for names in flash_strategies._HOMES.values() for name in names) == flash_strategies.__all__
    for home, names in flash_strategies._HOMES.items():
        for name in names:
            assert getattr(flash_strategies, name).__module__ == f"flash_strategies.{home}"
    assert set(flash_strategies.__all__) <= set(dir(flash_strategies))
    with pytest.raises(AttributeError, match="no attribute 'Frieze'"):
        flash_strategies.Frieze  # type: ignore[attr-defined]  # noqa: B018
