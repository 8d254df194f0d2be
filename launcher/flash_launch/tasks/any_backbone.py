"""Backbones of Flash's ImageClassifier: registered ones, torchvision's, timm's, or a module with its features."""

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec

import torchvision
from torch import nn

from flash_launch.errors import TaskError, WeightsError
from flash_launch.tasks.backbones import DIGITS_NET, SplitModel, backbone_names, build_backbone
from flash_launch.tasks.registry import Registry
from flash_launch.tasks.weights import load_weights

__all__ = ["BACKBONES", "Backbone", "Head", "Parts", "available_backbones", "available_weights", "build_parts"]

BACKBONES = Registry("backbones")
"""User-defined ones: functions that take `pretrained` and give `(module, num_features)`."""

Backbone = str | tuple[nn.Module, int]
Head = str | nn.Module | Callable[[int, int], nn.Module]

_TIMM = "timm/"


@dataclass(frozen=True)
class Parts:
    """A backbone and a head that fit together."""

    backbone: nn.Module
    """Images to features, (n, features) or (n, features, h, w)."""

    head: nn.Module
    """Features (n, features) to logits (n, classes)."""

    name: str
    """Of the backbone, for messages."""

    num_features: int | None = None
    """Of the backbone, where a user said it."""

    notes: tuple[str, ...] = ()
    """What a user should know about the weights, a sentence each."""


def available_weights(backbone: str) -> list[str]:
    """What `pretrained` takes for a backbone of torchvision, beside True, False and a file.

    Raises:
        TaskError: an unknown name.
    """
    if backbone not in backbone_names():
        raise TaskError(f"torchvision has no backbone {backbone!r}{_nearest(backbone, list(backbone_names()))}")
    return [] if backbone == DIGITS_NET else list(torchvision.models.get_model_weights(backbone).__members__)


def available_backbones() -> list[str]:
    """Names of all backbones: registered ones, digits_net, torchvision's, and, where timm is installed, its own."""
    names = {*BACKBONES.available_keys(), *backbone_names()}
    return sorted(names) + [_TIMM + name for name in _timm_names()]


def build_parts(
    backbone: object, options: Mapping[str, object], head: object, num_classes: int, pretrained: object
) -> Parts:
    """The backbone with its weights, and a head on it.

    Args:
        backbone: a name of `available_backbones()`, also one of timm's without "timm/", or `(module, num_features)`.
        options: more arguments for the function that makes the backbone.
        head: "linear", a module, or a function of (num_features, num_classes) that makes one.
        num_classes: of the data.
        pretrained: True for the backbone's usual weights, False for random ones, or a name or file of weights.

    Raises:
        TaskError: a backbone or head that does not exist or cannot be built.
        WeightsError: weights that are missing or do not fit.
    """
    if not isinstance(pretrained, bool | str):
        raise TaskError(f"pretrained is {pretrained!r}: give True, False, or a name or file of weights")
    try:
        model, name, notes = _build(backbone, options, num_classes, pretrained)
    except WeightsError as error:
        raise WeightsError(_in_python(str(error))) from error
    notes = tuple(map(_in_python, notes))
    features = getattr(model.head, "in_features", None)
    said = features if name not in backbone_names() else None
    if isinstance(head, str) and head == "linear":
        return Parts(model.backbone, model.head, name, said, notes)
    if not isinstance(features, int):
        raise TaskError(f"{name} ends with a convolution, and takes no other head than 'linear'")
    return Parts(model.backbone, _head(head, features, num_classes), name, said, notes)


def _build(
    backbone: object, options: Mapping[str, object], num_classes: int, pretrained: bool | str
) -> tuple[SplitModel, str, tuple[str, ...]]:
    if not isinstance(backbone, str):
        module, features = _checked_pair(backbone, "backbone")
        if options:
            raise TaskError(f"backbone_kwargs={dict(options)} are for a backbone by name, and a module was given")
        return _loaded_from_file(_with_head(module, features, num_classes), type(module).__name__, pretrained)
    if backbone in BACKBONES:
        made = BACKBONES.get(backbone)(pretrained=pretrained, **options)
        module, features = _checked_pair(made, f"what the backbone {backbone!r} gave")
        return _with_head(module, features, num_classes), backbone, ()
    if backbone in backbone_names():
        model = build_backbone(backbone, num_classes, options=options)
        weights = {True: None, False: "none"}[pretrained] if isinstance(pretrained, bool) else pretrained
        return model, backbone, load_weights(model, backbone, weights)
    return _build_timm(backbone, options, num_classes, pretrained)


