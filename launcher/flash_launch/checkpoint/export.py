"""Exports a checkpoint's weights as one file under the names that other tools know, a piece of a tensor at a time."""

from __future__ import annotations

import io
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import cast

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.utils.weak import WeakIdKeyDictionary

from flash_launch.checkpoint.hook_states import own_values, replaced_weights
from flash_launch.checkpoint.manifest import FileRecord, Manifest, read, read_part
from flash_launch.checkpoint.rank_state import load_file
from flash_launch.checkpoint.shards import read_headers
from flash_launch.checkpoint.store import Store
from flash_launch.checkpoint.tensor_files import Source, new_file, write_safetensors, write_torch
from flash_launch.config import RunConfig
from flash_launch.errors import ConfigError
from flash_launch.tasks.backbones import DIGITS_NET, WITH_SIDE_HEADS, suitable_image_size
from flash_launch.tasks.image import ImageClassifier, torchvision_state_dict
from flash_launch.tasks.own import build_own, load_class
from flash_strategies.buffers import combined, reduction_of
from flash_strategies.errors import CheckpointError

__all__ = ["Exported", "export_weights"]

_PIECE = 8 * 2**20
_HEAD_BIAS = "weight/head.bias"


@dataclass(frozen=True)
class Exported:
    """A file that was written."""

    tensors: int
    """How many it holds."""
    bytes: int
    """Its size."""
    notes: tuple[str, ...]
    """What the user should know, a sentence each."""


def export_weights(
    store: Store, manifest: Manifest, config: RunConfig, target: Path, *, lightning: bool, dtype: str | None = None
) -> Exported:
    """Write the weights and buffers of a checkpoint as one file.

    A safetensors file has the names of torchvision's own model where the backbone is one of torchvision's, else those
    of the task's state_dict. A Lightning checkpoint has those of the task's state_dict; it is what
    ModelCheckpoint(save_weights_only=True) would write. Parameters that share memory have all their names.

    Args:
        store: the run's checkpoints.
        manifest: the checkpoint, whose files are as they were written.
        config: the run's options.
        target: the file.
        lightning: write a Lightning checkpoint; else a safetensors file.
        dtype: of all floating point tensors: "float32", "bfloat16" or "float16"; None: each as it was trained, in fp32
            where it has an fp32 master, or as the task has it where that is wider.

    Raises:
        CheckpointError: a file cannot be read or written, or the checkpoint is of another task.
        ConfigError: a value is too large for `dtype`.
        TaskError: the task cannot be built.
    """
    sources = _read_sources(store, manifest)
    task = _build_task(config, sources)
    named, notes = _named(task, sources, dtype)
    replaced = replaced_weights(load_file(store.path(manifest.name), 0).hooks)
    for name, tensor in replaced.items():
        if name in named:
            named[name] = _as(Source.of(tensor.reshape(-1)), tensor, dtype, name)
    if replaced:
        notes.append("it has the weights that a callback put in their place, such as averages, as Lightning saves them")
    if lightning:
        values, more = _lightning_values(task, config, store, manifest)
        write = partial(write_torch, values={**values, "state_dict": named})
    else:
        named, more = _public_names(task, config, named)
        at = manifest.position
        told = {"format": "pt", "checkpoint": manifest.name, "step": str(at.step), "epoch": str(at.epoch)}
        write = partial(write_safetensors, tensors=named, metadata=told)
    with new_file(target) as file:
        try:
            write(file)
            unchanged = read(store.path(manifest.name)) == manifest
        except CheckpointError:
            if store.path(manifest.name).exists():
                raise
            unchanged = False
        if not unchanged:
            raise CheckpointError(f"the run deleted or replaced {manifest.name} meanwhile: export again")
    return Exported(len(named), target.stat().st_size, (*notes, *more))


# ---- what the checkpoint holds


