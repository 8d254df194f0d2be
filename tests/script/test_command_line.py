"""The command line of a script: what is whose, and what is refused before any rank runs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from flash_launch.cli import main
from flash_launch.commands.submit import _split_script
from flash_launch.errors import ConfigError
from flash_launch.run_folder import RunFolder
from flash_launch.script.command_line import leading_options, parse_script, resumed_script
from flash_launch.script.config import ScriptConfig, is_script, read_config


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a script and a package, on a machine without GPUs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    (tmp_path / "train.py").write_text("import sys\nsys.exit(0)\n")
    (tmp_path / "broken.py").write_text("x = 1\ndef f(:\n    pass\n")
    (tmp_path / "package").mkdir()
    (tmp_path / "package/__init__.py").write_text("raise AssertionError('it was imported')\n")
    (tmp_path / "package/module.py").write_text("print(1)\n")
    (tmp_path / "package/broken.py").write_text("f(\n")
    (tmp_path / "runnable").mkdir()
    (tmp_path / "runnable/__main__.py").write_text("")
    return tmp_path


def parse(*argv: str) -> ScriptConfig:
    return parse_script(*leading_options(argv))


def test_what_follows_the_script_is_the_scripts() -> None:
    config = parse("--nodes", "2", "--timeout=5", "train.py", "--nodes", "3", "-m", "a b", "--", "$HOME", "")
    assert (config.nodes, config.timeout) == (2, 5.0)
    assert (config.script, config.module) == ("train.py", "")
    assert config.arguments == ("--nodes", "3", "-m", "a b", "--", "$HOME", "")
    assert config.worker == ("--script", str(Path.cwd()), "train.py", *config.arguments)
    assert config.command == "train.py --nodes 3 -m 'a b' -- '$HOME' ''"


def test_a_module_is_found_and_not_imported() -> None:
    config = parse("--procs-per-node", "2", "-m", "package.module", "--lr", "1")
    assert (config.script, config.module, config.arguments) == ("", "package.module", ("--lr", "1"))
    assert config.worker[2:] == ("-m", "package.module", "--lr", "1")
    assert parse("-m", "runnable").module == "runnable"
    assert parse("-m", "json.tool").module == "json.tool"
    assert "package" not in sys.modules


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--nodes 2", "no script was given: flash-launch script [options] train.py"),
        ("-m", "-m has no module"),
        ("nope.py --lr 1", "there is no script nope.py in "),
        ("package", "package is a folder: give a Python file, or -m and a module"),
        ("broken.py", "broken.py has a syntax error in line 2, invalid syntax: def f(:"),
        ("-m package.nope", "-m was given package.nope, and there is no such module"),
        ("-m package.module.more", "-m was given package.module.more, and there is no such module"),
        ("-m package", "-m was given package, a package without __main__"),
        ("-m package.broken", "package.broken has a syntax error in line 1"),
        ("-m train.py/", "-m was given train.py/, which is no name of a module"),
        (
            "--max-epochs 3 train.py",
            "--max-epochs is for the training of `flash-launch run`, and a script does",
        ),
        ("--config lr.yaml train.py", "lr.yaml: lr is for the training of `flash-launch run`"),
        ("--nproc-per-node 2 train.py", "unknown option --nproc-per-node: did you mean --procs-per-node?"),
        ("--nodes two train.py", "--nodes was given two: it must be a whole number"),
        ("--nodes train.py", "--nodes was given train.py: it must be a whole number"),
        ("--resume auto train.py", "--resume auto needs --output-dir"),
        ("--accelerator cuda train.py", "no NVIDIA GPU is visible here"),
    ],
)
def test_bad_input_ends_before_any_rank_starts(
    argv: str, message: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "lr.yaml").write_text("lr: 0.1\n")
    before = sorted(here.rglob("*"))
    assert main(["script", *argv.split()]) == 2
    assert message in capsys.readouterr().err
    assert sorted(here.rglob("*")) == before


def test_the_configuration_is_kept_and_starts_the_same_again(here: Path) -> None:
    (here / "ranks.yaml").write_text("procs_per_node: 3\nslurm: {partition: gpu}\n")
    given = parse("--config", "ranks.yaml", "--wandb-tags", "a,b", "train.py", "--name", "null", "1e-3", "é: #")
    folder = RunFolder(here / "run")
    folder.path.mkdir()
    folder.config_yaml.write_text(given.to_yaml(), encoding="utf-8")
    assert is_script(folder.config_yaml)
    assert read_config(folder) == given
    assert given.procs_per_node == 3
    again = resumed_script(folder, ["--procs-per-node", "1"])
    assert again == given.replace(procs_per_node=1)
    with pytest.raises(ConfigError, match=r"unexpected argument 'other.py'"):
        resumed_script(folder, ["other.py"])
    (here / "train.py").unlink()
    with pytest.raises(ConfigError, match=r"there is no script train.py"):
        resumed_script(folder, [])


def test_a_config_yaml_that_is_broken_says_so(here: Path) -> None:
    for text, why in (("script: a\nmodule: b\n", "a script or a module"), ("script: a\nlr: 1\n", "unknown key 'lr'")):
        with pytest.raises(ConfigError, match=why):
            ScriptConfig.from_yaml(text, "config.yaml")


@pytest.mark.parametrize(
    ("argv", "options", "program"),
    [
        ("--nodes 2 script --timeout 5 train.py --nodes 3", "--nodes 2 --timeout 5", "train.py --nodes 3"),
        ("script -m package.module", "", "-m package.module"),
        ("--slurm.extra --exclusive --dry-run script a.py -h", "--slurm.extra --exclusive --dry-run", "a.py -h"),
        ("--output-dir script --nodes 2", "--output-dir script --nodes 2", None),
        ("runs/script --nodes 2", "runs/script --nodes 2", None),
    ],
)
def test_submit_takes_a_script_and_its_arguments(argv: str, options: str, program: str | None) -> None:
    assert _split_script(argv.split()) == (options.split(), program.split() if program is not None else None)


def test_submit_writes_a_job_for_a_script(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(
            [
                "submit",
                "--dry-run",
                "--output-dir",
                "run",
                "--nodes",
                "2",
                "script",
                "--procs-per-node",
                "2",
                "train.py",
                "-h",
            ]
        )
        == 0
    )
    script = capsys.readouterr().out
    assert "#SBATCH --nodes=2\n" in script
    assert f"cd -- {here} " in script
    assert not (here / "run").exists()
    assert main(["submit", "--dry-run", "--slurm.array", "lr=1,2", "script", "train.py"]) == 2
    assert "--slurm.array varies options of a run" in capsys.readouterr().err


def test_a_scripts_run_is_not_another_run(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = RunFolder(here / "run")
    folder.attempts.mkdir(parents=True)
    (folder.attempts / "0001.json").write_text("{}")
    folder.config_yaml.write_text(parse("train.py", "1").to_yaml())
    for argv, message in (
        ("script --output-dir run --resume auto train.py 2", "the script cannot change when a run goes on: it was"),
        ("run --output-dir run --resume auto", "--output-dir holds a run of train.py 1, not of the training of a run"),
        ("script --output-dir run train.py 1", "--output-dir run holds another run"),
        ("run --config run/config.yaml", "run/config.yaml is of a run of a script, not of options"),
        ("export run --to w.safetensors", "export was given run, the run of a script"),
        ("resume run --checkpoint 3", "--checkpoint is for the training of `flash-launch run`"),
        ("resume run --lr 1", "--lr is for the training of `flash-launch run`"),
    ):
        assert main(argv.split()) == 2, argv
        assert message in capsys.readouterr().err, argv
