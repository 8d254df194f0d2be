"""Pretrained weights: found by name or in a file, brought to the task's names, checked, and copied in."""

import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
import torchvision
from safetensors.torch import load_file
from torch import Tensor
from torchvision.models.vision_transformer import interpolate_embeddings

from flash_launch.errors import WeightsError
from flash_launch.tasks.backbones import DIGITS_NET, WITH_SIDE_HEADS, SplitModel
from flash_launch.tasks.digits_net import DIGITS_NET_WEIGHTS

__all__ = ["load_weights", "read_weights"]

_FILE_ENDINGS = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
_NONE = "none"

# In torchvision's files of DenseNet, "denselayer1.norm1.weight" is called "denselayer1.norm.1.weight".
_OLD_DENSENET_NAME = re.compile(r"(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\.\w+)")


def load_weights(model: SplitModel, name: str, weights: str | None) -> tuple[str, ...]:
    """Copy pretrained weights into a model.

    Args:
        model: the model, changed in place.
        name: of the backbone.
        weights: "none" (the random weights stay), a name of torchvision's (DEFAULT, IMAGENET1K_V1, ...) or a file
            (.safetensors, or .pt and .pth without code) with the names of torchvision's model, of an ImageClassifier
            or of its backbone; None: DEFAULT.

    Returns:
        What a user should know about what was done, a sentence each.

    Raises:
        WeightsError: a name or file that does not exist, cannot be downloaded, cannot be read or does not fit.
    """
    if weights == _NONE:
        return (f"{name} starts from random weights",)
    source, state = read_weights(name, weights or "DEFAULT")
    return _copy(model, name, source, _task_names(state, name, model.head_name))


def read_weights(name: str, weights: str) -> tuple[str, dict[str, Tensor]]:
    """Tensors by the names they have in the file, and where they come from in words."""
    path = Path(weights).expanduser()
    if path.suffix in _FILE_ENDINGS or path.is_file():
        return str(path), _read_file(path)
    if name == DIGITS_NET:
        if weights != "DEFAULT":
            raise WeightsError(f"digits_net has no weights {weights!r}: give DEFAULT, none or a file")
        return "digits_net's own weights (digits 0 to 4)", _read_file(DIGITS_NET_WEIGHTS)
    return _download(name, weights)


def _download(name: str, weights: str) -> tuple[str, dict[str, Tensor]]:
    known = torchvision.models.get_model_weights(name)
    if weights not in known.__members__:
        raise WeightsError(
            f"{name} has no weights {weights!r}: give {', '.join(known.__members__)}, none, "
            f"or a file that exists and ends with {', '.join(_FILE_ENDINGS)}"
        )
    chosen = known[weights]
    try:
        state = chosen.get_state_dict(progress=False, check_hash=True)
    except (OSError, RuntimeError) as error:  # no network, a proxy's answer, a file whose hash is wrong
        raise WeightsError(
            f"weights {chosen} could not be fetched from {chosen.url} ({error}): fetch this file where there is a "
            f"network and put it into {torch.hub.get_dir()}/checkpoints, or name it with --weights FILE"
        ) from error
    return str(chosen), dict(state)


def _read_file(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        why = "is not a file" if path.exists() else "does not exist"
        raise WeightsError(f"weights file {path} {why}: give --weights a file, a name of the backbone's own, or none")
    try:
        content: object = (
            load_file(path)
            if path.suffix == ".safetensors"
            # files that torch wrote before 1.6, as are some of torchvision's, are no archives and cannot be mapped
            else torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
        )
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"weights file {path} holds more than tensors, and its code is not run: save the model's state_dict() alone"
        ) from error
    except Exception as error:  # torch's unpickler fails in any way on what is no weights file
        told = (str(error) or type(error).__name__).splitlines()[0]
        raise WeightsError(
            f"weights file {path} cannot be read ({told}): give a safetensors file, or one that torch.save wrote"
        ) from error
    for wrapped in ("state_dict", "model"):  # a Lightning checkpoint, a checkpoint of torchvision's own scripts
        if isinstance(content, Mapping) and isinstance(content.get(wrapped), Mapping):
            content = content[wrapped]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise WeightsError(f"weights file {path} is not a state_dict, tensors by name: save model.state_dict()")
    return {str(key): value for key, value in content.items()}


