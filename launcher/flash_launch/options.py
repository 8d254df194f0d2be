"""The options of a run as typed frozen dataclasses; the docstring under each field is its help text."""

import ast
import functools
import inspect
from dataclasses import dataclass, field
from typing import Literal

__all__ = [
    "DataOptions",
    "OptimizerOptions",
    "OutputOptions",
    "RankOptions",
    "StrategyOptions",
    "TaskOptions",
    "TrainerOptions",
    "TrainingOptions",
    "WandbOptions",
    "field_docstrings",
    "option_name",
]


@dataclass(frozen=True)
class RankOptions:
    """ranks: how many, and where"""

    nodes: int | None = None
    """Number of nodes. Where there is no cluster, this machine runs the ranks of all of them.
    Default: all nodes of the Slurm allocation, or of --hosts, that there is; else 1."""

    hosts: str | None = field(default=None, metadata={"metavar": "HOST,HOST,..."})
    """Machines to run on, by ssh; each is a node. They must share the folders of the run, the code and Python."""

    hostfile: str | None = field(default=None, metadata={"metavar": "FILE"})
    """File with a host per line, in place of --hosts; what follows the name, as in `host slots=8`, is not used."""

    procs_per_node: int | None = None
    """Ranks per node. Default: the GPUs shared out over the nodes, 1 where there is no GPU."""

    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    """What the ranks compute on. auto: cuda where there are GPUs enough, else cpu."""

    timeout: float = 600.0
    """Seconds that a rank waits for another before the run is given up."""


@dataclass(frozen=True)
class StrategyOptions:
    """strategy and setup: what trains when, and how the ranks hold the model"""

    strategy: str = "no_freeze"
    """Finetuning strategy: no_freeze, freeze, freeze_unfreeze, unfreeze_milestones, a registered one, or
    module:Class for one of your own (a strategy, or a finetuning callback), found from the current folder.
    A plain name runs on the setup ddp, a name that ends with _deepspeed on zero2 unless --setup names another;
    module:Class on ddp or what --setup names."""

    strategy_args: dict[str, object] = field(default_factory=dict)
    """Arguments for a registered strategy or one of your own; best given in the YAML file."""

    unfreeze_epoch: int | None = field(default=None, metadata={"metavar": "EPOCH"})
    """freeze_unfreeze: the backbone trains from the start of this epoch on, counted from 0.
    Default: half of the epochs."""

    milestones: tuple[int, int] | None = field(default=None, metadata={"metavar": "E1 E2"})
    """unfreeze_milestones: the last layers train from epoch E1 on, the rest from epoch E2 on.
    Default: one and two thirds of the epochs."""

    num_layers: int | None = None
    """unfreeze_milestones: how many of the last layers train from the first milestone on. Default: a quarter."""

    layer_count: Literal["parameters", "flash"] = "parameters"
    """unfreeze_milestones: what counts as a layer. parameters: modules with parameters of their own;
    flash: every leaf module, activations and pools included, as Lightning Flash counts."""

    train_bn: bool = True
    """Batch norms of the frozen part go on training."""

    backbone_lr: float | None = None
    """Learning rate of what is unfrozen, at the unfreeze; from then on --lr-schedule applies to it as to the head's.
    Default: the head's, or what the task's own optimizer says."""

    backbone_lr_ratio: float | None = field(default=None, metadata={"metavar": "RATIO"})
    """The same as a ratio to the head's rate."""

    backbone_lr_ramp: float | None = field(default=None, metadata={"metavar": "FACTOR"})
    """Factor of the backbone's rate at the start of each epoch after the one of the unfreeze. Default: none."""

    backbone_lr_align: bool = True
    """End the ramp where it reaches the head's rate."""

    setup: str | None = field(default=None, metadata={"metavar": "NAME|FILE.json"})
    """How the ranks hold the model: a name from `flash-launch templates`, or a DeepSpeed JSON file.
    Default: ddp, or zero2 for a _deepspeed strategy."""

    nvme_path: str | None = field(default=None, metadata={"metavar": "FOLDER"})
    """Folder on a fast local disk, the same on every node, for setups that offload to NVMe (zero3_nvme)."""


@dataclass(frozen=True)
class TaskOptions:
    """task and weights: what is finetuned"""

    task: str | None = field(default=None, metadata={"metavar": "module:Class"})
    """A LightningModule of your own, found from the current folder. Default: image classification."""

    task_args: dict[str, object] = field(default_factory=dict)
    """Arguments for the task's class; best given in the YAML file."""

    backbone: str = "digits_net"
    """Backbone of the image classification: digits_net (small, built in, pretrained on digits 0 to 4)
    or one of torchvision's, such as resnet18."""

    weights: str | None = field(default=None, metadata={"metavar": "FILE|NAME"})
    """Pretrained weights of the backbone: a file, or one of torchvision's names. Default: the backbone's own."""


@dataclass(frozen=True)
class DataOptions:
    """data: what it is trained on"""

    data: str | None = field(default=None, metadata={"metavar": "digits|FOLDER|FILE.csv|module:Class"})
    """digits (built in), a folder of images with a folder per class, a CSV file of paths and labels,
    or a LightningDataModule of your own. Default: digits; for a task of your own, its own loaders."""

    data_args: dict[str, object] = field(default_factory=dict)
    """Arguments for the data module's class; best given in the YAML file."""

    val_fraction: float = 0.2
    """Share of the samples held back for validation where the data name none, from 0 up to, but not including, 1."""

    image_size: int | None = None
    """Images are resized to this many pixels on each side. Default: what suits the backbone."""

    num_workers: int = 0
    """Processes per rank that load data. 0: the rank loads them itself."""


