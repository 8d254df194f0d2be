"""Backbones by name: digits_net and every classification model of torchvision, split into backbone and head."""

import difflib
import functools
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torchvision
from torch import Tensor, nn

from flash_launch.errors import TaskError
from flash_launch.tasks.digits_net import DigitsNet

__all__ = ["SplitModel", "backbone_names", "build_backbone", "split_head", "suitable_image_size"]

DIGITS_NET = "digits_net"

# Both have training heads on the side, which are left out: they are of no use to a finetuned network.
WITH_SIDE_HEADS = ("googlenet", "inception_v3")


@dataclass(frozen=True)
class SplitModel:
    """A classification model in two parts; `head(backbone(images))` is what the whole model computed."""

    backbone: nn.Module
    """All but the classification layer: images (n, c, h, w) to features (n, features)."""

    head: nn.Module
    """The classification layer: features to logits (n, classes). Its parameters are `weight` and `bias`."""

    head_name: str
    """The classification layer's name in the whole model: `fc`, `classifier.1`, `heads.head`, ..."""


class ConvHead(nn.Conv2d):
    """SqueezeNet's classification layer: a 1x1 convolution and the mean over all places, from flattened features."""

    def forward(self, input: Tensor) -> Tensor:
        """Logits (n, classes) of features (n, channels * places)."""
        return super().forward(torch.unflatten(input, 1, (self.in_channels, -1, 1))).relu().mean(dim=(2, 3))


@functools.cache
def backbone_names() -> tuple[str, ...]:
    """All names that `build_backbone` takes."""
    return (DIGITS_NET, *torchvision.models.list_models(module=torchvision.models))


def check_backbone(name: str) -> None:
    """Raise TaskError, with the nearest names, for a backbone that does not exist."""
    if name not in backbone_names():
        near = difflib.get_close_matches(name, backbone_names(), n=4, cutoff=0.4)
        hint = f"the nearest are {', '.join(near)}" if near else f"there are {', '.join(backbone_names())}"
        raise TaskError(f"no backbone is called {name!r}: {hint}")


def suitable_image_size(name: str) -> int:
    """Pixels on each side of the images that the backbone was made for: 8, 224, 299, ...

    Raises:
        TaskError: an unknown name.
    """
    check_backbone(name)
    if name == DIGITS_NET:
        return 8
    weights = torchvision.models.get_model_weights(name)["DEFAULT"]
    return int(weights.transforms().crop_size[0])


def build_backbone(
    name: str, num_classes: int, image_size: int | None = None, options: Mapping[str, object] | None = None
) -> SplitModel:
    """Build a model with random weights and split it.

    Args:
        name: one of `backbone_names()`.
        num_classes: outputs of the head.
        image_size: pixels on each side, for the models whose parameters depend on it (ViT, MaxViT); None: theirs.
        options: more arguments for torchvision's function of this name.

    Raises:
        TaskError: an unknown name, an image size that the model cannot take, or unknown options.
    """
    check_backbone(name)
    if name == DIGITS_NET:
        if options:
            raise TaskError(f"{name} takes no arguments, and was given {dict(options)}")
        return SplitModel(DigitsNet(), nn.Linear(DigitsNet.num_features, num_classes), "head")
    chosen: dict[str, object] = {"weights": None, "num_classes": num_classes}
    if name in WITH_SIDE_HEADS:
        # torchvision's weights for these two expect the first normalisation to be undone, as it does with its own.
        chosen |= {"aux_logits": False, "init_weights": True, "transform_input": True}
    if image_size is not None and name.startswith("vit_"):
        chosen["image_size"] = image_size
    if image_size is not None and name.startswith("maxvit_"):
        chosen["input_size"] = (image_size, image_size)
    try:
        return split_head(torchvision.models.get_model(name, **chosen, **(options or {})))
    except TypeError as error:
        if not options:
            raise
        raise TaskError(f"{name} cannot be built with {dict(options)}: {error}") from error
    except (AssertionError, ValueError) as error:
        size = f"--image-size {suitable_image_size(name)}"
        raise TaskError(
            f"{name} cannot be built for images of {image_size} pixels ({error}): it was made for {size}"
        ) from error


def split_head(model: nn.Module) -> SplitModel:
    """Take the classification layer, the last linear layer or convolution, out of a classification model.

    The model goes on as the backbone, under the names it had. No nn.Identity stands in the place of the layer, since it
    would count as a layer of the backbone.

    Raises:
        TaskError: the last layer is not one that can be taken out.
    """
    layers = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    if not layers:
        raise TaskError(f"{type(model).__name__} has no linear layer or convolution to be its head")
    name, layer = layers[-1]
    parent_name, _, own_name = name.rpartition(".")
    parent = model.get_submodule(parent_name)
    after = list(parent.children())[[child for child, _ in parent.named_children()].index(own_name) + 1 :]
    head: nn.Module = layer
    if isinstance(layer, nn.Conv2d):
        if [type(module) for module in after] != [nn.ReLU, nn.AdaptiveAvgPool2d] or layer.kernel_size != (1, 1):
            raise TaskError(f"{type(model).__name__} ends with {name}, a convolution that is not followed by its pool")
        head = ConvHead(layer.in_channels, layer.out_channels, 1)
        head.load_state_dict(layer.state_dict())
    elif after:
        raise TaskError(f"{type(model).__name__} goes on after its last linear layer, {name}")
    if isinstance(parent, nn.Sequential):
        del parent[-1 - len(after) :]
    else:
        delattr(parent, own_name)
        setattr(parent, own_name, _passed_on)  # forward() calls it by this name
    return SplitModel(model, head, name)


def _passed_on(features: Tensor) -> Tensor:
    return features
