"""RunConfig: values, contradictions, YAML there and back, and the answers to what is wrong."""

import dataclasses
from pathlib import Path

import pytest

from flash_launch.config import RunConfig
from flash_launch.errors import ConfigError, FlashLaunchError, SetupError
from flash_launch.machine import place, visible_gpus
from flash_launch.option_parser import parse_run_options
from flash_launch.options import field_docstrings, option_name


def parse(*argv: str) -> RunConfig:
    return parse_run_options(argv, "usage")


def test_every_option_has_a_help_text_and_a_default() -> None:
    names = [field.name for field in dataclasses.fields(RunConfig)]
    texts = {name: text for part in RunConfig.PARTS for name, text in field_docstrings(part).items()}
    assert sorted(texts) == sorted(names)
    assert all(texts.values())
    assert parse() == RunConfig()


def test_yaml_gives_the_same_back() -> None:
    config = RunConfig(
        strategy="unfreeze_milestones_deepspeed",
        milestones=(1, 3),
        num_layers=2,
        lr=1e-5,
        precision="bf16",
        weights="ä.pt",
        task="m:C",
        task_args={"width": 3, "names": ["a", None], "deep": {"x": 1e-7}},
    )
    assert RunConfig.from_yaml(config.to_yaml()) == config
    assert RunConfig.from_yaml("") == RunConfig()


def test_dashes_underscores_and_two_milestones() -> None:
    config = parse(
        "--procs_per_node", "2", "--batch-size=8", "--strategy", "unfreeze_milestones", "--milestones", "3", "8"
    )
    assert (config.procs_per_node, config.batch_size, config.milestones) == (2, 8, (3, 8))
    assert parse("--strategy=unfreeze_milestones", "--milestones=[1, 2]").milestones == (1, 2)
    assert parse("--train_bn", "false", "--task-args.width", "3").task_args == {"width": 3}


def test_the_command_line_wins_over_files_wherever_it_stands(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("lr: 1e-4\nprecision: 32\nbatch-size: 4\ndata_args: {root: here}\n")
    (tmp_path / "b.yaml").write_text("batch_size: 5\n")
    config = parse("--lr", "0.5", "--config", str(tmp_path / "a.yaml"), f"--config={tmp_path / 'b.yaml'}")
    assert (config.lr, config.precision, config.batch_size, config.data_args) == (0.5, "32", 5, {"root": "here"})


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--nodes 0", "--nodes was given 0: it must be 1 or more"),
        ("--nodes two", "--nodes was given two: it must be a whole number"),
        ("--nodes 1.5", "--nodes was given 1.5: it must be a whole number"),
        ("--procs-per-node 0", "--procs-per-node was given 0: it must be 1 or more"),
        ("--batch-size 0", "--batch-size was given 0: it must be 1 or more"),
        ("--max-epochs 0", "--max-epochs was given 0: it must be 1 or more"),
        ("--lr 0", "--lr was given 0.0: it must be a number above 0"),
        ("--lr -1", "--lr was given -1.0: it must be a number above 0"),
        ("--lr inf", "--lr was given inf: it must be a number"),
        ("--lr", "--lr has no value: it must be a number"),
        ("--val-fraction 1", "--val-fraction was given 1.0: it must be from 0 up to, but not including, 1"),
        ("--precision bf17", "--precision was given bf17: it must be one of 32, bf16, fp16"),
        ("--train-bn maybe", "--train-bn was given maybe: it must be true or false"),
        ("--milestones 3", "--milestones was given 3: it must be two whole numbers, for example 2 5"),
        ("--milestones 3 x", "--milestones was given 3 x: it must be two whole numbers, for example 2 5"),
        ("--strategy unfreeze_milestones --milestones 8 3", "--milestones was given 8 3: it must be two epochs"),
        ("--task-args 3", "--task-args was given 3: it must be a mapping"),
        ("--batchsize 3", "unknown option --batchsize: did you mean --batch-size?"),
        ("--procs 3", "unknown option --procs: did you mean --procs-per-node?"),
        ("--learning-rate 3", "unknown option --learning-rate: did you mean --lr?"),
        ("--epochs 3", "unknown option --epochs: did you mean --max-epochs?"),
        ("--zzz 3", "unknown option --zzz: see flash-launch --help"),
        ("-x", "unexpected argument '-x'"),
        ("stray", "unexpected argument 'stray'"),
        ("--config nowhere.yaml", "--config nowhere.yaml cannot be read: No such file"),
        ("--config", "--config has no value"),
        ("--strategy=", "--strategy was given an empty text"),
    ],
)
def test_bad_options_are_answered_in_one_sentence(argv: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(*argv.split())
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nodse: 2", "f.yaml: unknown key 'nodse': did you mean nodes?"),
        ("lr: 1\nlr: 2", "f.yaml is not valid YAML: line 2: the key 'lr' is there twice"),
        ("batch_size: 1\nbatch-size: 2", "f.yaml: the key 'batch_size' is there twice"),
        ("lr: [1", "f.yaml is not valid YAML: line 1"),
        ("- 1", "f.yaml holds [1]: it must hold lines such as"),
        ("nodes: true", "f.yaml: nodes was given True: it must be a whole number"),
        ("seed:", "f.yaml: seed has no value: it must be a whole number"),
        ("data: 3", "f.yaml: data was given 3: it must be a text"),
        ("milestones: [1, 2, 3]", "f.yaml: milestones was given [1, 2, 3]: it must be two whole numbers"),
    ],
)
def test_bad_files_are_answered_in_one_sentence(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        RunConfig.from_yaml(text, "f.yaml")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--strategy freeze --unfreeze-epoch 1", "leave it out, or give --strategy freeze_unfreeze"),
        ("--strategy freeze_unfreeze_deepspeed --milestones 1 2", "give --strategy unfreeze_milestones_deepspeed"),
        ("--num-layers 2", "belongs to --strategy unfreeze_milestones, but the strategy is no_freeze"),
        ("--layer-count flash", "belongs to --strategy unfreeze_milestones"),
    ],
)
def test_options_of_another_strategy_are_refused(argv: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(*argv.split())
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("argv", "setup"),
    [
        ("--strategy freeze", "ddp"),
        ("--strategy freeze_deepspeed", "zero2"),
        ("--strategy freeze_deepspeed --setup zero3", "zero3"),
        ("--strategy freeze --setup ddp", "ddp"),
    ],
)
def test_the_strategys_name_chooses_the_setup(argv: str, setup: str) -> None:
    config = parse(*argv.split())
    config.check()
    assert config.setup_name == setup


