"""Classifier: what the command's ImageClassifier and Flash's have in common, a backbone and a head."""

from pytorch_lightning import LightningModule
from torch import Tensor, nn

from flash_launch.errors import TaskError

__all__ = ["Classifier", "check_classes"]


class Classifier(LightningModule):
    """A `backbone` and a `head`: parameters are named `backbone.*` and `head.*`.

    Args:
        backbone: images to features, (n, features) or (n, features, h, w).
        head: features (n, features) to logits (n, classes).
        num_classes: of the data.
        grey: whether the backbone takes grey images as they are; else they get three equal channels.
        num_features: of the backbone, as the user says; None: not to be checked.
    """

    def __init__(
        self,
        backbone: nn.Module,
        head: nn.Module,
        num_classes: int,
        *,
        grey: bool = False,
        num_features: int | None = None,
    ) -> None:
        super().__init__()
        self.num_classes, self._grey, self._num_features = num_classes, grey, num_features
        self.backbone, self.head = backbone, head

    def forward(self, images: Tensor) -> Tensor:
        """Logits (n, num_classes) of normalised images (n, 3, h, w), or grey ones (n, 1, h, w)."""
        if images.shape[1] == 1 and not self._grey:
            images = images.expand(-1, 3, -1, -1)
        features: Tensor = self.backbone(images)
        if features.dim() == 4:  # of a backbone without its pool
            features = features.mean(dim=(2, 3))
        if self._num_features is not None and features.shape[1:] != (self._num_features,):
            raise TaskError(
                f"the backbone {type(self.backbone).__name__} gives features of shape {tuple(features.shape)} for "
                f"{len(images)} images, not ({len(images)}, {self._num_features}): give it with the right num_features"
            )
        logits: Tensor = self.head(features)
        return logits


def check_classes(num_classes: int) -> None:
    """Raise TaskError for a number of classes that is none."""
    if num_classes < 1:
        raise TaskError(f"num_classes was given {num_classes}: it must be 1 or more")