def _task_names(state: Mapping[str, Tensor], name: str, head_name: str) -> dict[str, Tensor]:
    """The same tensors as `backbone.*` and `head.*`."""
    state = {key.removeprefix("module."): value for key, value in state.items()}  # saved from DataParallel
    if any(key.startswith("backbone.") for key in state):
        return state
    if name.startswith("densenet"):
        state = {_OLD_DENSENET_NAME.sub(r"\1\2", key): value for key, value in state.items()}
    of_head = head_name + "."
    return {
        "head." + key.removeprefix(of_head) if key.startswith(of_head) else "backbone." + key: value
        for key, value in state.items()
    }


def _copy(model: SplitModel, name: str, source: str, state: dict[str, Tensor]) -> tuple[str, ...]:
    # Copied tensor by tensor, not by load_state_dict: its version numbers are lost in a file of tensors alone.
    target = {"backbone." + key: value for key, value in model.backbone.state_dict().items()}
    target |= {"head." + key: value for key, value in model.head.state_dict().items()}
    notes = [f"{name} starts from {source}"]
    if name in WITH_SIDE_HEADS:
        state = {key: value for key, value in state.items() if not key.startswith(("backbone.aux", "backbone.Aux"))}
    if name.startswith("vit_"):
        notes += _fit_positions(model, state, target)
    of_head = {key for key in state if key.startswith("head.")}
    if any(key not in target or state[key].shape != target[key].shape for key in of_head):
        sizes = [tensors["head.weight"].shape[0] for tensors in (state, target) if "head.weight" in tensors]
        counts = f" ({sizes[0]} classes, not {sizes[1]})" if len(sizes) == 2 else ""
        notes.append(f"its classification layer is left out{counts}: the head starts from random weights")
        state = {key: value for key, value in state.items() if key not in of_head}
    elif not of_head:
        notes.append("it has no classification layer: the head starts from random weights")
    _check_fit(name, source, state, target)
    with torch.no_grad():
        for key, value in state.items():
            target[key].copy_(value)
    return tuple(notes)


def _fit_positions(model: SplitModel, state: dict[str, Tensor], target: Mapping[str, Tensor]) -> list[str]:
    """Resize a vision transformer's position embeddings to its image size."""
    key = "backbone.encoder.pos_embedding"
    if key not in state or state[key].shape == target[key].shape or state[key].shape[2:] != target[key].shape[2:]:
        return []
    size, patch = int(model.backbone.image_size), int(model.backbone.patch_size)  # type: ignore[arg-type]
    try:
        resized = interpolate_embeddings(size, patch, {"encoder.pos_embedding": state[key]})
    except ValueError:  # not a square of patches: told as a shape that does not fit
        return []
    state[key] = resized["encoder.pos_embedding"]
    return [f"its position embeddings are resized to images of {size} pixels"]


def _check_fit(name: str, source: str, state: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
    wrong = [key for key in target if key in state and state[key].shape != target[key].shape]
    # A count of batches, which files from before torch 0.4.1 lack; it has no influence.
    missing = [
        key for key in target if key.startswith("backbone.") and key not in state and "num_batches_tracked" not in key
    ]
    unexpected = sorted(key for key in state if key not in target)
    faults = []
    if wrong:
        shapes = [f"{key} is {_shape(state[key])} in the file and {_shape(target[key])} in {name}" for key in wrong[:3]]
        faults.append(f"{'; '.join(shapes)}{_more(wrong)}")
    if missing:
        faults.append(f"missing are {', '.join(missing[:3])}{_more(missing)}")
    if unexpected:
        faults.append(f"unknown to {name} are {', '.join(unexpected[:3])}{_more(unexpected)}")
    if faults:
        raise WeightsError(
            f"{source} does not fit {name}: {'. '.join(faults)}. "
            "Name the backbone they were made for with --backbone, or start from random weights with --weights none"
        )


def _shape(tensor: Tensor) -> str:
    return "(" + ", ".join(map(str, tensor.shape)) + ")"


def _more(names: list[str]) -> str:
    return f" and {len(names) - 3} more" if len(names) > 3 else ""
