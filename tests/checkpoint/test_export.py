"""Exported checkpoints: what other tools load, under which names, in how much memory, and what is refused."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

import numpy
import pytest
import pytorch_lightning as pl
import torch
import torchvision
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from flash_launch.checkpoint.attempts import begin
from flash_launch.checkpoint.manifest import Manifest, Part, Position, record, write
from flash_launch.checkpoint.rank_state import RankState, file_name
from flash_launch.checkpoint.rank_state import load_file as load_rank
from flash_launch.checkpoint.shards import read_headers
from flash_launch.checkpoint.tensor_files import write_safetensors
from flash_launch.cli import main
from flash_launch.config import RunConfig
from flash_launch.run_folder import RunFolder
from flash_launch.tasks.image import ImageClassifier
from flash_strategies.checkpoint.chunks import Slice, write_chunks
from flash_strategies.errors import CheckpointError

pytestmark = pytest.mark.timeout(300)

NET = '''
import pytorch_lightning as pl
import torch
from torch import nn


class Net(pl.LightningModule):
    """Shares a weight, and has a parameter without dimensions and buffers of all kinds."""

    def __init__(self, width: int = 6, words: int = 10) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.rates = [float(rate) for rate in torch.linspace(0, 1, 3)]
        self.embedding = nn.Embedding(words, width, padding_idx=0)
        self.backbone = nn.Sequential(nn.Linear(width, width), nn.BatchNorm1d(width))
        self.scale = nn.Parameter(torch.tensor(0.5))
        self.out = nn.Linear(width, words, bias=False)
        self.out.weight = self.embedding.weight
        self.register_buffer("mask", torch.zeros(words, dtype=torch.bool))
        self.register_buffer("nothing", torch.zeros(0, 3))
        self.register_buffer("scratch", torch.zeros(5), persistent=False)

    def on_load_checkpoint(self, checkpoint):
        self.words_seen = checkpoint["words_seen"]


class Looks(Net):
    def __init__(self) -> None:
        super().__init__()
        self.largest = float(self.out.weight.max())


class Big(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.big = nn.Linear(8192, 4096)
        self.top = nn.Linear(4096, 2)
'''


def export(*argv: object) -> int:
    return main(["export", *map(str, argv)])


# ---- a run of the command


@dataclass(frozen=True)
class Run:
    path: Path

    @property
    def weights(self) -> dict[str, Tensor]:
        return load_file(self.path / "model.safetensors")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """resnet18 on ZeRO-3 and two ranks: one epoch for the head, one for all, a checkpoint after each step."""
    folder = tmp_path_factory.mktemp("run")
    generator = numpy.random.default_rng(0)
    for split, count in (("train", 16), ("val", 2)):
        for name in "ab":
            (folder / "images" / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = generator.integers(0, 255, (32, 32, 3), dtype=numpy.uint8)
                Image.fromarray(pixels).save(folder / "images" / split / name / f"{index}.png")
    argv = [
        *("--nodes", "2", "--setup", "zero3", "--strategy", "freeze_unfreeze_deepspeed", "--unfreeze-epoch", "1"),
        *("--backbone", "resnet18", "--weights", "none", "--data", "images", "--image-size", "32"),
        *("--max-epochs", "2", "--limit-train-batches", "2", "--batch-size", "4"),
        *("--checkpoint-every", "1 steps", "--keep-last", "10", "--output-dir", "run"),
    ]
    done = subprocess.run(
        [sys.executable, "-m", "flash_launch", *argv],
        cwd=folder,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return Run(folder / "run")


def test_it_loads_into_torchvisions_model_bit_for_bit(
    run: Run, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "model.safetensors"
    assert export(run.path, "--to", target) == 0
    out, err = capfd.readouterr()
    assert err == ""
    assert "it loads into torchvision.models.get_model('resnet18', num_classes=2)" in out
    assert f"wrote {target}: 122 tensors" in out
    assert "step_4" in out
    state = load_file(target)
    torchvision.models.get_model("resnet18", num_classes=2).load_state_dict(state, strict=True)
    own = {f"head.{k[3:]}" if k.startswith("fc.") else f"backbone.{k}": value for k, value in state.items()}
    assert own.keys() == run.weights.keys()
    for name, value in run.weights.items():
        assert (own[name].dtype, own[name].shape) == (value.dtype, value.shape)
        assert torch.equal(own[name], value), name
    with safe_open(target, "pt") as file:
        assert file.metadata() == {"format": "pt", "checkpoint": "step_4", "step": "4", "epoch": "2"}
    assert os.listdir(tmp_path) == ["model.safetensors"]


def test_a_checkpoint_of_the_head_holds_the_frozen_part_too(run: Run, tmp_path: Path) -> None:
    target = tmp_path / "early.safetensors"
    assert export(run.path, "--checkpoint", "1", "--to", target) == 0
    state = load_file(target)
    torchvision.models.get_model("resnet18", num_classes=2).load_state_dict(state, strict=True)
    start = ImageClassifier("resnet18", 2, "none", image_size=32, seed=0)
    assert torch.equal(state["layer4.1.conv2.weight"], start.state_dict()["backbone.layer4.1.conv2.weight"])
    assert not torch.equal(state["fc.weight"], start.head.weight)
    # in the middle of an epoch, each rank has statistics of its own
    ranks = [load_rank(run.path / "checkpoints/step_1", rank).buffers["backbone.bn1.running_mean"] for rank in (0, 1)]
    assert not torch.equal(*ranks)
    assert torch.equal(state["bn1.running_mean"], torch.stack(ranks).double().mean(dim=0).float())


def test_a_lightning_checkpoint_is_one(run: Run, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "model.ckpt"
    assert export(run.path, "--format", "lightning", "--to", target) == 0
    assert "no optimizer state" in capfd.readouterr().out
    checkpoint = torch.load(target, weights_only=True)
    assert (checkpoint["epoch"], checkpoint["global_step"]) == (2, 4)
    assert checkpoint["pytorch-lightning_version"] == pl.__version__
    assert checkpoint["state_dict"].keys() == run.weights.keys()
    task = ImageClassifier.load_from_checkpoint(target, weights_only=True)
    assert (task.backbone_name, task.num_classes) == ("resnet18", 2)
    assert all(torch.equal(value, run.weights[name]) for name, value in task.state_dict().items())
    mapped = torch.load(target, weights_only=True, mmap=True)["state_dict"]
    assert all(value.data_ptr() % 64 == 0 for value in mapped.values())
    assert zipfile.ZipFile(target).testzip() is None


def test_types_can_be_chosen(run: Run, tmp_path: Path) -> None:
    target = tmp_path / "half.safetensors"
    assert export(run.path, "--dtype=bfloat16", f"--to={target}") == 0
    state = load_file(target)
    assert {value.dtype for value in state.values()} == {torch.bfloat16, torch.int64}
    assert torch.equal(state["conv1.weight"], run.weights["backbone.conv1.weight"].bfloat16())


def test_a_file_that_is_there_is_replaced_only_if_asked(
    run: Run, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "model.safetensors"
    target.write_bytes(b"mine")
    assert export(run.path, "--to", target) == 2
    assert "exists: give another file, or --overwrite" in capfd.readouterr().err
    assert target.read_bytes() == b"mine"
    assert export(run.path, "--to", target, "--overwrite") == 0
    assert len(load_file(target)) == 122


def test_a_damaged_checkpoint_is_passed_over_and_never_exported(
    run: Run, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run.path, copy)
    shard = copy / "checkpoints/step_4/shard-00002-model-00001-of-00001.safetensors"
    with shard.open("r+b") as file:
        file.seek(-5, os.SEEK_END)
        file.write(b"x")
    assert export(copy, "--to", tmp_path / "a.safetensors") == 0
    out = capfd.readouterr().out
    assert f"checkpoint step_4 is passed over: {shard} is damaged" in out
    assert "of step_3" in out
    assert export(copy, "--checkpoint", "4", "--to", tmp_path / "b.safetensors") == 2
    assert "is damaged" in capfd.readouterr().err
    assert sorted(os.listdir(tmp_path)) == ["a.safetensors", "run"]


# ---- checkpoints made by hand


def written(folder: Path, of_ranks: list[list[Slice]]) -> None:
    """Shards as that many ranks write them."""
    folder.mkdir(parents=True)
    for rank, slices in enumerate(of_ranks):
        write_chunks(folder / "one", slices)
        (shard,) = (folder / "one").glob("*.safetensors")
        shard.rename(folder / shard.name.replace("shard-00001", f"shard-{rank + 1:05}"))
    shutil.rmtree(folder / "one")


def cut(tensors: Mapping[str, Tensor], ranks: int) -> list[list[Slice]]:
    """Slices of tensors; small ones lie on the last rank only."""
    of_ranks: list[list[Slice]] = [[] for _ in range(ranks)]
    for key, tensor in tensors.items():
        flat, each = tensor.reshape(-1), tensor.numel() // ranks
        for rank, slices in enumerate(of_ranks):
            end = flat.numel() if rank == ranks - 1 else (rank + 1) * each
            if rank * each < end:
                slices.append(Slice(key, rank * each, flat[rank * each : end], flat.numel()))
    return of_ranks


def by_hand(
    path: Path,
    task: str,
    own: Mapping[str, Tensor],
    frozen: Mapping[str, Tensor] | None = None,
    *,
    buffers: tuple[Mapping[str, Tensor], ...] = ({}, {}),
    ranks: int = 2,
) -> Path:
    """A run of a task with a checkpoint step_7 of these tensors, some in a part, and of buffers that differ."""
    folder = RunFolder(path)
    folder.path.mkdir()
    folder.config_yaml.write_text(RunConfig(task=task, data="digits").to_yaml())
    attempt = begin(folder.attempts)
    files = {}
    at, part = folder.checkpoints / "step_7", folder.checkpoints / "frozen/step_2_attempt_1"
    written(at, cut(own, ranks))
    if frozen:
        written(part, cut(frozen, ranks))
        files = {shard.name: record(shard) for shard in part.iterdir()}
        write(part, Part(part.name, attempt.run, dict.fromkeys(frozen, ""), files))
    for rank, differing in enumerate(buffers):
        values: dict[str, object] = {one.name: [] if "list" in str(one.type) else {} for one in fields(RankState)}
        values |= {"hooks": {"words_seen": torch.arange(3), "epoch": 1}, "buffers": dict(differing)}
        torch.save(values, at / file_name(rank))
    write(
        at,
        Manifest(
            *(at.name, attempt.run, 1, Position(7, 1, 3, 96), 0.0, "frozen", "", (), len(buffers), "zero2", 8, 1, {}),
            tuple(key for key in own if key.startswith("buffer/")),
            {part.name: list(frozen)} if frozen else {},
            {one.name: record(one) for one in at.iterdir()},
        ),
    )
    return path


@pytest.fixture
def net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pl.LightningModule:
    """The current folder has a task in exported_net.py; one with random values."""
    (tmp_path / "exported_net.py").write_text(NET)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "exported_net", raising=False)
    from exported_net import Net  # type: ignore[import-not-found]

    task = Net()
    with torch.no_grad():
        for parameter in task.parameters():
            parameter.normal_()
    task.mask[3] = True
    task.backbone[1].num_batches_tracked.fill_(7)
    return task  # type: ignore[no-any-return]


def parts_of(net: pl.LightningModule) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What trains and buffers; what is frozen."""
    frozen = {f"weight/{name}": p.detach() for name, p in net.named_parameters() if name.startswith("backbone.")}
    own = {f"weight/{name}": p.detach() for name, p in net.named_parameters() if f"weight/{name}" not in frozen}
    own |= {f"exp_avg/{name}": torch.zeros(p.numel()) for name, p in net.named_parameters()}
    state = net.state_dict()
    own |= {f"buffer/{name}": b for name, b in net.named_buffers() if name in state and b.numel()}
    return own, frozen


