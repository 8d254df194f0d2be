"""ImageClassifier with the arguments of Lightning Flash: a task with its own optimizer, losses and metrics."""

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Self, cast

import torch
import torchmetrics
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn import functional

from flash_launch.errors import TaskError
from flash_launch.tasks import optimizer_choice
from flash_launch.tasks.any_backbone import (
    BACKBONES,
    Backbone,
    Head,
    available_backbones,
    available_weights,
    build_parts,
)
from flash_launch.tasks.backbones import DIGITS_NET
from flash_launch.tasks.classes import check_classes_of, class_count
from flash_launch.tasks.classifier import Classifier
from flash_launch.tasks.optimizer_choice import OptimizerSpec, SchedulerSpec
from flash_launch.tasks.outputs import output_names
from flash_launch.tasks.sample_mean import SampleMean
from flash_strategies.registry import strategy_names
from flash_strategies.reporting import NOTES, say

__all__ = ["ImageClassifier"]

Loss = Callable[[Tensor, Tensor], Tensor]
Losses = Loss | Sequence[Loss] | Mapping[str, Loss]
Metrics = Callable[..., object] | Sequence[Callable[..., object]] | Mapping[str, Callable[..., object]]
Batch = Tensor | Sequence[Tensor] | Mapping[str, Tensor]

MapLocation = (
    torch.device
    | str
    | int
    | Callable[[torch.UntypedStorage, str], torch.UntypedStorage | None]
    | dict[torch.device | str | int, torch.device | str | int]
    | None
)

_NOT_SAVED = "not saved: "


