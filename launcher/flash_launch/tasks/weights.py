"""Pretrained weights: found by name or in a file, brought to the task's names, checked, and copied in."""

import os
import re
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
import torchvision
from torch import Tensor
from torchvision.models.vision_transformer import interpolate_embeddings

from flash_launch.errors import WeightsError
from flash_launch.tasks.backbones import DIGITS_NET, WITH_SIDE_HEADS, SplitModel
from flash_launch.tasks.digits_net import DIGITS_NET_WEIGHTS
from flash_launch.tasks.weights_choice import Choice, choose
from flash_launch.tasks.weights_file import Tables, read_tables

__all__ = ["load_weights"]

_FILE_ENDINGS = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
_NONE = "none"
_CURE = "Name the backbone they were made for with --backbone, or start from random weights with --weights none"
_PART = re.compile(r"-\d+-of-\d+\.")

# In torchvision's files of DenseNet, "denselayer1.norm1.weight" is called "denselayer1.norm.1.weight".
_OLD_DENSENET_NAME = re.compile(r"(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\.\w+)")


def load_weights(model: SplitModel, name: str, weights: str | None, *, file_only: bool = False) -> tuple[str, ...]:
    """Copy pretrained weights into a model.

    Args:
        model: the model, changed in place.
        name: of the backbone.
        weights: "none" (the random weights stay), a name of torchvision's (DEFAULT, IMAGENET1K_V1, ...) or a file
            (safetensors, what torch.save wrote, or an index of several) with the names of torchvision's model, of an
            ImageClassifier or of its backbone, under any key and after any prefix; FILE:KEY names one of several;
            None: DEFAULT.
        file_only: the model is not one of torchvision's, so its weights have no names there.

    Returns:
        What a user should know about what was done, a sentence each.

    Raises:
        WeightsError: a name or file that does not exist, cannot be downloaded, cannot be read, does not fit, or holds
            NaN or infinity.
    """
    if weights == _NONE:
        return (f"{name} starts from random weights",)
    file, key = _file_and_key(weights or "DEFAULT")
    source, tables = (file, read_tables(Path(file).expanduser())) if file_only else _read(name, file)
    target = {"backbone." + key: value for key, value in model.backbone.state_dict().items()}
    target |= {"head." + key: value for key, value in model.head.state_dict().items()}
    renamed = _new_densenet_name if name.startswith("densenet") else str
    choice = choose(tables, target, model.head_name, renamed, key)
    if choice is None:
        raise _nothing_fits(name, source, tables, target, key)
    return _copy(model, name, source, choice, target)


def _file_and_key(weights: str) -> tuple[str, str | None]:
    """FILE:KEY in two, where there is such a file."""
    file, _, key = weights.rpartition(":")
    if file and not Path(weights).expanduser().exists() and Path(file).expanduser().is_file():
        return file, key.strip(".")
    return weights, None


def _read(name: str, weights: str) -> tuple[str, Tables]:
    """Tensors by the names they have in the file, and where they come from in words."""
    path = Path(weights).expanduser()
    if path.suffix in _FILE_ENDINGS or path.is_file() or (path.is_dir() and os.sep in weights):
        return str(path), read_tables(path)
    if name == DIGITS_NET:
        if weights != "DEFAULT":
            raise WeightsError(f"digits_net has no weights {weights!r}: give DEFAULT, none or a file")
        return "digits_net's own weights (digits 0 to 4)", read_tables(DIGITS_NET_WEIGHTS)
    return _download(name, weights)


def _download(name: str, weights: str) -> tuple[str, Tables]:
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
    return str(chosen), {"": dict(state)}


def _new_densenet_name(name: str) -> str:
    return _OLD_DENSENET_NAME.sub(r"\1\2", name)


def _copy(model: SplitModel, name: str, source: str, choice: Choice, target: Mapping[str, Tensor]) -> tuple[str, ...]:
    # Copied tensor by tensor, not by load_state_dict: its version numbers are lost in a file of tensors alone.
    state = choice.state
    notes = [f"{name} starts from {source}" + f" ({choice.label})" * bool(choice.label)]
    if choice.others:
        notes.append(
            f"{', '.join(choice.others[:5])} in it would fit as well: to take that, give --weights "
            f"{source}:{choice.others[0]}"
        )
    if choice.left_out:
        notes.append(f"not used from it: {', '.join(choice.left_out[:3])}{_more(choice.left_out)}")
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
    _check_fit(name, source, choice, state, target)
    _check_numbers(source, state, target)
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


def _nothing_fits(
    name: str, source: str, tables: Tables, target: Mapping[str, Tensor], key: str | None
) -> WeightsError:
    if key is not None and (found := choose(tables, target, "", str)) is not None:
        labels = [label or "(none needed)" for label in (found.label, *found.others)]
        return WeightsError(f"{source} has nothing for {name} under {key!r}: it has it under {', '.join(labels)}")
    given = {name: value for table in tables.values() for name, value in table.items()}
    return WeightsError(f"{source} does not fit {name}: {_other_names(name, given, target)}")


def _other_names(name: str, given: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> str:
    """What a file's tensors are called beside the backbone's, which few or none of them are called as, and the cure."""
    wanted = {key.removeprefix("backbone."): value for key, value in target.items() if key.startswith("backbone.")}
    called = (
        f"its tensors are called {', '.join(list(given)[:3])}{_more(given)}, "
        f"those of {name} {', '.join(list(wanted)[:3])}{_more(wanted)}"
    )
    shapes = [Counter(tuple(value.shape) for value in of.values() if value.dim() > 1) for of in (wanted, given)]
    if shapes[0] <= shapes[1]:
        return f"{called}. The shapes are those of {name}: save it with the names of torchvision's {name}"
    return f"{called}. {_CURE}"


def _check_numbers(source: str, state: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
    """Refuse what a copy would take over, or change, without a word."""
    for key, value in state.items():
        if value.is_meta or value.layout != torch.strided:
            form = "without its numbers (on the meta device)" if value.is_meta else "as a sparse tensor"
            raise WeightsError(f"{source} holds {key} {form}: save it as a dense tensor with its numbers")
        if target[key].is_floating_point() and not value.is_floating_point():
            raise WeightsError(
                f"{source} holds {key} as {value.dtype}, as quantized files do: give the file of floating-point weights"
            )
    broken = {
        key: int((~value.to(target[key].dtype).isfinite()).sum())
        for key, value in state.items()
        if target[key].is_floating_point()
    }
    broken = {key: count for key, count in broken.items() if count}
    if broken:
        first = next(iter(broken))
        raise WeightsError(
            f"{source} holds NaN or infinity in {first} ({broken[first]:,} of {state[first].numel():,} values)"
            f"{f' and {len(broken) - 1} more tensors' * (len(broken) > 1)}: it was saved by a run that diverged, or is "
            "damaged; give an earlier checkpoint or another file"
        )


def _check_fit(
    name: str, source: str, choice: Choice, state: Mapping[str, Tensor], target: Mapping[str, Tensor]
) -> None:
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
    if not faults:
        return
    if _PART.search(source):
        faults.append("It is one of several parts: give the index file beside it (*.index.json)")
    cure = _CURE
    if choice.matched < len(target) / 2:
        cure = "I" + _other_names(name, state, target)[1:]
    raise WeightsError(f"{source} does not fit {name}: {'. '.join(faults)}. {cure}")


def _shape(tensor: Tensor) -> str:
    return "(" + ", ".join(map(str, tensor.shape)) + ")"


def _more(names: Collection[str]) -> str:
    return f" and {len(names) - 3} more" if len(names) > 3 else ""