def test_ones_own_task_is_exported_under_all_its_names(net: pl.LightningModule, tmp_path: Path) -> None:
    run = by_hand(tmp_path / "run", "exported_net:Net", *parts_of(net), ranks=3)
    assert export(run, "--to", "net.safetensors") == 0
    state = load_file("net.safetensors")
    assert state.keys() == net.state_dict().keys()
    assert "out.weight" in state
    for name, value in net.state_dict().items():
        assert (state[name].dtype, state[name].shape) == (value.dtype, value.shape)
        assert torch.equal(state[name], value), name


def test_ones_own_task_loads_from_a_lightning_checkpoint(net: pl.LightningModule, tmp_path: Path) -> None:
    run = by_hand(tmp_path / "run", "exported_net:Net", *parts_of(net))
    assert export(run, "--format", "lightning", "--to", "net.ckpt") == 0
    again = type(net).load_from_checkpoint("net.ckpt", weights_only=True)
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in again.state_dict().items())
    assert torch.equal(again.words_seen, torch.arange(3))  # what on_save_checkpoint put in
    checkpoint = torch.load("net.ckpt", weights_only=True)
    assert checkpoint["hyper_parameters"] == {"width": 6, "words": 10}
    state = checkpoint["state_dict"]
    assert state["out.weight"].data_ptr() == state["embedding.weight"].data_ptr()


