"""The code holds to ARCHITECTURE.md: who may import whom, no circles, a line per file, no import with side effects."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {"flash_launch": ROOT / "launcher/flash_launch", "flash_strategies": ROOT / "strategies/flash_strategies"}
HEAVY = {"torch", "torchvision", "deepspeed", "pytorch_lightning", "accelerate", "torchmetrics", "wandb", "sklearn"}
LIGHT_LAUNCHER = (
    *("cli", "__main__", "config", "options", "option_parser", "machine", "preparation", "run_folder", "setups"),
    *("contradictions", "setup_keys", "verdict", "rank_guard", "errors", "executors", "cluster", "commands", "doctor"),
    *("job", "launching", "submission", "sweep", "console", "class_paths", "trainer_options"),
)
LIGHT_STRATEGIES = (
    *("errors", "schedule", "rate", "registry", "no_freeze", "freeze", "freeze_unfreeze", "unfreeze_milestones"),
    "run_session",
)


def modules() -> dict[str, Path]:
    found = {}
    for package, folder in PACKAGES.items():
        for path in folder.rglob("*.py"):
            parts = path.relative_to(folder).with_suffix("").parts
            name = ".".join((package, *(part for part in parts if part != "__init__")))
            found[name] = path
    return found


MODULES = modules()


def imports(path: Path, *, at_import: bool) -> Iterator[str]:
    """Modules that a file imports; with `at_import`, only those imported when it is (not in functions or for types)."""

    def visit(node: ast.AST) -> Iterator[str]:
        for child in ast.iter_child_nodes(node):
            if at_import and isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
                continue
            if at_import and isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            if isinstance(child, ast.Import):
                yield from (alias.name for alias in child.names)
            elif isinstance(child, ast.ImportFrom) and child.module and not child.level:
                for alias in child.names:
                    full = f"{child.module}.{alias.name}"
                    yield full if full in MODULES else child.module
            else:
                yield from visit(child)

    yield from visit(ast.parse(path.read_text(encoding="utf-8")))


def of(package: str, names: tuple[str, ...]) -> list[str]:
    return [m for m in MODULES if any(m == f"{package}.{n}" or m.startswith(f"{package}.{n}.") for n in names)]


def reached(module: str) -> set[str]:
    """Everything that importing a module imports, of ours and of others."""
    seen: set[str] = set()
    queue = [module]
    while queue:
        name = queue.pop()
        if name in seen:
            continue
        seen.add(name)
        if name in MODULES:
            parts = name.split(".")
            queue += [".".join(parts[:end]) for end in range(1, len(parts))]
            queue += imports(MODULES[name], at_import=True)
    return seen


def test_strategies_import_nothing_of_the_launcher() -> None:
    for name, path in MODULES.items():
        if name.startswith("flash_strategies"):
            assert not [found for found in imports(path, at_import=False) if found.startswith("flash_launch")], name


@pytest.mark.parametrize("name", of("flash_launch", LIGHT_LAUNCHER) + of("flash_strategies", LIGHT_STRATEGIES))
def test_light_modules_import_nothing_heavy(name: str) -> None:
    heavy = {found for found in reached(name) if found.split(".")[0] in HEAVY}
    assert not heavy


def test_lightnings_two_names_are_one_before_users_code_is_loaded() -> None:
    """The one import of ours with a side effect comes with what imports a user's classes, and with our callbacks."""
    assert "flash_strategies.lightning.one_lightning" in reached("flash_launch.tasks.own")
    assert next(imports(MODULES["flash_launch.image"], at_import=True)) == "flash_strategies.lightning"
    first = next(imports(MODULES["flash_strategies.lightning"], at_import=True))
    assert first == "flash_strategies.lightning.one_lightning"


def test_schedules_are_pure() -> None:
    for name in of("flash_strategies", LIGHT_STRATEGIES):
        heavy = {found.split(".")[0] for found in imports(MODULES[name], at_import=False)} & HEAVY
        assert not heavy, name


def test_no_circles() -> None:
    graph = {name: {i for i in imports(path, at_import=True) if i in MODULES} for name, path in MODULES.items()}
    done: set[str] = set()

    def walk(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " -> ".join((*above, name))
        if name not in done:
            for found in graph[name] - {name}:  # rank_guard runs as __main__ and imports itself by name
                walk(found, (*above, name))
            done.add(name)

    for name in graph:
        walk(name, ())


def test_engines_do_not_know_the_front_doors() -> None:
    doors = ("flash_strategies.lightning", "flash_strategies.plain", "flash_strategies.accelerate")
    for name in of("flash_strategies", ("engines", "transition", "plan", "agreement", "digest", "selection", "phases")):
        assert not [found for found in imports(MODULES[name], at_import=False) if found.startswith(doors)], name


@pytest.mark.parametrize(
    ("library", "file"),
    [
        ("deepspeed", "flash_strategies.deepspeed_private"),
        ("pytorch_lightning", "flash_strategies.lightning.private"),
        ("accelerate", "flash_strategies.accelerate.private"),
    ],
)
def test_private_parts_are_reached_from_one_file(library: str, file: str) -> None:
    """Only one file imports from below the library's public face."""
    public = {
        "accelerate": {"accelerate"},
        "deepspeed": {"deepspeed", "deepspeed.ops.adam", "deepspeed.zero"},
        "pytorch_lightning": {
            "pytorch_lightning",
            "pytorch_lightning.callbacks",
            "pytorch_lightning.callbacks.progress.tqdm_progress",
            "pytorch_lightning.core.optimizer",
            "pytorch_lightning.loggers",
            "pytorch_lightning.strategies",
            "pytorch_lightning.utilities",
            "pytorch_lightning.utilities.model_helpers",
            "pytorch_lightning.utilities.types",
        },
    }[library]
    for name, path in MODULES.items():
        used = {found for found in imports(path, at_import=False) if found.split(".")[0] == library}
        assert name == file or used <= public, (name, used - public)


@pytest.mark.parametrize("name", MODULES)
def test_every_file_says_what_it_is(name: str) -> None:
    docstring = ast.get_docstring(ast.parse(MODULES[name].read_text(encoding="utf-8")))
    assert docstring
    assert len(docstring.splitlines()[0]) <= 120


def test_architecture_has_a_line_per_file() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    told = set(re.findall(r"`([\w/.]+\.py)`", text))
    have = {str(path.relative_to(ROOT)) for path in MODULES.values() if path.name != "__init__.py"}
    assert have - told == set()
    assert {name for name in told if name.startswith(("launcher/", "strategies/"))} - have == set()


def test_no_utils() -> None:
    flashs = PACKAGES["flash_launch"] / "core/data/utils.py"  # a path of Flash's
    names = ("utils", "helpers", "common", "misc")
    assert not [path for path in MODULES.values() if path.stem in names and path != flashs]