class ImageClassifier(Classifier):
    """A `backbone` and a new `head` that classify images, as in Lightning Flash; also a plain LightningModule.

    Logged are losses and metrics under their names: `train_cross_entropy` and `train_accuracy` (also `..._step`, of
    this rank's batch, and `..._epoch`), `val_cross_entropy`, `val_accuracy`, `test_...`; with several labels
    `..._binary_cross_entropy_with_logits` and `..._f1score`. Epochs' values count each sample of all ranks once.
    Of several losses the sum is trained on, and logged as `..._total_loss`.

    Batches are (images, targets), or a dict with `input` and `target`: images (n, 3, h, w), targets (n,) of int64, or
    with `multi_label` (n, classes) from 0 to 1.

    Args:
        num_classes: of the data; this or `labels` is needed.
        labels: names of the classes by number, for predictions.
        backbone: a name of `available_backbones()`, or `(module, num_features)`. A name of torchvision's comes before
            one of timm's; "timm/NAME" is always timm's.
        backbone_kwargs: more arguments for the function that makes the backbone.
        head: "linear", a module, or a function of (num_features, num_classes) that makes one.
        pretrained: True for the backbone's usual weights, from torch's cache or the network; False for random ones; a
            name of torchvision's weights, or a file of weights. A module that was given is left as it is by True.
        loss_fn: a function of (logits, targets), a list or a dict of them; None: cross entropy, with `multi_label`
            the binary one of each class.
        optimizer: a name of `available_optimizers()`, a function of the parameters, or one of these and a dict of
            arguments. It gets all parameters, frozen ones too, so that they can be unfrozen.
        lr_scheduler: a name of `available_lr_schedulers()`, a function of the optimizer, one of these and a dict of
            arguments, and, as third item, Lightning's configuration ({"interval": "epoch"}).
        metrics: metrics of torchmetrics or functions of (probabilities, targets), one, a list or a dict.
        learning_rate: None: the optimizer's default.
        multi_label: a sample may have any number of labels.

    Raises:
        TaskError: arguments that cannot be used.
        WeightsError: weights that cannot be had, or do not fit.
    """

    backbones = BACKBONES

    def __init__(
        self,
        num_classes: int | None = None,
        labels: Sequence[str] | None = None,
        backbone: Backbone = "resnet18",
        backbone_kwargs: Mapping[str, object] | None = None,
        head: Head = "linear",
        pretrained: bool | str = True,
        loss_fn: Losses | None = None,
        optimizer: OptimizerSpec = "Adam",
        lr_scheduler: SchedulerSpec | None = None,
        metrics: Metrics | None = None,
        learning_rate: float | None = None,
        multi_label: bool = False,
    ) -> None:
        given = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        _check_saved(given)
        count = class_count(num_classes, labels, multi_label)
        if learning_rate is not None and not (isinstance(learning_rate, int | float) and learning_rate > 0):
            raise TaskError(f"learning_rate was given {learning_rate!r}: it must be above 0, or None")
        optimizer_choice.check_optimizer(optimizer)
        optimizer_choice.check_scheduler(lr_scheduler)
        parts = build_parts(backbone, backbone_kwargs or {}, head, count, pretrained)
        super().__init__(
            parts.backbone, parts.head, count, grey=parts.name == DIGITS_NET, num_features=parts.num_features
        )
        self.save_hyperparameters({name: _plain(value) for name, value in given.items()})
        self.labels = list(labels) if labels is not None else None
        self.multi_label, self.notes = multi_label, parts.notes
        self.optimizer_spec, self.scheduler_spec, self.learning_rate = optimizer, lr_scheduler, learning_rate
        self._single_labels = not multi_label and loss_fn is None
        default: Loss = binary_cross_entropy_with_logits if multi_label else functional.cross_entropy
        self.losses = _named(default if loss_fn is None else loss_fn, "loss_fn")
        self._loss_modules = nn.ModuleList([loss for loss in self.losses.values() if isinstance(loss, nn.Module)])
        measures = _named(_default_metric(count, multi_label) if metrics is None else metrics, "metrics")
        if alike := self.losses.keys() & measures.keys():
            raise TaskError(f"a loss and a metric are both called {min(alike)!r}: give one of them in a dict")
        self._functions = {name: of for name, of in measures.items() if not isinstance(of, torchmetrics.Metric)}
        self.train_metrics, self.val_metrics, self.test_metrics = (
            nn.ModuleDict(
                {
                    name: copy.deepcopy(of) if isinstance(of, torchmetrics.Metric) else SampleMean()
                    for name, of in measures.items()
                }
            )
            for _ in range(3)
        )
        means = [*self.losses, *(["total_loss"] if len(self.losses) > 1 else [])]
        self.train_means, self.val_means, self.test_means = (
            nn.ModuleDict({name: SampleMean() for name in means}) for _ in range(3)
        )
        for note in self.notes if pretrained is not False else ():
            say(note, NOTES)

    # ---- training

    def setup(self, stage: str) -> None:
        """Look whether the data are of the classes that the task has.

        Raises:
            TaskError: more classes, others or in another order, or several labels per sample on one side alone.
        """
        if stage != "predict":
            check_classes_of(getattr(self.trainer, "datamodule", None), self)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of a batch, a tensor without dimensions."""
        return self._step(batch, "train")

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Add a batch to `val_...`."""
        self._step(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Add a batch to `test_...`."""
        self._step(batch, "test")

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Logits (n, classes), float32, of images, or of a batch with targets."""
        images = batch if isinstance(batch, Tensor) else batch["input"] if isinstance(batch, Mapping) else batch[0]
        return self._logits(images)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer over all parameters, and its scheduler."""
        optimizer = optimizer_choice.build_optimizer(self.optimizer_spec, self.parameters(), self.learning_rate)
        if self.scheduler_spec is None:
            return optimizer
        scheduler = optimizer_choice.build_scheduler(
            self.scheduler_spec, optimizer, lambda: self.trainer.estimated_stepping_batches
        )
        return cast("OptimizerLRScheduler", {"optimizer": optimizer, "lr_scheduler": scheduler})

    def modules_to_freeze(self) -> nn.Module:
        """What finetuning strategies freeze and unfreeze: the backbone."""
        return self.backbone

    def _logits(self, images: Tensor) -> Tensor:
        try:
            return cast("Tensor", self(images)).float()
        except AssertionError as error:  # of torchvision's and timm's transformers
            raise TaskError(
                f"the backbone {type(self.backbone).__name__} cannot take images of {tuple(images.shape[-2:])} pixels "
                f"({error}): give the data transform_kwargs={{'image_size': ...}}"
            ) from error

    def _step(self, batch: Batch, stage: str) -> Tensor:
        images, targets = (batch["input"], batch["target"]) if isinstance(batch, Mapping) else batch
        if self._single_labels and targets.dim() != 1:
            raise TaskError(
                f"targets are of shape {tuple(targets.shape)}, and a task with one label per sample takes the number "
                f"of a class for each, ({len(images)},): give ImageClassifier multi_label=True, or a loss_fn for these"
            )
        logits = self._logits(images)
        values = {name: loss(logits, targets) for name, loss in self.losses.items()}
        total = sum(values.values(), torch.zeros((), device=logits.device))
        if len(values) > 1:
            values["total_loss"] = total
        means, metrics = getattr(self, f"{stage}_means"), getattr(self, f"{stage}_metrics")
        for name, value in values.items():
            means[name](value.detach(), len(images))
        with torch.no_grad():
            shares = logits.sigmoid() if self.multi_label else logits.softmax(dim=1)
            wanted = (targets > 0.5).long() if self.multi_label else targets
            for name, metric in metrics.items():
                if name in self._functions:
                    metric(torch.as_tensor(self._functions[name](shares, wanted)).float(), len(images))
                else:
                    metric(shares, wanted)
        for name, logged in (*means.items(), *metrics.items()):
            self.log(
                f"{stage}_{name}",
                logged,
                on_step=stage == "train",
                on_epoch=True,
                prog_bar=True,
                batch_size=len(images),
            )
        return total

    @classmethod
    def load_from_checkpoint(
        cls,
        checkpoint_path: str | Path | IO[bytes],
        map_location: MapLocation = None,
        hparams_file: str | Path | None = None,
        strict: bool | None = None,
        weights_only: bool | None = True,
        **kwargs: object,
    ) -> Self:
        """The task of a checkpoint; see Lightning's. No code in the file is run, no pretrained weights are looked for.

        Raises:
            TaskError: the task was made with objects (a module, a function), which are not saved: give them again, by
                the constructor's names.
        """
        given = {"pretrained": False} | kwargs
        return super().load_from_checkpoint(
            checkpoint_path, map_location, hparams_file, strict, weights_only=weights_only, **given
        )

    # ---- what there is

    @staticmethod
    def available_backbones() -> list[str]:
        """Names that `backbone` takes."""
        return available_backbones()

    @staticmethod
    def available_pretrained_weights(backbone: str) -> list[str]:
        """Names that `pretrained` takes for a backbone of torchvision."""
        return available_weights(backbone)

    @staticmethod
    def available_outputs() -> list[str]:
        """Names that `output` of `Trainer.predict` takes."""
        return list(output_names())

    @staticmethod
    def available_optimizers() -> list[str]:
        """Names that `optimizer` takes."""
        return optimizer_choice.available_optimizers()

    @staticmethod
    def available_lr_schedulers() -> list[str]:
        """Names that `lr_scheduler` takes."""
        return optimizer_choice.available_lr_schedulers()

    @staticmethod
    def available_finetuning_strategies() -> list[str]:
        """Names that `strategy` of `Trainer.finetune` takes, sorted."""
        return sorted(strategy_names())


def binary_cross_entropy_with_logits(logits: Tensor, targets: Tensor) -> Tensor:
    """The mean over samples and classes; targets of any type."""
    return functional.binary_cross_entropy_with_logits(logits, targets.float())


def _default_metric(num_classes: int, multi_label: bool) -> Mapping[str, Callable[..., object]]:
    """Over all samples of all ranks: accuracy, or with several labels per sample the F1 score over all labels."""
    if multi_label:
        return {"f1score": torchmetrics.classification.MultilabelF1Score(num_labels=num_classes, average="micro")}
    return {"accuracy": torchmetrics.classification.MulticlassAccuracy(num_classes=num_classes, average="micro")}


def _named(given: object, argument: str) -> dict[str, Callable[..., Tensor]]:
    """Functions by the names they are logged under.

    Raises:
        TaskError: what cannot be called, none at all, or the same name twice.
    """
    if isinstance(given, Mapping):
        pairs = [(str(name), function) for name, function in given.items()]
    else:
        several = given if isinstance(given, list | tuple) else [given]
        pairs = [(_name(function), function) for function in several]
    for name, function in pairs:
        if not callable(function) or isinstance(function, type):
            raise TaskError(f"{argument} has {function!r}: give a function, or an object that can be called")
        if "." in name:
            raise TaskError(f"{argument} has the name {name!r}: leave the dot out")
    if not pairs or len({name for name, _ in pairs}) != len(pairs):
        raise TaskError(f"{argument} has {'the same name twice: give a dict' if pairs else 'nothing in it'}")
    return dict(pairs)


def _name(function: object) -> str:
    """As Flash names it: of a metric, without the kind of classification that torchmetrics puts before it."""
    name = str(getattr(function, "__name__", type(function).__name__)).lower()
    if isinstance(function, torchmetrics.Metric):
        for kind in ("multiclass", "multilabel", "binary"):
            name = name.removeprefix(kind)
    return name


def _plain(value: object) -> object:
    """A value for the checkpoint, which is read without running code: numbers, strings, and collections of them."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    plain: dict[str, object] | list[object]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        plain = {key: _plain(item) for key, item in value.items()}
        inside = list(plain.values())
    elif isinstance(value, list | tuple):
        plain = inside = [_plain(item) for item in value]
    else:
        return f"{_NOT_SAVED}{getattr(value, '__name__', type(value).__name__)}"
    lacking = [item for item in inside if isinstance(item, str) and item.startswith(_NOT_SAVED)]
    return lacking[0] if lacking else plain


def _check_saved(given: Mapping[str, object]) -> None:
    """Ask for what a checkpoint could not hold."""
    lacking = {name: value for name, value in given.items() if isinstance(value, str) and value.startswith(_NOT_SAVED)}
    if lacking:
        told = ", ".join(f"{name} ({value.removeprefix(_NOT_SAVED)})" for name, value in lacking.items())
        raise TaskError(
            f"the checkpoint was made with objects that are not saved in it, {told}: give them to "
            f"load_from_checkpoint as well, as in load_from_checkpoint(FILE, {next(iter(lacking))}=...)"
        )