def test_a_task_that_looks_at_its_weights_can_be_exported(net: pl.LightningModule, tmp_path: Path) -> None:
    run = by_hand(tmp_path / "run", "exported_net:Looks", *parts_of(net))
    assert export(run, "--to", "net.safetensors") == 0
    assert torch.equal(load_file("net.safetensors")["out.weight"], net.out.weight)  # type: ignore[union-attr,arg-type]


def test_buffers_that_differ_are_averaged(net: pl.LightningModule, tmp_path: Path) -> None:
    own, frozen = parts_of(net)
    mean, count = own.pop("buffer/backbone.1.running_mean"), own.pop("buffer/backbone.1.num_batches_tracked")
    names = ("backbone.1.running_mean", "backbone.1.num_batches_tracked")
    buffers = tuple(dict(zip(names, (mean + rank, count + rank), strict=True)) for rank in range(3))
    run = by_hand(tmp_path / "run", "exported_net:Net", own, frozen, buffers=buffers)
    assert export(run, "--to", "net.safetensors") == 0
    state = load_file("net.safetensors")
    assert torch.equal(state[names[0]], mean + 1)
    assert torch.equal(state[names[1]], count + 2)


def test_types_are_never_narrower_than_they_were(
    net: pl.LightningModule, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    own, frozen = parts_of(net)
    frozen = {key: value.bfloat16() for key, value in frozen.items()}
    own["weight/scale"] = torch.tensor(1e5, dtype=torch.float64)
    run = by_hand(tmp_path / "run", "exported_net:Net", own, frozen)
    assert export(run, "--to", "net.safetensors") == 0
    state = load_file("net.safetensors")
    assert (state["scale"].dtype, state["scale"].item()) == (torch.float64, 1e5)
    assert torch.equal(state["backbone.0.weight"], frozen["weight/backbone.0.weight"].float())
    before = sorted(os.listdir(tmp_path))
    assert export(run, "--dtype", "float16", "--to", "half.safetensors") == 2
    assert "--dtype float16 cannot hold scale, whose largest value is 1e+05" in capfd.readouterr().err
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"weight/more": torch.zeros(2)}, "the checkpoint has weight/more, which Net does not have"),
        ({"weight/scale": torch.zeros(2)}, "weight/scale has 2 elements in the checkpoint, and in Net the shape ()"),
        ({"weight/scale": None}, "weight/scale has 0 elements in the checkpoint"),
        ({"buffer/mask": None}, "buffer/mask has 0 elements in the checkpoint"),
    ],
)
def test_another_task_is_refused(
    net: pl.LightningModule,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    change: dict[str, Tensor | None],
    told: str,
) -> None:
    own, frozen = parts_of(net)
    own = {key: value for key, value in {**own, **change}.items() if value is not None}
    run = by_hand(tmp_path / "run", "exported_net:Net", own, frozen)
    before = sorted(os.listdir(tmp_path))
    assert export(run, "--to", "net.safetensors") == 2
    assert told in capfd.readouterr().err
    assert sorted(os.listdir(tmp_path)) == before


