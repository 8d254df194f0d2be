"""The table of bad inputs: what is typed, the files there are, and the one message that answers it."""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy
from PIL import Image
from safetensors.numpy import save

LINK = "link to nowhere"
"""In place of a file's content: a symbolic link whose target does not exist."""

FOLDER = "folder"
"""In place of a file's content: an empty folder."""


@dataclass(frozen=True)
class Row:
    """One bad input."""

    typed: str
    """The arguments, as after `flash-launch`."""
    message: str
    """The whole message; `…` stands for any text, `{here}` for the folder the command is run in."""
    files: Mapping[str, str | bytes] = field(default_factory=dict)
    """The files there are, by path."""


def png(shade: int = 0) -> bytes:
    """A grey image of 16 x 16 pixels, of noise."""
    out = io.BytesIO()
    pixels = numpy.random.default_rng(shade).integers(0, 256, (16, 16), numpy.uint8)
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def classes(*paths: str) -> dict[str, str | bytes]:
    """Two classes of four images each in the folder `images`, and more images at these paths."""
    more = dict.fromkeys((f"images/{path}" for path in paths), png())
    return {f"images/{name}/{n}.png": png(n) for name in ("cat", "dog") for n in range(4)} | more


def tensors(**shapes: tuple[int, ...]) -> bytes:
    """A safetensors file; a dot in a name is written as two underscores."""
    return save({name.replace("__", "."): numpy.zeros(shape, numpy.float32) for name, shape in shapes.items()})


class Malicious:
    """Pickles as a call."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("code from a weights file was run",)


TASK = """
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

print("noise of the user's own")

class Task(pl.LightningModule):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        if width > 64:
            raise ValueError(f"width {width} is too wide")
        self.backbone, self.head = nn.Linear(4, width), nn.Linear(width, 2)

    def training_step(self, batch, index):
        images, labels = batch
        return nn.functional.cross_entropy(self.head(self.backbone(images)), labels)

    def train_dataloader(self):
        return DataLoader(TensorDataset(torch.randn(8, 4), torch.zeros(8, dtype=torch.long)), batch_size=4)

class Needy(Task):
    def __init__(self, classes: int) -> None:
        super().__init__()

class Manual(Task):
    automatic_optimization = False

class NoLoader(Task):
    train_dataloader = pl.LightningModule.train_dataloader

class NoBackbone(Task):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.backbone = self.backbone, None

class Names(Task):
    def modules_to_freeze(self):
        return "backbone"

class Fails(Task):
    def modules_to_freeze(self):
        return self.bakbone_

class Whole(Task):
    def modules_to_freeze(self):
        return self

class Data(pl.LightningDataModule):
    def train_dataloader(self):
        return None

class NotATask:
    pass
"""

STRATEGY = """
from pytorch_lightning.callbacks import BackboneFinetuning
from flash_strategies import Everything, FlashBaseFinetuning, Nothing, Phase

class Lightnings(BackboneFinetuning):
    pass

class Silent(FlashBaseFinetuning):
    pass

class Mine(FlashBaseFinetuning):
    def __init__(self, attr_names="bakbone"):
        super().__init__(attr_names)

    def finetune_function(self, pl_module, epoch, optimizer):
        pass

class Late:
    name = "late"

    def phases(self, max_epochs):
        return (Phase("frozen", 1, Nothing()),)

class Raises:
    name = "raises"

    def phases(self, max_epochs):
        return 1 // 0

class Nameless:
    def phases(self, max_epochs):
        return (Phase("all", 0, Everything()),)

class Neither:
    pass