def _read_sources(store: Store, manifest: Manifest) -> dict[str, Source]:
    """All weights and buffers, flattened, by key."""
    folder = store.path(manifest.name)
    stored = read_headers(_shards(folder, manifest.files))
    for part, keys in manifest.frozen.items():
        there = read_headers(_shards(store.part_path(part), read_part(store.part_path(part)).files))
        stored |= {key: there[key] for key in keys}
    sources = {
        key: Source((one.numel,), one.dtype, partial(one.pieces, _PIECE))
        for key, one in stored.items()
        if key.startswith(("weight/", "buffer/"))
    }
    averaged = _averaged_buffers(folder, manifest.world_size)
    return sources | {f"buffer/{name}": Source.of(buffer.reshape(-1)) for name, buffer in averaged.items()}


def _shards(folder: Path, files: Mapping[str, FileRecord]) -> list[Path]:
    return [folder / name for name in files if name.endswith(".safetensors")]


def _averaged_buffers(folder: Path, world_size: int) -> dict[str, Tensor]:
    """Buffers that differ between ranks, as a run has them that goes on with other ranks: see rank_state.merged."""
    first = load_file(folder, 0).buffers
    if not first:
        return {}
    ranks = [first, *(load_file(folder, rank).buffers for rank in range(1, world_size))]
    return {
        name: combined([one[name] for one in ranks], reduction_of(name, value, {})) for name, value in first.items()
    }


# ---- the task and its names


def _build_task(config: RunConfig, sources: Mapping[str, Source]) -> pl.LightningModule:
    """The run's task, for its names, shapes and types: without memory for weights if it can be built so."""
    sys.dont_write_bytecode = True  # nothing is left behind in the folder of the user's own task

    def build() -> pl.LightningModule:
        if config.task is not None:
            return build_own(load_class(config.task, pl.LightningModule), config.task_args)
        if _HEAD_BIAS not in sources:
            raise CheckpointError(f"the checkpoint is of no image classification, it has no {_HEAD_BIAS}")
        (classes,) = sources[_HEAD_BIAS].shape
        return ImageClassifier(config.backbone, classes, "none", image_size=_image_size(config), seed=config.seed)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with _parameters_without_memory():
                return build()
        except Exception:  # a constructor that looks at its parameters' values
            return build()


@contextmanager
def _parameters_without_memory() -> Iterator[None]:
    """Parameters lose their memory as soon as a module takes them; all else in a constructor is as ever."""
    taken = WeakIdKeyDictionary()

    def empty(module: nn.Module, name: str, parameter: nn.Parameter) -> nn.Parameter | None:
        if type(parameter) is not nn.Parameter or parameter.is_meta:
            return None
        if parameter not in taken:  # else one that a second module shares
            taken[parameter] = nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)
        return cast("nn.Parameter", taken[parameter])

    hook = register_module_parameter_registration_hook(empty)  # type: ignore[arg-type]
    try:
        yield
    finally:
        hook.remove()


def _image_size(config: RunConfig) -> int | None:
    """Pixels that the backbone was built for, as in `assembly`; None: as torchvision builds it."""
    data = config.data or "digits"
    if ":" in data and not Path(data).expanduser().exists():
        return None
    return config.image_size or suitable_image_size(config.backbone)


def _named(
    task: pl.LightningModule, sources: Mapping[str, Source], dtype: str | None
) -> tuple[dict[str, Source], list[str]]:
    """The tensors of the task's state_dict, and notes; what shares memory is one object.

    Raises:
        CheckpointError: the task has other tensors.
    """
    keys = {id(one): f"weight/{name}" for name, one in task.named_parameters()}
    keys |= {id(one): f"buffer/{name}" for name, one in task.named_buffers()}
    named: dict[str, Source] = {}
    notes: list[str] = []
    by_key: dict[str, Source] = {}
    for name, tensor in task.state_dict(keep_vars=True).items():
        key = keys.get(id(tensor))
        if key is None:
            notes.append(f"{name} is left out: it is neither a parameter nor a buffer, and no checkpoint holds it")
            continue
        if key not in by_key:
            source = sources.get(key, Source((0,), tensor.dtype, lambda: iter(())))
            if source.shape != (tensor.numel(),):
                raise CheckpointError(
                    f"{key} has {source.shape[0]:,} elements in the checkpoint, and in {type(task).__name__} the shape "
                    f"{tuple(tensor.shape)}: export with the task that the run was started with"
                )
            by_key[key] = _as(source, tensor, dtype, name)
        named[name] = by_key[key]
    if unknown := sorted(set(sources) - set(by_key)):
        raise CheckpointError(
            f"the checkpoint has {unknown[0]}, which {type(task).__name__} does not have: export with the task that "
            "the run was started with"
        )
    return named, notes