@dataclass(frozen=True)
class TrainingOptions:
    """training: how long, how much at a time, how precisely"""

    max_epochs: int = 8
    """Number of epochs."""

    batch_size: int = 32
    """Samples per rank and micro batch."""

    accumulate: int = 1
    """Micro batches per optimizer step."""

    gradient_clip: float | None = None
    """Gradients are scaled down to this total norm. Default: not clipped."""

    precision: Literal["32", "bf16", "fp16"] = "32"
    """Floating point type of forward and backward passes."""

    seed: int = 0
    """Seed of initialisation, shuffling and augmentation."""

    limit_train_batches: int | None = None
    """Only this many batches per rank and epoch. Default: all."""

    limit_val_batches: int | None = None
    """Only this many batches per rank of each validation; 0: no validation. Default: all."""


@dataclass(frozen=True)
class TrainerOptions:
    """trainer: callbacks, loggers and flags of Lightning's Trainer"""

    trainer: dict[str, object] = field(default_factory=dict, metadata={"metavar": "{NAME: VALUE}"})
    """Arguments of Lightning's Trainer, as --trainer.NAME VALUE or under `trainer:` in the YAML file: callbacks by
    class_path and init_args, --trainer.logger tensorboard or csv beside W&B, --trainer.deterministic true, ...
    What a run decides by itself is refused, with the option for it."""


@dataclass(frozen=True)
class OptimizerOptions:
    """optimizer: unused where the task configures its own"""

    optimizer: Literal["adamw", "sgd"] = "adamw"
    """Optimizer."""

    lr: float = 1e-3
    """Learning rate (the peak of the schedule)."""

    weight_decay: float = 0.01
    """Decoupled weight decay (adamw), L2 penalty (sgd)."""

    no_decay: str | None = field(default=None, metadata={"metavar": "PATTERN,PATTERN,..."})
    """Parameters that --weight-decay leaves out, by name: "*.bias,*.norm*", or none. Default: those of at most one
    dimension, which are biases and the weights of norms."""

    momentum: float = 0.9
    """Momentum of sgd."""

    lr_schedule: Literal["constant", "cosine", "linear", "one_cycle"] = "constant"
    """How the learning rate goes on after the warm-up."""

    warmup_steps: int = 0
    """Optimizer steps over which the learning rate rises to --lr, from one such step's share of it."""


@dataclass(frozen=True)
class OutputOptions:
    """output and checkpoints: where the run is written, and how it can go on after a stop"""

    output_dir: str | None = None
    """Run folder, new or empty. Default: runs/<time>-<strategy>-<random>."""

    resume: Literal["never", "auto"] = "never"
    """auto: if --output-dir holds this run already, go on from its newest checkpoint; else start it."""

    checkpoint_every: tuple[int, Literal["steps", "epochs", "minutes"]] = field(
        default=(1, "epochs"), metadata={"metavar": "N steps|epochs|minutes"}
    )
    """How often a checkpoint is saved; one is saved at the end and when the run is stopped, too.
    0 epochs: never, not even then. Default: 1 epochs."""

    keep_last: int = 2
    """How many checkpoints are kept: the newest ones."""

    keep_best: str | None = field(default=None, metadata={"metavar": "METRIC[:min|max]"})
    """Keep also the checkpoint that followed the epoch with the best value of this metric, such as val_accuracy,
    of which each epoch then has one. Whether high or low is better is known of usual names; say it of others:
    my_score:max. Default: only the newest."""

    background_checkpoints: bool = True
    """Write checkpoints while training goes on."""


@dataclass(frozen=True)
class WandbOptions:
    """Weights & Biases: rank 0 records the run there, or in the run folder until `flash-launch sync RUN`"""

    wandb: Literal["online", "offline", "disabled"] | None = None
    """Record online, offline or not at all. Default: WANDB_MODE; else online with a key (WANDB_API_KEY) or a login
    (wandb login), and offline without. Without a network, online becomes offline."""

    wandb_project: str | None = field(default=None, metadata={"metavar": "NAME"})
    """Project. Default: WANDB_PROJECT, else flash-launch."""

    wandb_entity: str | None = field(default=None, metadata={"metavar": "NAME"})
    """User or team. Default: WANDB_ENTITY, else the one that the key belongs to."""

    wandb_name: str | None = field(default=None, metadata={"metavar": "NAME"})
    """Name of the run. Default: that of the run folder."""

    wandb_group: str | None = field(default=None, metadata={"metavar": "NAME"})
    """Group of runs. Default: the sweep's name for the runs of a sweep."""

    wandb_job_type: str | None = field(default=None, metadata={"metavar": "NAME"})
    """Job type. Default: array for the runs of a sweep."""

    wandb_tags: str | None = field(default=None, metadata={"metavar": "TAG,TAG,..."})
    """Tags."""

    wandb_artifact: bool = False
    """Record the final weights, model.safetensors, as an artifact."""


def option_name(field_name: str) -> str:
    """The option of a field as it is typed: `batch_size` is `--batch-size`."""
    return "--" + field_name.replace("_", "-")


@functools.cache
def field_docstrings(part: type) -> dict[str, str]:
    """The docstrings under the fields of a dataclass, which Python itself does not keep."""
    tree = ast.parse(inspect.getsource(part)).body[0]
    assert isinstance(tree, ast.ClassDef)
    texts: dict[str, str] = {}
    for statement, after in zip(tree.body, tree.body[1:], strict=False):
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            continue
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            texts[statement.target.id] = inspect.cleandoc(str(after.value.value))
    return texts