def test_a_checkpoint_that_the_run_deletes_meanwhile_leaves_nothing(
    net: pl.LightningModule, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = by_hand(tmp_path / "run", "exported_net:Net", *parts_of(net))
    before = sorted(os.listdir(tmp_path))

    def delete_first(*arguments: object, **named: object) -> None:
        shutil.rmtree(run / "checkpoints/step_7", ignore_errors=True)
        write_safetensors(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr("flash_launch.checkpoint.export.write_safetensors", delete_first)
    assert export(run, "--to", "net.safetensors") == 2
    assert "the run deleted or replaced step_7 meanwhile: export again" in capfd.readouterr().err
    assert sorted(os.listdir(tmp_path)) == before


def test_a_full_disk_is_told_and_leaves_nothing(
    net: pl.LightningModule, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = by_hand(tmp_path / "run", "exported_net:Net", *parts_of(net))
    before = sorted(os.listdir(tmp_path))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, limits[1]))
    try:
        assert export(run, "--to", "net.safetensors") == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "net.safetensors cannot be written: File too large" in capfd.readouterr().err
    assert sorted(os.listdir(tmp_path)) == before


def test_holes_are_found(tmp_path: Path) -> None:
    first, _, third = cut({"weight/a": torch.arange(9.0)}, 3)
    written(tmp_path / "holes", [first, third])
    with pytest.raises(CheckpointError, match="weight/a has a hole from element 3 to 6"):
        read_headers((tmp_path / "holes").iterdir())


MEASURED = """
import re, sys
from flash_launch.checkpoint import export  # what is imported is not counted
from flash_launch.cli import main
def peak(): return 1024 * int(re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[1])
before = peak()
assert main(sys.argv[1:]) == 0
print(peak() - before)
"""


@pytest.mark.parametrize("kind", ["safetensors", "lightning"])
def test_memory_does_not_grow_with_the_tensors(net: pl.LightningModule, tmp_path: Path, kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    big = torch.randn(4096, 8192, generator=generator)
    own = {"weight/big.weight": big, "weight/big.bias": torch.zeros(4096)}
    own |= {"weight/top.weight": torch.zeros(2, 4096), "weight/top.bias": torch.zeros(2)}
    run = by_hand(tmp_path / "run", "exported_net:Big", own)
    target = f"big.{'ckpt' if kind == 'lightning' else 'safetensors'}"
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, "export", str(run), "--to", target, "--format", kind],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert big.nbytes == 2**27
    assert int(done.stdout.splitlines()[-1]) < 2**26
    state = torch.load(target, weights_only=True)["state_dict"] if kind == "lightning" else load_file(target)
    assert torch.equal(state["big.weight"], big)


# ---- wrong inputs


@pytest.fixture
def empty_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a run that has saved nothing."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    (tmp_path / "run/config.yaml").write_text(RunConfig().to_yaml())
    begin(tmp_path / "run/attempts")
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--to", "a.safetensors"], "export was given 0 run folders: it takes one"),
        (["run", "other", "--to", "a.safetensors"], "export was given 2 run folders: run, other"),
        (["nowhere", "--to", "a.safetensors"], "export was given nowhere, which is no run folder"),
        (["run"], "export needs --to: give a file"),
        (["run", "--to"], "--to has no value"),
        (["run", "--to="], "--to has no value"),
        (["run", "--out", "a.safetensors"], "export has no option --out"),
        (["run", "--chekpoint", "3"], "did you mean --checkpoint?"),
        (["run", "--to", "a.pt"], "must end with .safetensors"),
        (["run", "--to", "a.ckpt"], "give a.safetensors, or --format lightning"),
        (["run", "--to", "a.safetensors", "--format", "universal"], "must be one of safetensors, lightning"),
        (["run", "--to", "a.safetensors", "--dtype", "int8"], "must be one of float32, bfloat16, float16"),
        (["run", "--to", "a.safetensors", "--checkpoint", "last"], "--checkpoint was given last"),
        (["run", "--to", "a.safetensors", "--checkpoint", "3"], "has no checkpoint 'step_3'; it has none"),
        (["run", "--to", "no/a.safetensors"], "there is no folder"),
        (["run", "--to", "run/checkpoints/a.safetensors"], "among the run's own checkpoints"),
        (["run", "--to", "a.safetensors"], "run has no checkpoint to export: none was saved yet"),
    ],
)
def test_wrong_inputs_give_2_and_write_nothing(
    empty_run: Path, capfd: pytest.CaptureFixture[str], argv: list[str], told: str
) -> None:
    before = sorted(empty_run.parent.rglob("*"))
    assert export(*argv) == 2
    err = capfd.readouterr().err
    assert told in err
    assert err.startswith("flash-launch: error: ")
    assert sorted(empty_run.parent.rglob("*")) == before


def test_a_run_without_checkpoints_is_told_where_its_weights_are(
    empty_run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (empty_run / "model.safetensors").touch()
    assert export("run", "--to", "a.safetensors") == 2
    err = capfd.readouterr().err
    assert "--checkpoint-every 0" in err
    assert "run/model.safetensors" in err


@pytest.mark.parametrize("argv", [["--help"], [], ["run", "--to", "a.safetensors"]])
def test_help_and_errors_need_no_torch(empty_run: Path, argv: list[str]) -> None:
    code = "import json, sys; from flash_launch.cli import main; main(sys.argv[1:]); print(json.dumps([*sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code, "export", *argv], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert not {"torch", "pytorch_lightning", "numpy"} & set(json.loads(done.stdout.splitlines()[-1]))