prepared = Late()
"""

MILESTONES = "--strategy unfreeze_milestones"
UNFREEZE = "--strategy freeze_unfreeze"
OWN = {"my_task.py": TASK, "my_strategies.py": STRATEGY}


def setup(text: str) -> dict[str, str | bytes]:
    """A setup in the file `mine.json`."""
    return {"mine.json": text}


# Told without torch, in a fraction of a second.
AT_ONCE: tuple[Row, ...] = (
    # strategies and their metadata
    Row(
        "--strategy freze",
        "--strategy freze: no strategy is named 'freze', did you mean 'freeze'? Use one of no_freeze, "
        "no_freeze_deepspeed, freeze, freeze_deepspeed, freeze_unfreeze, freeze_unfreeze_deepspeed, "
        "unfreeze_milestones, unfreeze_milestones_deepspeed, or module:Class for one of your own",
    ),
    Row(
        "--strategy freeze_unfreeze_deepseed",
        "--strategy freeze_unfreeze_deepseed: no strategy is named 'freeze_unfreeze_deepseed', did you mean "
        "'freeze_unfreeze_deepspeed'? Use one of no_freeze, no_freeze_deepspeed, freeze, freeze_deepspeed, "
        "freeze_unfreeze, freeze_unfreeze_deepspeed, unfreeze_milestones, unfreeze_milestones_deepspeed, or "
        "module:Class for one of your own",
    ),
    Row(
        "--strategy=",
        "--strategy was given an empty text: give a value or leave the option out",
    ),
    Row(
        "--strategy freeze --strategy-args.epoch 3",
        "--strategy-args was given, but --strategy freeze takes none: leave them out",
    ),
    Row(
        "--strategy freeze_unfreeze --unfreeze-epoch 8",
        "--unfreeze-epoch 8 is past the end: epochs count from 0, so --max-epochs 8 ends with epoch 7: give "
        "--max-epochs 9 or more, or an earlier epoch",
    ),
    Row(
        "--strategy freeze_unfreeze_deepspeed --unfreeze-epoch 4 --max-epochs 3",
        "--unfreeze-epoch 4 is past the end: epochs count from 0, so --max-epochs 3 ends with epoch 2: give "
        "--max-epochs 5 or more, or an earlier epoch",
    ),
    Row(
        "--strategy freeze_unfreeze --unfreeze-epoch -1",
        "--unfreeze-epoch was given -1: it must be 0 or more",
    ),
    Row(
        "--strategy freeze_unfreeze --unfreeze-epoch soon",
        "--unfreeze-epoch was given soon: it must be a whole number",
    ),
    Row(
        "--strategy freeze_unfreeze --unfreeze-epoch 1.5",
        "--unfreeze-epoch was given 1.5: it must be a whole number",
    ),
    Row(
        "--strategy freeze_unfreeze --unfreeze-epoch true",
        "--unfreeze-epoch was given true: it must be a whole number",
    ),
    Row(
        "--strategy freeze_unfreeze --max-epochs 1",
        "--max-epochs 1 is too few for --strategy freeze_unfreeze, which unfreezes during the run: give --max-epochs 2 "
        "or more, or --unfreeze-epoch 0",
    ),
    Row(
        "--strategy freeze --unfreeze-epoch 2",
        "--unfreeze-epoch belongs to --strategy freeze_unfreeze, but the strategy is freeze: leave it out, or give "
        "--strategy freeze_unfreeze",
    ),
    Row(
        f"{MILESTONES} --max-epochs 2",
        "--max-epochs 2 is too few for --strategy unfreeze_milestones, which unfreezes during the run: give "
        "--max-epochs 3 or more, or two epochs of the run with --milestones",
    ),
    Row(
        "--checkpoint-every 5",
        "--checkpoint-every was given 5: it must be a whole number and a unit, for example 500 steps, 1 epochs or "
        "30 minutes",
    ),
    Row("--checkpoint-every -1 steps", "--checkpoint-every was given -1: it must be 0 or more"),
    Row("--keep-last 0", "--keep-last was given 0: it must be 1 or more"),
    Row("--resume auto", "--resume auto needs --output-dir: the folder of the run to start or to go on with"),
    Row(
        "--resume auto --output-dir a --checkpoint-every 0 epochs",
        "--resume auto needs checkpoints, and --checkpoint-every 0 saves none: leave one out",
    ),
    Row("resume a", "resume was given a, which is no run folder: it has no config.yaml"),
    Row("resume a", "{here}/a/config.yaml: unknown key 'lrr': did you mean lr?", {"a/config.yaml": "lrr: 1"}),
    Row(
        "resume a",
        "{here}/a holds a run without attempts/, of a version of flash-launch that saved no checkpoints: start it "
        "again in another folder, with --config and its config.yaml",
        {"a/config.yaml": "lr: 1"},
    ),
    Row(
        "resume a --output-dir b",
        "resume RUN goes on in RUN: leave --output-dir and --resume out",
        {"a/config.yaml": "lr: 1"},
    ),
    Row(
        "resume a --checkpoint",
        "--checkpoint has no value: give the step of a checkpoint, for example --checkpoint 120",
        {"a/config.yaml": "lr: 1"},
    ),
    Row(
        f"{MILESTONES} --milestones 3",
        "--milestones was given 3: it must be two whole numbers, for example 2 5",
    ),
    Row(
        f"{MILESTONES} --milestones 1 2 3",
        "unexpected argument '3': options begin with --, see flash-launch --help",
    ),
    Row(
        f"{MILESTONES} --milestones 5 2",
        "--milestones was given 5 2: it must be two epochs, counted from 0, of which the second is later, for example "
        "--milestones 2 5",
    ),
    Row(
        f"{MILESTONES} --milestones 2 2",
        "--milestones was given 2 2: it must be two epochs, counted from 0, of which the second is later, for example "
        "--milestones 2 5",
    ),
    Row(
        f"{MILESTONES} --milestones 2 9",
        "--milestones 2 9 is past the end: epochs count from 0, so --max-epochs 8 ends with epoch 7: give --max-epochs "
        "10 or more, or an earlier epoch",
    ),
    Row(
        f"{MILESTONES} --num-layers 0",
        "--num-layers was given 0: it must be 1 or more",
    ),
    Row(
        "--strategy freeze_deepspeed --num-layers 2",
        "--num-layers belongs to --strategy unfreeze_milestones, but the strategy is freeze_deepspeed: leave it out, "
        "or give --strategy unfreeze_milestones_deepspeed",
    ),
    # rates of what is unfrozen
    Row(
        f"{UNFREEZE} --backbone-lr -0.001",
        "--backbone-lr was given -0.001: it must be a number above 0",
    ),
    Row(
        f"{UNFREEZE} --backbone-lr-ratio 0",
        "--backbone-lr-ratio was given 0.0: it must be a number above 0",
    ),
    Row(
        f"{UNFREEZE} --backbone-lr-ratio 0.1 --backbone-lr-ramp -2",
        "--backbone-lr-ramp was given -2.0: it must be a number above 0",
    ),
    Row(
        f"{UNFREEZE} --backbone-lr 1e-4 --backbone-lr-ratio 0.1",
        "--backbone-lr 0.0001 and --backbone-lr-ratio 0.1 both say what the rate at the unfreeze is: give one of them",
    ),
    Row(
        f"{UNFREEZE} --backbone-lr-ramp 2",
        "--backbone-lr-ramp 2 has no rate to begin with: give --backbone-lr or --backbone-lr-ratio, too",
    ),
    Row(
        f"{UNFREEZE} --backbone-lr 1e-4 --backbone-lr-align false",
        "--backbone-lr-align false is about a ramp: give --backbone-lr-ramp, or leave it out",
    ),
    Row(
        "--strategy freeze_deepspeed --backbone-lr 1e-4",
        "--backbone-lr is for what a strategy unfreezes, and --strategy freeze_deepspeed unfreezes nothing: leave it "
        "out, or give --strategy freeze_unfreeze",
    ),
    Row(
        "--backbone-lr-ratio 0.1",
        "--backbone-lr-ratio is for what a strategy unfreezes, and --strategy no_freeze unfreezes nothing: leave it "
        "out, or give --strategy freeze_unfreeze",
    ),
    Row(
        f"{UNFREEZE} --unfreeze-epoch 0 --backbone-lr-ratio 0.1",
        "--backbone-lr-ratio is for what a strategy unfreezes, and --unfreeze-epoch 0 freezes nothing at first: give "
        "a later epoch, or leave it out",
    ),
    # setups
    Row(
        "--strategy freeze_deepspeed --setup ddp",
        "--strategy freeze_deepspeed runs on a ZeRO setup, but --setup ddp is not one: give --strategy freeze, or "
        "--setup zero2",
    ),
    Row(
        "--strategy freeze --setup zero3",
        "--strategy freeze runs on ddp, but --setup zero3 is a DeepSpeed setup: give --strategy freeze_deepspeed, or "
        "leave --setup out",
    ),
    Row(
        "--strategy freeze_deepspeed --setup zero9",
        "there is no setup 'zero9'; did you mean 'zero3'? Give one of ddp, zero1, zero2, zero2_offload, zero3, "
        "zero3_offload, zero3_nvme, zero3_hpz, or a DeepSpeed JSON file, whose name ends with .json",
    ),
    Row(
        "--strategy freeze_deepspeed --setup mine.json",
        "--setup mine.json cannot be read, …: give a JSON file that exists, or a name of ddp, zero1, zero2, "
        "zero2_offload, zero3, zero3_offload, zero3_nvme, zero3_hpz",
    ),
    Row(
        "--strategy freeze_deepspeed --setup mine.json",
        "setup mine.json: not valid JSON: …",
        setup('{"zero_optimization": {"stage": 2}'),
    ),
    Row(
        "--strategy freeze_deepspeed --setup mine.json",
        "setup mine.json: nobody reads the key 'zero_optimisation'; did you mean 'zero_optimization'?",
        setup('{"zero_optimisation": {"stage": 2}}'),
    ),
    Row(
        "--strategy freeze_deepspeed --setup mine.json",
        "setup mine.json: stage 0 is DDP through DeepSpeed: give --setup ddp, or a zero_optimization.stage of "
        "1, 2 or 3",
        setup('{"zero_optimization": {"stage": 0}}'),
    ),
    Row(
        "--strategy freeze_deepspeed --setup mine.json",
        "setup mine.json: DeepSpeed … has the ZeRO stages 1, 2 and 3, not 4",
        setup('{"zero_optimization": {"stage": 4}}'),
    ),
    Row(
        "--strategy freeze_deepspeed --setup mine.json",
        'setup mine.json: zero_optimization.stage is "two", but must be a whole number',
        setup('{"zero_optimization": {"stage": "two"}}'),
    ),
    Row(
        "--strategy freeze_deepspeed --setup mine.json",
        'setup mine.json: "zero_optimization" is a block: write {"stage": 2} instead of true',
        setup('{"zero_optimization": true}'),
    ),
    Row(
        "--strategy freeze_deepspeed --setup mine.json",
        "setup mine.json: nobody reads the key 'stage'; did you mean 'zero_optimization.stage'?",
        setup('{"stage": 2}'),
    ),
    Row(
        "--strategy freeze_deepspeed --setup mine.json",
        "setup mine.json: compile is refused: DeepCompile keeps a graph of the parameters that trained when it was "
        "built: remove the block",
        setup('{"compile": {}, "zero_optimization": {"stage": 2}}'),
    ),
    Row(
        "--strategy freeze_deepspeed --setup mine.json",
        "setup mine.json: not valid JSON: the key 'steps_per_print' stands twice in one block",
        setup('{"steps_per_print": 1, "steps_per_print": 2}'),
    ),
    Row(
        "--strategy freeze_deepspeed --setup mine.json",
        "setup mine.json: the file must hold one JSON object, not list",
        setup("[]"),
    ),
    Row(
        "templates zero9",
        "there is no setup 'zero9'; did you mean 'zero3'? Give one of ddp, zero1, zero2, zero2_offload, zero3, "
        "zero3_offload, zero3_nvme, zero3_hpz, or a DeepSpeed JSON file, whose name ends with .json",
    ),
    # options, files of options, contradictions
    Row(
        "--bach-size 4",
        "unknown option --bach-size: did you mean --batch-size?",
    ),
    Row(
        "--batch-size 0",
        "--batch-size was given 0: it must be 1 or more",
    ),
    Row(
        "--lr nan",
        "--lr was given nan: it must be a number",
    ),
    Row(
        "--nodes two",
        "--nodes was given two: it must be a whole number",
    ),
    Row(
        "--precision fp8",
        "--precision was given fp8: it must be one of 32, bf16, fp16",
    ),
    Row(
        "--val-fraction 1",
        "--val-fraction was given 1.0: it must be from 0 up to, but not including, 1",
    ),
    Row(
        "freeze",
        "unknown command 'freeze': see flash-launch --help for what there is",
    ),
    Row(
        "--nodes 2 freeze",
        "unexpected argument 'freeze': options begin with --, see flash-launch --help",
    ),
    Row(
        "--accelerator cuda",
        "--accelerator cuda was given, but no NVIDIA GPU is visible here: give --accelerator cpu",
    ),
    Row(
        "--task my_task:Task --backbone resnet18",
        "--backbone resnet18 is for the built-in image classification, and --task my_task:Task brings its own: leave "
        "--backbone out, or give it to the task with --task-args",
    ),
    Row(
        "--task my_task:Task --weights none",
        "--weights none is for the built-in image classification, and --task my_task:Task brings its own: leave "
        "--weights out, or give it to the task with --task-args",
    ),
    Row(
        "--task-args.width 3",
        "--task-args was given without --task: name the task that takes them, for example --task my_task:MyTask",
    ),
    Row(
        "--data-args.root here",
        "--data-args was given, but --data digits takes none: leave them out, or name a LightningDataModule of your "
        "own, for example --data my_data:MyData",
    ),
    Row(
        "--output-dir other",
        "--output-dir other holds another run (it has a config.yaml): go on with it by `flash-launch resume other` or "
        "--resume auto, or give a new folder",
        {"other/config.yaml": ""},
    ),
    Row(
        "--output-dir other/run",
        "--output-dir other/run is not possible, {here}/other is a file: give another folder",
        {"other": "a file"},
    ),
    Row(
        "--config run.yaml",
        "--config run.yaml cannot be read: …",
    ),
    Row(
        "--config run.yaml",
        "run.yaml: unknown key 'unfreeze_epoc': did you mean unfreeze_epoch?",
        {"run.yaml": "unfreeze_epoc: 7"},
    ),
    Row(
        "--config run.yaml",
        "run.yaml is not valid YAML: line 1: …",
        {"run.yaml": "lr: [0.1"},
    ),
    Row(
        "--config run.yaml --strategy freeze",
        "--unfreeze-epoch belongs to --strategy freeze_unfreeze, but the strategy is freeze: leave it out, or give "
        "--strategy freeze_unfreeze",
        {"run.yaml": "strategy: freeze_unfreeze\nunfreeze_epoch: 2"},
    ),
)

# Told by the preflight, which imports torch, builds the task and reads the data.
PREFLIGHT: tuple[Row, ...] = (
    # setups against the run
    Row(
        "--precision fp16",
        "--precision fp16 needs a GPU, and there is none: give --precision bf16 or 32",
    ),
    Row(
        "--nodes 2 --strategy freeze_deepspeed --setup mine.json",
        "setup mine.json: train_batch_size is 48, but 32 per rank (--batch-size) x 1 (--accumulate) x 2 ranks = 64: "
        "leave it out, or change one of the three",
        setup('{"train_batch_size": 48, "zero_optimization": {"stage": 2}}'),
    ),
    Row(
        "--strategy freeze_deepspeed --setup mine.json",
        "setup mine.json: bf16.enabled is true, but the run's precision is fp32: give --precision bf16, or write "
        '"auto"',
        setup('{"bf16": {"enabled": true}, "zero_optimization": {"stage": 2}}'),
    ),
    Row(
        "--nodes 2 --strategy freeze_deepspeed --setup mine.json",
        "setup mine.json: zero_hpz_partition_size 3 does not divide 2 ranks (2 = 0 x 3 + 2): give every node the same "
        "number of ranks, or --setup zero3",
        setup('{"zero_optimization": {"stage": 3, "zero_hpz_partition_size": 3}}'),
    ),
    Row(
        "--strategy freeze_deepspeed --setup mine.json",
        "setup mine.json: zero_optimization.offload_param.device cpu is for stage 3, not 2: use zero3_offload or "
        "zero3_nvme",
        setup('{"zero_optimization": {"stage": 2, "offload_param": {"device": "cpu"}}}'),
    ),
    Row(
        "--strategy freeze_deepspeed --setup zero3_nvme",
        "setup zero3_nvme: zero_optimization.offload_optimizer.nvme_path is not known: give --nvme-path DIR, a folder "
        "on a local disk of every node",
    ),
    # data
    Row(
        "--data images",
        "--data images is neither digits, a folder, a file that ends with .csv, nor module:Class",
    ),
    Row(
        "--data ./images",
        "the folder images does not exist: give --data a folder of images with a folder per class, or a file that ends "
        "with .csv",
    ),
    Row(
        "--data ./images",
        "images has no classes: it needs a folder of images for each class",
        {"images": FOLDER},
    ),
    Row(
        "--data ./images",
        "images is not a folder: give --data a folder of images with a folder per class, or a file that ends with .csv",
        {"images": "a file"},
    ),
    Row(
        "--data images",
        "the class 'bird' is empty: images/bird has no images (….png…); add some, or remove it",
        classes() | {"images/bird/notes.txt": "no image"},
    ),
    Row(
        "--data images",
        "1 of 9 images cannot be read, the first is images/cat/9.png (…): mend them, or take them out of the data",
        classes() | {"images/cat/9.png": b"no image at all"},
    ),
    Row(
        "--data images",
        "1 of 9 images cannot be read, the first is images/cat/9.png (…): mend them, or take them out of the data",
        classes() | {"images/cat/9.png": png()[:200]},
    ),
    Row(
        "--data images",
        "1 of 9 images cannot be read, the first is images/cat/9.png (…): mend them, or take them out of the data",
        classes() | {"images/cat/9.png": b""},
    ),
    Row(
        "--data images",
        "1 of 9 images are missing, the first is images/dog/9.png: bring them, or take them out of the data",
        classes() | {"images/dog/9.png": LINK},
    ),
    Row(
        "--data images",
        "images has a folder train with folders in it, but no folder val: add images/val, or give images/train to have "
        "a part of it held back",
        {"images/train/cat/1.png": png()},
    ),
    Row(
        "--data images",
        "images/val/bird is a class that images/train does not have; it has cat",
        classes("train/cat/1.png", "val/bird/1.png"),
    ),
    Row(
        "--nodes 3 --data images",
        "2 validation samples cannot be spread over 3 ranks, of which each needs one at least: validate on more "
        "samples or use fewer ranks",
        classes(),
    ),
    Row(
        "--data list.csv",
        "the file list.csv does not exist: give --data a CSV file with columns path,label",
    ),
    Row(
        "--data list.csv",
        "list.csv has no column path and no column label: its first line must be path,label or path,label,split, and "
        "is empty",
        {"list.csv": ""},
    ),
    Row(
        "--data list.csv",
        "list.csv lists no images: after the line path,label it needs a line for each",
        {"list.csv": "path,label\n"},
    ),
    Row(
        "--data list.csv",
        "list.csv has no column path: its first line must be path,label or path,label,split, and is file,label",
        {"list.csv": "file,label\n1.png,cat\n"},
    ),
    Row(
        "--data list.csv",
        "list.csv, line 2: the label is empty",
        {"list.csv": "path,label\n1.png,\n"},
    ),
    Row(
        "--data list.csv",
        "list.csv, line 2: the split is 'test', it must be train or val",
        {"list.csv": "path,label,split\n1.png,cat,test\n"},
    ),
    Row(
        "--data list.csv",
        "list.csv, line 3: the class 'dog' is in val, but not in train",
        {"list.csv": "path,label,split\n1.png,cat,train\n2.png,dog,val\n"},
    ),
    Row(
        "--data list.csv",
        "list.csv lists 1.png twice, on line 2 as cat and on line 3 as dog",
        {"list.csv": "path,label\n1.png,cat\n1.png,dog\n"},
    ),
    Row(
        "--data list.csv",
        "1 of 2 images are missing, the first is 2.png: bring them, or take them out of the data",
        {"list.csv": "path,label\n1.png,cat\n2.png,dog\n", "1.png": png()},
    ),
    Row(
        "--data list.csv",
        "list.csv cannot be read as CSV in UTF-8: …",
        {"list.csv": "path,label\n1.png,c\xe4t\n".encode("latin-1")},
    ),
    Row(
        "--data my_task:Data",
        "--data my_task:Data does not say how many classes it has, which image classification must know: give the data "
        "module an attribute num_classes, or a task of your own with --task",
        OWN,
    ),
    Row(
        "--data my_task:Dataa",
        "{here}/my_task.py has no class 'Dataa', the nearest is my_task:Data",
        OWN,
    ),
    Row(
        "--data my_task:Task",
        "my_task:Task in {here}/my_task.py is not a LightningDataModule",
        OWN,
    ),
    # backbones and weights
    Row(
        "--backbone resnet-18",
        "no backbone is called 'resnet-18': the nearest are resnet18, resnet152, resnet101, resnet50",
    ),
    Row(
        "--backbone resnet18 --weights IMAGENET",
        "resnet18 has no weights 'IMAGENET': give IMAGENET1K_V1, DEFAULT, none, or a file that exists and ends with "
        ".safetensors, .pt, .pth, .bin, .ckpt",
    ),
    Row(
        "--backbone squeezenet1_0 --weights none --image-size 4",
        "squeezenet1_0 cannot take images of 4 pixels (…): give another --image-size",
    ),
    Row(
        "--weights net.safetensors",
        "weights file net.safetensors does not exist: give --weights a file, a name of the backbone's own, or none",
    ),
    Row(
        "--weights net.safetensors",
        "net.safetensors does not fit digits_net: backbone.stages.0.0.weight is (16, 3, 7, 7) in the file and (16, 1, "
        "3, 3) in digits_net. missing are backbone.stages.0.1.weight, backbone.stages.0.1.bias, "
        "backbone.stages.0.1.running_mean and 36 more. Its tensors are called backbone.stages.0.0.weight, those of "
        "digits_net stages.0.0.weight, stages.0.1.weight, stages.0.1.bias and 45 more. Name the backbone they were "
        "made for with --backbone, or start from random weights with --weights none",
        {"net.safetensors": tensors(stages__0__0__weight=(16, 3, 7, 7))},
    ),
    Row(
        "--weights net.safetensors",
        "net.safetensors does not fit digits_net: its tensors are called fc.weight, those of digits_net "
        "stages.0.0.weight, stages.0.1.weight, stages.0.1.bias and 45 more. Name the backbone they were made for with "
        "--backbone, or start from random weights with --weights none",
        {"net.safetensors": tensors(fc__weight=(5, 5))},
    ),
    Row(
        "--weights net.safetensors",
        "weights file net.safetensors is neither a safetensors file nor one that torch.save wrote: convert it to one "
        "of these",
        {"net.safetensors": b"rubbish"},
    ),
    Row(
        "--weights net.pt",
        "weights file net.pt is neither a safetensors file nor one that torch.save wrote: convert it to one of these",
        {"net.pt": b"rubbish"},
    ),
    Row(
        "--weights net.pt",
        "weights file net.pt holds more than tensors, and its code is not run: save the model's state_dict() alone (…)",
        {"net.pt": pickle.dumps(Malicious(), 2)},
    ),
    Row(
        "--weights net.pt",
        "weights file net.pt is not a file: give --weights a file, a name of the backbone's own, or none (none in it "
        "ends with .safetensors, .pt, .pth, .bin, .ckpt, .index.json)",
        {"net.pt": FOLDER},
    ),
    # tasks of one's own
    Row(
        "--task my_task",
        "'my_task' does not name a class: write module:Class, for example my_task:MyTask",
        OWN,
    ),
    Row(
        "--task my_tasks:Task",
        "my_tasks:Task: no module 'my_tasks' in {here} or among the installed packages, the nearest is my_task:Task",
        OWN,
    ),
    Row(
        "--task my_task:Tusk",
        "{here}/my_task.py has no class 'Tusk', the nearest is my_task:Task",
        OWN,
    ),
    Row(
        "--task my_task:NotATask",
        "my_task:NotATask in {here}/my_task.py is not a LightningModule",
        OWN,
    ),
    Row(
        "--task my_task:Task",
        "my_task:Task cannot be imported: SyntaxError: invalid syntax (my_task.py, line 2)",
        {"my_task.py": "import torch\nclass Task(:\n"},
    ),
    Row(
        "--task my_task:Task",
        "my_task:Task cannot be imported: ModuleNotFoundError: No module named 'nonsuch' ({here}/my_task.py, line 2: "
        "import nonsuch)",
        {"my_task.py": "import torch\nimport nonsuch\n"},
    ),
    Row(
        "--task my_task:Task",
        "my_task:Task cannot be imported: SystemExit: 0 ({here}/my_task.py, line 1: raise SystemExit(0))",
        {"my_task.py": "raise SystemExit(0)\n"},
    ),
    Row(
        "--task my_task:Task --task-args.width 65",
        'Task cannot be built: ValueError: width 65 is too wide ({here}/my_task.py, line 13: raise ValueError(f"width '
        '{width} is too wide"))',
        OWN,
    ),
    Row(
        "--task my_task:Task --task-args.witdh 3",
        "Task takes no argument 'witdh' (--task-args.witdh): it takes width",
        OWN,
    ),
    Row(
        "--task my_task:Needy",
        "Needy needs the argument 'classes': give it with --task-args.classes or in the YAML file, or give it a "
        "default",
        OWN,
    ),
    Row(
        "--task my_task:Manual",
        "my_task:Manual optimizes by hand (automatic_optimization = False): transitions must know where an optimizer "
        "step ends, so let Lightning optimize, or use flash_strategies in a loop of your own",
        OWN,
    ),
    Row(
        "--task my_task:NoLoader",
        "NoLoader has no train_dataloader(): write one, or name other data with --data",
        OWN,
    ),
    Row(
        "--task my_task:NoBackbone --strategy freeze",
        "NoBackbone does not say what its backbone is (it has head, body): name the module `self.backbone`, or add a "
        "method modules_to_freeze() that returns the module or modules to freeze, or None to freeze nothing. The "
        "strategy 'no_freeze' does without",
        OWN,
    ),
    Row(
        "--task my_task:Names --strategy freeze",
        "Names.modules_to_freeze() gave a str, 'backbone': it must give a module, a list of modules (lists may be "
        "nested), or None to freeze nothing; for parameters by name, use a strategy with Matching(patterns)",
        OWN,
    ),
    Row(
        "--task my_task:Fails --strategy freeze_unfreeze_deepspeed",
        "Fails.modules_to_freeze() failed: AttributeError: 'Fails' object has no attribute 'bakbone_' "
        "({here}/my_task.py, line 44: return self.bakbone_)",
        OWN,
    ),
    Row(
        "--task my_task:Whole --strategy freeze",
        "nothing of Whole would train, all its parameters are frozen: leave the head out of modules_to_freeze(), or "
        "use a strategy that unfreezes from epoch 0",
        OWN,
    ),
    # strategies of one's own, and layers
    Row(
        "--strategy my_strategy:Mine",
        "my_strategy:Mine: no module 'my_strategy' in {here} or among the installed packages, the nearest is "
        "my_strategies:Mine",
        OWN,
    ),
    Row(
        "--strategy my_strategies:Min",
        "{here}/my_strategies.py has no class 'Min', the nearest is my_strategies:Mine",
        OWN,
    ),
    Row(
        "--strategy my_strategies:Mine",
        "Mine freezes the attribute 'bakbone', and ImageClassifier has no module of that name; it has backbone, head, "
        "train_loss_mean, val_loss_mean, val_accuracy_mean",
        OWN,
    ),
    Row(
        "--strategy my_strategies:Mine --strategy-args.name backbone",
        "Mine takes no argument 'name' (--strategy-args.name): it takes attr_names",
        OWN,
    ),
    Row(
        "--strategy my_strategies:Mine --train-bn false",
        "--train-bn false does not reach --strategy my_strategies:Mine, which freezes by itself: leave it out, and "
        "give train_bn to the callback",
        OWN,
    ),
    Row(
        "--strategy my_strategies:Silent",
        "--strategy my_strategies:Silent does not say what unfreezes when: override finetune_function(self, pl_module, "
        "epoch, optimizer)",
        OWN,
    ),
    Row(
        "--strategy my_strategies:Lightnings",
        "--strategy my_strategies:Lightnings derives from Lightning's BaseFinetuning, whose unfreezing leaves ranks "
        "with different weights: derive it from flash_strategies.FlashBaseFinetuning, which has the same methods to "
        "override",
        OWN,
    ),
    Row(
        "--strategy my_strategies:Late --setup zero2",
        "--strategy my_strategies:Late: strategy 'late': the first phase 'frozen' begins at epoch 1, it must begin at "
        "epoch 0: add a phase that says what trains before",
        OWN,
    ),
    Row(
        "--strategy my_strategies:Raises",
        "--strategy my_strategies:Raises, phases(8) failed: ZeroDivisionError: integer division or modulo by zero "
        "({here}/my_strategies.py, line 28: return 1 // 0)",
        OWN,
    ),
    Row(
        "--strategy my_strategies:Nameless",
        "--strategy my_strategies:Nameless gives a Nameless, which is no strategy: it needs a `name`, a text, and a "
        "method phases(max_epochs) that gives a tuple of flash_strategies.Phase",
        OWN,
    ),
    Row(
        "--strategy my_strategies:Neither",
        "--strategy my_strategies:Neither is neither a finetuning callback nor a strategy: derive it from "
        "flash_strategies.FlashBaseFinetuning and write finetune_function(), or give it a `name` and a method "
        "phases(max_epochs)",
        OWN,
    ),
    Row(
        "--strategy my_strategies:prepared --strategy-args.epoch 3",
        "--strategy my_strategies:prepared is an object, which takes no --strategy-args: leave them out, or name its "
        "class",
        OWN,
    ),
    Row(
        f"{MILESTONES} --num-layers 99",
        "--num-layers 99: there are 16 layers to freeze: give 1 to 16",
    ),
    Row(
        f"{MILESTONES} --num-layers 1 --layer-count flash --backbone resnet18 --weights none",
        "--num-layers 1 --layer-count flash would unfreeze nothing, the last layer with parameters is "
        "backbone.layer4.1.bn2: give --num-layers 2 or more, or --layer-count parameters",
    ),
)


def write(row: Row, folder: Path) -> None:
    """Make the row's files."""
    for name, content in row.files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content == LINK:
            path.symlink_to("nowhere")
        elif content == FOLDER:
            path.mkdir()
        else:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