def _as(source: Source, like: Tensor, dtype: str | None, name: str) -> Source:
    """A source in another tensor's shape, and in the type that is asked for."""
    wanted = source.dtype
    if source.dtype.is_floating_point:
        wanted = getattr(torch, dtype) if dtype is not None else torch.promote_types(source.dtype, like.dtype)

    def pieces() -> Iterator[Tensor]:
        for piece in source.pieces():
            converted = piece.to(wanted)
            infinite = converted.isinf() if wanted.itemsize < piece.dtype.itemsize else None
            if infinite is not None and infinite.any() and piece[infinite].isfinite().any():
                raise ConfigError(
                    f"--dtype {dtype} cannot hold {name}, whose largest value is {piece.abs().max():.4g}: give "
                    "--dtype bfloat16, or leave it out"
                )
            yield converted

    return Source(tuple(like.shape), wanted, pieces)


# ---- the formats


def _public_names(
    task: pl.LightningModule, config: RunConfig, named: dict[str, Source]
) -> tuple[dict[str, Source], list[str]]:
    """The same tensors under torchvision's names, if it has this model, and what to say of them."""
    if config.task is not None or not isinstance(task, ImageClassifier) or task.backbone_name == DIGITS_NET:
        return named, [f"its names are those of {type(task).__name__}'s state_dict"]
    theirs = torchvision_state_dict(task, dict.fromkeys(named, torch.empty(0)))
    options = [f"num_classes={task.num_classes}"]
    size = _image_size(config)
    if task.backbone_name in WITH_SIDE_HEADS:
        options += ["aux_logits=False", "transform_input=True"]
    elif size is not None and task.backbone_name.startswith("vit_"):
        options.append(f"image_size={size}")
    elif size is not None and task.backbone_name.startswith("maxvit_"):
        options.append(f"input_size=({size}, {size})")
    notes = [f"it loads into torchvision.models.get_model({', '.join([repr(task.backbone_name), *options])})"]
    if task.backbone_name.startswith("mnasnet"):
        notes.append(
            "MNASNet looks for version numbers, which no safetensors file holds: state = OrderedDict(load_file(FILE)); "
            "state._metadata = model.state_dict()._metadata"
        )
    return dict(zip(theirs, named.values(), strict=True)), notes


def _lightning_values(
    task: pl.LightningModule, config: RunConfig, store: Store, manifest: Manifest
) -> tuple[dict[str, object], list[str]]:
    """What a Lightning checkpoint holds beside the state_dict, and what to say of it."""
    notes = ["it has no optimizer state: it is for load_from_checkpoint, or Trainer.validate, test and predict"]
    values = {
        **own_values(load_file(store.path(manifest.name), 0).hooks),
        "epoch": manifest.position.epoch,
        "global_step": manifest.position.step,
        "pytorch-lightning_version": version("pytorch-lightning"),
    }
    arguments: dict[str, object] = dict(task.hparams) or dict(config.task_args)
    if config.task is None and isinstance(task, ImageClassifier):
        arguments = {
            "backbone": task.backbone_name,
            "num_classes": task.num_classes,
            "weights": "none",
            "image_size": _image_size(config),
        }
    if not arguments:
        return values, notes
    buffer = io.BytesIO()
    try:
        torch.save(arguments, buffer)
        torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)
    except Exception:  # whatever the user's own objects raise
        notes.append(
            f"its hyper parameters are left out, they are more than numbers, texts, lists and dicts: give them to "
            f"{type(task).__name__}.load_from_checkpoint"
        )
        return values, notes
    values[task.CHECKPOINT_HYPER_PARAMS_KEY] = arguments
    if name := getattr(task, "_hparams_name", None):
        values[task.CHECKPOINT_HYPER_PARAMS_NAME] = name
    return values, notes