@pytest.mark.parametrize(
    ("argv", "kind", "message"),
    [
        ("--strategy freeze --setup zero3", ConfigError, "give --strategy freeze_deepspeed, or leave --setup out"),
        ("--strategy freeze_deepspeed --setup ddp", ConfigError, "give --strategy freeze, or --setup zero2"),
        ("--setup zero9", SetupError, "zero9"),
        ("--strategy freze", FlashLaunchError, "did you mean 'freeze'"),
        (
            "--strategy freeze_unfreeze --unfreeze-epoch 9",
            FlashLaunchError,
            "--max-epochs 8 ends with epoch 7: give --max-epochs 10 or more",
        ),
        (
            "--strategy freeze_unfreeze --max-epochs 1",
            FlashLaunchError,
            "give --max-epochs 2 or more, or --unfreeze-epoch 0",
        ),
    ],
)
def test_contradictions_are_refused_with_the_fix(argv: str, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind) as caught:
        parse(*argv.split()).check()
    assert message in str(caught.value)


def test_the_strategy_has_its_options() -> None:
    spec = parse("--strategy", "freeze_unfreeze_deepspeed", "--unfreeze-epoch", "2").strategy_spec()
    assert (spec.name, spec.deepspeed, spec.strategy.phases(4)[1].first_epoch) == ("freeze_unfreeze_deepspeed", True, 2)
    spec = parse("--strategy", "unfreeze_milestones", "--layer-count", "flash").strategy_spec()
    assert [phase.first_epoch for phase in spec.strategy.phases(6)] == [0, 2, 4]
    assert parse().strategy_spec().strategy.name == "no_freeze"


def test_ranks_are_placed_on_gpus_or_the_cpu() -> None:
    config = RunConfig(nodes=2)
    assert place(config, ()).describe() == "no cluster here: running 2 nodes x 1 rank on this machine (gloo, CPU)"
    assert place(RunConfig(), ()).describe() == "running 1 node x 1 rank on this machine (gloo, CPU)"
    four = place(config, ("0", "1", "2", "3"))
    assert (four.procs_per_node, four.accelerator, four.gpus) == (2, "cuda", ("0", "1", "2", "3"))
    assert place(RunConfig(procs_per_node=2), ("a", "b", "c")).gpus == ("a", "b")
    one = place(config, ("0",))  # must work as it stands, so not refused
    assert (one.accelerator, one.gpus) == ("cpu", ())
    assert "1 GPU cannot be shared by 2 nodes" in one.describe()


@pytest.mark.parametrize("changes", [{"accelerator": "cuda"}, {"procs_per_node": 1}, {"procs_per_node": 3}])
def test_too_few_gpus_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="--accelerator cpu"):
        place(RunConfig(nodes=2).replace(**changes), ("0",))
    with pytest.raises(ConfigError, match="no NVIDIA GPU is visible"):
        place(RunConfig(accelerator="cuda"), ())


def test_visible_gpus_are_read_from_the_environment() -> None:
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "3, GPU-ab"}) == ("3", "GPU-ab")
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "0,-1,2"}) == ("0",)
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": ""}) == ()


def test_gpus_are_counted_without_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("flash_launch.machine._NVIDIA_DRIVER", tmp_path / "gpus")
    assert visible_gpus({}) == ()
    for name in ("0000:01:00.0", "0000:02:00.0"):
        (tmp_path / "gpus" / name).mkdir(parents=True)
    assert visible_gpus({}) == ("0", "1")
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA H100 (UUID: GPU-1)'\n")
    smi.chmod(0o755)
    assert visible_gpus({}) == ("0",)


def test_option_names_are_typed_with_dashes() -> None:
    assert option_name("batch_size") == "--batch-size"
