"""ImageClassifier of the command: its built-in task, image classification with any backbone."""

from collections import OrderedDict
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from flash_launch.errors import TaskError
from flash_launch.tasks.backbones import DIGITS_NET, build_backbone
from flash_launch.tasks.classifier import Classifier, check_classes
from flash_launch.tasks.sample_mean import SampleMean
from flash_launch.tasks.weights import load_weights

__all__ = ["ImageClassifier", "check_images", "torchvision_state_dict"]


class ImageClassifier(Classifier):
    """A pretrained `backbone` and a new `head`, trained with cross entropy. The optimizer is the run's.

    The command's built-in task; `flash_launch.image` has the one with Flash's arguments.

    Logs `train_loss` (every step; this rank's batch), `train_loss_epoch`, `val_loss` and `val_accuracy` (every epoch;
    means over the samples of all ranks, exact whatever their number).

    Args:
        backbone: a name of `backbone_names()`.
        num_classes: of the data.
        weights: "none" for random ones, a name of torchvision's, or a file; None: the backbone's own.
        image_size: pixels on each side, for backbones whose parameters depend on it (ViT, MaxViT); None: theirs.
        seed: of the random weights, which are the same on every rank.

    Raises:
        TaskError: an unknown backbone, or an image size it cannot take.
        WeightsError: weights that are missing or do not fit.
    """

    def __init__(
        self,
        backbone: str = DIGITS_NET,
        num_classes: int = 5,
        weights: str | None = None,
        *,
        image_size: int | None = None,
        seed: int = 0,
    ) -> None:
        check_classes(num_classes)
        check_classes(num_classes)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            model = build_backbone(backbone, num_classes, image_size)
        notes = load_weights(model, backbone, weights)
        super().__init__(model.backbone, model.head, num_classes, grey=backbone == DIGITS_NET)
        self.notes = notes
        """What a user should know about the weights, a sentence each."""
        self.backbone_name, self.head_name = backbone, model.head_name
        self.train_loss_mean, self.val_loss_mean, self.val_accuracy_mean = (SampleMean() for _ in range(3))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The mean cross entropy of a batch: images (n, c, h, w) and labels (n,), int64."""
        images, labels = batch
        loss = functional.cross_entropy(self(images).float(), labels)
        self.log("train_loss", loss.detach(), on_step=True, on_epoch=False, prog_bar=True)
        self.train_loss_mean.update(loss, len(labels))
        self.log("train_loss_epoch", self.train_loss_mean, on_step=False, on_epoch=True, batch_size=len(labels))
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Add a batch to `val_loss` and `val_accuracy`."""
        images, labels = batch
        logits = self(images).float()
        self.val_loss_mean.update(functional.cross_entropy(logits, labels), len(labels))
        self.val_accuracy_mean.update((logits.argmax(dim=1) == labels).float().mean(), len(labels))
        self.log("val_loss", self.val_loss_mean, on_step=False, on_epoch=True, batch_size=len(labels))
        self.log(
            "val_accuracy", self.val_accuracy_mean, on_step=False, on_epoch=True, prog_bar=True, batch_size=len(labels)
        )


def check_images(task: ImageClassifier, image_size: int) -> None:
    """Send one empty image through the task, to find an image size it cannot take before a run starts.

    Raises:
        TaskError: it cannot.
    """
    training = task.training
    task.eval()
    try:
        with torch.no_grad():
            task(torch.zeros(1, 3, image_size, image_size))
    except (RuntimeError, AssertionError) as error:
        raise TaskError(
            f"{task.backbone_name} cannot take images of {image_size} pixels ({error}): give another --image-size"
        ) from error
    finally:
        task.train(training)


def torchvision_state_dict(task: ImageClassifier, state: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """The weights under the names of torchvision's own model, which loads them strictly.

    That model is `torchvision.models.get_model(task.backbone_name, num_classes=task.num_classes)`, for googlenet and
    inception_v3 with `aux_logits=False, transform_input=True`, for ViT with the task's image size.

    Args:
        task: the task.
        state: weights under the names of `task.state_dict()`, as in a run's model.safetensors; None: the task's own.

    Raises:
        TaskError: a task with the backbone digits_net, which torchvision does not have.
    """
    if task.backbone_name == DIGITS_NET:
        raise TaskError("digits_net is not one of torchvision's models: its weights have no names there")
    state = task.state_dict() if state is None else state
    named: OrderedDict[str, Tensor] = OrderedDict()
    for key, value in state.items():
        own_name = f"{task.head_name}.{key.removeprefix('head.')}" if key.startswith("head.") else key
        named[own_name.removeprefix("backbone.")] = value
    # The version numbers of its modules, as in any state_dict: MNASNet does not load without.
    setattr(named, "_metadata", getattr(task.backbone.state_dict(), "_metadata"))  # noqa: B009, B010
    return named