def _build_timm(
    given: str, options: Mapping[str, object], num_classes: int, pretrained: bool | str
) -> tuple[SplitModel, str, tuple[str, ...]]:
    name = given.removeprefix(_TIMM)
    if find_spec("timm") is None:
        near = _nearest(name, [*BACKBONES.available_keys(), *backbone_names()])
        raise TaskError(f"no backbone is called {given!r}{near}. For those of timm, install it: pip install timm")
    import timm

    if not timm.is_model(name):
        raise TaskError(f"no backbone is called {given!r}{_nearest(given, available_backbones())}")
    try:
        module = timm.create_model(name, pretrained=pretrained is True, **{"num_classes": 0, **options})
    except TypeError as error:
        raise TaskError(f"{name} cannot be built with backbone_kwargs={dict(options)}: {error}") from error
    except (OSError, RuntimeError, ValueError) as error:  # no network, or no weights of that name
        if pretrained is not True:
            raise
        said = (str(error) or type(error).__name__).splitlines()[0]
        raise WeightsError(
            f"timm's weights of {name} could not be had ({said}): fetch them where there is a network and give the "
            'file, pretrained="FILE", or give pretrained=False for random weights'
        ) from error
    features = getattr(module, "head_hidden_size", None) or module.num_features
    classifier = getattr(module, "default_cfg", {}).get("classifier")
    model = _with_head(module, int(features), num_classes, classifier if isinstance(classifier, str) else "head")
    if pretrained is True:
        return model, name, (f"{name} starts from timm's weights",)
    return _loaded_from_file(model, name, pretrained)


def _loaded_from_file(model: SplitModel, name: str, pretrained: bool | str) -> tuple[SplitModel, str, tuple[str, ...]]:
    """With weights of a file, which is the only way for models that are not torchvision's."""
    if isinstance(pretrained, bool):
        return model, name, ()
    return model, name, load_weights(model, name, pretrained, file_only=True)


def _with_head(module: nn.Module, features: int, num_classes: int, head_name: str = "head") -> SplitModel:
    return SplitModel(module, nn.Linear(features, num_classes), head_name)


def _checked_pair(given: object, who: str) -> tuple[nn.Module, int]:
    if isinstance(given, tuple | list) and len(given) == 2:
        module, features = given
        if isinstance(module, nn.Module) and type(features) is int and features > 0:
            return module, features
    raise TaskError(f"{who} is {given!r}: it must be a name, or a pair (module, num_features)"[:500])


def _head(head: object, features: int, num_classes: int) -> nn.Module:
    if isinstance(head, nn.Module):
        return head
    if isinstance(head, str) or not callable(head):
        raise TaskError(f"head is {head!r}: give 'linear', a module, or a function of (num_features, num_classes)")
    made = head(features, num_classes)
    if not isinstance(made, nn.Module):
        raise TaskError(f"the function given as head made a {type(made).__name__}, not a module")
    return made


def _timm_names() -> list[str]:
    if find_spec("timm") is None:
        return []
    import timm

    return list(timm.list_models())


def _nearest(name: str, names: list[str]) -> str:
    near = difflib.get_close_matches(name, names, n=4, cutoff=0.4)
    return f": the nearest are {', '.join(near)}" if near else f": there are {', '.join(names[:20])}, ..."


def _in_python(message: str) -> str:
    """A message about weights with the words of a constructor for those of the command's options."""
    message = message.replace("--weights none", "pretrained=False").replace("or none", "or False")
    message = re.sub(r"--weights (FILE|\S*[/.]\S*)", r'pretrained="\1"', message)
    return message.replace("--weights", "pretrained=").replace("--backbone", "backbone=")
