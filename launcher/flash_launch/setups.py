"""Setups: how ranks hold the model. A template or the user's file, checked key by key, then filled in from the run.

Pure Python: a wrong file is told in milliseconds, before torch or DeepSpeed is imported.
"""

from __future__ import annotations

import ctypes.util
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata, resources
from pathlib import Path
from typing import Literal, TypeAlias

from flash_launch.errors import SetupError
from flash_launch.setup_keys import (
    DDP_KEYS,
    DEEPSPEED_KEYS,
    READ_AT,
    Json,
    JsonValue,
    Keys,
    check_keys,
    nearest,
)

DType: TypeAlias = Literal["fp32", "bf16", "fp16"]

_PACKAGE = "flash_launch.ds_configs"
_NAMES = ("ddp", "zero1", "zero2", "zero2_offload", "zero3", "zero3_offload", "zero3_nvme", "zero3_hpz")
_PRECISIONS: Mapping[DType, tuple[str, ...]] = {
    "fp32": ("32", "32-true", "fp32", "float32", "float", "torch.float32"),
    "bf16": ("bf16", "bf16-mixed", "bf16-true", "bfloat16", "torch.bfloat16"),
    "fp16": ("16", "16-mixed", "16-true", "fp16", "float16", "half", "torch.float16"),
}
_LARGEST_BUCKET = 200_000_000
"""Elements; the size in Hugging Face's ZeRO-2 templates."""


@dataclass(frozen=True)
class Setup:
    """A template or the user's file: every key is known, but nothing is filled in yet."""

    name: str
    """The template's name, or the file as the user gave it."""
    engine: Literal["ddp", "deepspeed"]
    """What holds the model."""
    stage: int
    """The ZeRO stage; 0 for ddp."""
    template: Mapping[str, JsonValue]
    """The JSON as it was read."""

    @property
    def offload(self) -> bool:
        """Whether the optimizer's state lives outside the accelerator."""
        return _get(self.template, "zero_optimization.offload_optimizer.device") in ("cpu", "nvme")


@dataclass(frozen=True)
class RunNumbers:
    """What a setup needs to know of the run."""

    world_size: int
    """Ranks of the run."""
    procs_per_node: int
    """Ranks on one node."""
    micro_batch_size: int
    """Samples per rank and micro batch."""
    accumulate: int
    """Micro batches per optimizer step."""
    gradient_clip: float | None
    """Greatest norm of the gradient; None: not clipped."""
    precision: str
    """The run's --precision (Lightning's longer names are understood too)."""
    cuda: bool
    """Whether ranks compute on GPUs."""
    nvme_path: str | None = None
    """Folder on a fast local disk, the same path on every node."""


@dataclass(frozen=True)
class ModelNumbers:
    """What a setup needs to know of the model; counts are of elements."""

    trainable: int
    """The most that trains in any phase."""
    total: int
    """All parameters."""
    hidden_size: int
    """Width of the widest block."""
    largest_layer: int
    """The largest layer."""


Rule: TypeAlias = Callable[[Setup, RunNumbers, ModelNumbers], JsonValue]


def _reduce_bucket(setup: Setup, numbers: RunNumbers, model: ModelNumbers) -> JsonValue:
    # At stage 3 a buffer of this size is always held, so it must not be larger than what can ever be in it.
    most = model.hidden_size**2 if setup.stage == 3 else _LARGEST_BUCKET
    return max(1, min(most, model.trainable))


def _prefetch(setup: Setup, numbers: RunNumbers, model: ModelNumbers) -> JsonValue:
    return int(0.9 * model.hidden_size**2)


def _persistence(setup: Setup, numbers: RunNumbers, model: ModelNumbers) -> JsonValue:
    return 10 * model.hidden_size


_ZERO = "zero_optimization"
_OPTIMIZER, _PARAM = f"{_ZERO}.offload_optimizer", f"{_ZERO}.offload_param"
_AUTO: Mapping[str, Rule] = {
    "train_batch_size": lambda setup, run, model: run.micro_batch_size * run.accumulate * run.world_size,
    "train_micro_batch_size_per_gpu": lambda setup, run, model: run.micro_batch_size,
    "gradient_accumulation_steps": lambda setup, run, model: run.accumulate,
    # Left out, DeepSpeed 0.19.8 clips at 1.0.
    "gradient_clipping": lambda setup, run, model: run.gradient_clip or 0.0,
    "bf16.enabled": lambda setup, run, model: dtype_of(run.precision) == "bf16",
    "fp16.enabled": lambda setup, run, model: dtype_of(run.precision) == "fp16",
    # DeepSpeed's own "auto", which it also does when the key is left out.
    "data_types.keep_in_fp32_modules": lambda setup, run, model: None,
    f"{_ZERO}.reduce_bucket_size": _reduce_bucket,
    f"{_ZERO}.stage3_prefetch_bucket_size": _prefetch,
    f"{_ZERO}.prefetch_bucket_size": _prefetch,
    f"{_ZERO}.stage3_param_persistence_threshold": _persistence,
    f"{_ZERO}.param_persistence_threshold": _persistence,
    f"{_ZERO}.zero_hpz_partition_size": lambda setup, run, model: run.procs_per_node,
    f"{_OPTIMIZER}.pin_memory": lambda setup, run, model: run.cuda,
    f"{_PARAM}.pin_memory": lambda setup, run, model: run.cuda,
    f"{_OPTIMIZER}.nvme_path": lambda setup, run, model: run.nvme_path,
    f"{_PARAM}.nvme_path": lambda setup, run, model: run.nvme_path,
    # DeepSpeed swaps parameter by parameter, and each has to fit into one buffer.
    f"{_PARAM}.buffer_size": lambda setup, run, model: max(1, model.largest_layer),
}


def setup_names() -> tuple[str, ...]:
    """Names of the templates, from the one that shares least to the one that shares most."""
    return _NAMES


def load_setup(name_or_file: str) -> Setup:
    """The template of that name, or the user's JSON file: DeepSpeed's, or `{"engine": "ddp", "ddp": {...}}`.

    Raises:
        SetupError: no such name or file, not JSON, a key that nobody reads (the nearest known one is told),
            a value of the wrong type, or something that is refused knowingly, with the reason.
    """
    if name_or_file in _NAMES:
        text = resources.files(_PACKAGE).joinpath(f"{name_or_file}.json").read_text(encoding="utf-8")
    elif name_or_file.endswith(".json"):
        try:
            text = Path(name_or_file).expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not a text file in UTF-8"
            raise SetupError(
                f"--setup {name_or_file} cannot be read, {why}: give a JSON file that exists, or a name of "
                f"{', '.join(_NAMES)}"
            ) from None
    else:
        raise SetupError(
            f"there is no setup {name_or_file!r}{nearest(name_or_file, _NAMES) or '.'} Give one of "
            f"{', '.join(_NAMES)}, or a DeepSpeed JSON file, whose name ends with .json"
        )
    try:
        template = json.loads(text, object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
    except (json.JSONDecodeError, SetupError) as error:
        raise SetupError(f"setup {name_or_file}: not valid JSON: {error}") from None
    if not isinstance(template, dict):
        raise SetupError(f"setup {name_or_file}: the file must hold one JSON object, not {type(template).__name__}")
    return setup_of(name_or_file, template)


def setup_of(name: str, template: Json) -> Setup:
    """The setup that a JSON object describes.

    Args:
        name: what messages call it.
        template: as in a file.

    Raises:
        SetupError: as `load_setup`.
    """
    try:
        return _checked(name, template)
    except SetupError as error:
        raise SetupError(f"setup {name}: {error}") from None


def dtype_of(precision: str) -> DType:
    """fp32, bf16 or fp16, of `--precision` and of Lightning's longer names.

    Raises:
        SetupError: an unknown name.
    """
    for dtype, names in _PRECISIONS.items():
        if precision in names:
            return dtype
    raise SetupError(f"there is no precision {precision!r}; give --precision 32, bf16 or fp16")


def check_setup(setup: Setup, numbers: RunNumbers) -> None:
    """The setup against the run, before a model is built.

    Raises:
        SetupError: numbers that contradict each other, with the arithmetic; a precision or a feature that does not go
            with the run; each with the fix.
    """
    if dtype_of(numbers.precision) == "fp16" and not numbers.cuda:
        raise SetupError(f"--precision {numbers.precision} needs a GPU, and there is none: give --precision bf16 or 32")
    try:
        if setup.engine == "deepspeed":
            _check_batch(setup.template, numbers)
            _check_precision(setup, dtype_of(numbers.precision))
            _check_zero(setup, numbers)
    except SetupError as error:
        raise SetupError(f"setup {setup.name}: {error}") from None


def check_machine(setup: Setup) -> None:
    """What a setup needs of the machine that trains, which may not be the one that submits.

    Raises:
        SetupError: NVMe offload without libaio, which DeepSpeed's async_io is built on.
    """
    devices = (_get(setup.template, f"{block}.device") for block in (_OPTIMIZER, _PARAM))
    if "nvme" in devices and ctypes.util.find_library("aio") is None:
        raise SetupError(
            f"setup {setup.name}: offload to NVMe uses DeepSpeed's async_io, which needs libaio and its headers: "
            "install libaio-dev (Debian, Ubuntu) or libaio-devel (Red Hat), or offload to the CPU (zero3_offload)"
        )


def resolve_setup(setup: Setup, numbers: RunNumbers, model: ModelNumbers) -> Json:
    """What DeepSpeed is given, with no "auto" left; for ddp the arguments of DistributedDataParallel.

    Raises:
        SetupError: as `check_setup`.
    """
    check_setup(setup, numbers)
    if setup.engine == "ddp":
        options = setup.template.get("ddp") or {}
        assert isinstance(options, dict)
        return {key: value for key, value in options.items() if value is not None}
    filled: Json = json.loads(json.dumps(setup.template))
    for path in ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping"):
        _set_default(filled, path, "auto")
    for path in ("bf16.enabled", "fp16.enabled", f"{_ZERO}.reduce_bucket_size"):
        _set_default(filled, path, "auto")
    _set_default(filled, "zero_allow_untested_optimizer", True)
    for block in (_OPTIMIZER, _PARAM):
        if _get(filled, f"{block}.device") in ("cpu", "nvme"):
            _set_default(filled, f"{block}.pin_memory", "auto")
        if _get(filled, f"{block}.device") == "nvme":
            _set_default(filled, f"{block}.nvme_path", "auto")
    if setup.offload:
        _set_default(filled, "zero_force_ds_cpu_optimizer", False)
    return _resolved(filled, DEEPSPEED_KEYS, "", lambda path: _AUTO[path](setup, numbers, model))


def _checked(name: str, template: Json) -> Setup:
    if "engine" in template or "ddp" in template:
        check_keys(template, DDP_KEYS)
        if template.get("engine") != "ddp":
            raise SetupError('a file with a "ddp" block has "engine": "ddp"; a DeepSpeed file has neither')
        return Setup(name, "ddp", 0, template)
    if isinstance(template.get(_ZERO), bool):
        raise SetupError('"zero_optimization" is a block: write {"stage": 2} instead of true')
    check_keys(template, DEEPSPEED_KEYS, frozenset(_AUTO))
    stage = _get(template, f"{_ZERO}.stage")
    if not stage:
        raise SetupError(
            "stage 0 is DDP through DeepSpeed: give --setup ddp, or a zero_optimization.stage of 1, 2 or 3"
        )
    if stage not in (1, 2, 3):
        raise SetupError(f"DeepSpeed {_installed()} has the ZeRO stages 1, 2 and 3, not {stage}")
    assert isinstance(stage, int | float)
    return Setup(name, "deepspeed", int(stage), template)


def _check_batch(template: Mapping[str, JsonValue], numbers: RunNumbers) -> None:
    micro, accumulate, world = numbers.micro_batch_size, numbers.accumulate, numbers.world_size
    if min(micro, accumulate, world, numbers.procs_per_node) < 1:
        raise SetupError(f"batch size {micro}, accumulation {accumulate} and {world} ranks must all be at least 1")
    wanted: Mapping[str, tuple[float, str]] = {
        "train_micro_batch_size_per_gpu": (micro, "--batch-size"),
        "gradient_accumulation_steps": (accumulate, "--accumulate"),
        "gradient_clipping": (numbers.gradient_clip or 0.0, "--gradient-clip"),
    }
    for key, (value, option) in wanted.items():
        given = template.get(key)
        if given not in (None, "auto", value):
            raise SetupError(f'{key} is {given}, but the run has {value}: give {option} {given}, or write "auto"')
    total = template.get("train_batch_size")
    if total not in (None, "auto", micro * accumulate * world):
        raise SetupError(
            f"train_batch_size is {total}, but {micro} per rank (--batch-size) x {accumulate} (--accumulate) "
            f"x {world} ranks = {micro * accumulate * world}: leave it out, or change one of the three"
        )


def _check_precision(setup: Setup, dtype: DType) -> None:
    for kind in ("bf16", "fp16"):
        enabled = _get(setup.template, f"{kind}.enabled")
        if isinstance(enabled, bool) and enabled != (dtype == kind):
            raise SetupError(
                f"{kind}.enabled is {str(enabled).lower()}, but the run's precision is {dtype}: "
                f'give --precision {kind if enabled else "32"}, or write "auto"'
            )
    param = _get(setup.template, "data_types.param_dtype")
    if isinstance(param, str) and dtype_of(param) != dtype:
        raise SetupError(f"data_types.param_dtype is {param}, but the run's precision is {dtype}: leave it out")
    gradients = _get(setup.template, "data_types.grad_accum_dtype")
    offload = _get(setup.template, f"{_OPTIMIZER}.device") == "cpu"
    if dtype == "bf16" and setup.stage == 1 and not offload and gradients in _PRECISIONS["fp32"]:
        raise SetupError(
            "bf16 at stage 1 with data_types.grad_accum_dtype fp32 is another optimizer inside DeepSpeed, with "
            "partitions that transitions do not know: leave grad_accum_dtype out, or use stage 2"
        )


def _check_zero(setup: Setup, numbers: RunNumbers) -> None:
    zero, stage = setup.template[_ZERO], setup.stage
    assert isinstance(zero, dict)
    if zero.get("compute_grad_norm") is False and (stage == 3 or numbers.gradient_clip):
        raise SetupError("compute_grad_norm: false is for stages 1 and 2 without --gradient-clip: leave it out")
    if setup.offload and setup.template.get("zero_force_ds_cpu_optimizer"):
        raise SetupError(
            "zero_force_ds_cpu_optimizer: true refuses every optimizer but DeepSpeed's CPU Adam, "
            "and the run chooses the optimizer (--optimizer): leave it out"
        )
    hpz = zero.get("zero_hpz_partition_size")
    size = numbers.procs_per_node if hpz == "auto" else hpz
    if isinstance(size, int | float) and size > 1:
        if stage != 3:
            raise SetupError(f"zero_hpz_partition_size is for stage 3, not {stage}: leave it out")
        if numbers.world_size % size:
            raise SetupError(
                f"zero_hpz_partition_size {size:g} does not divide {numbers.world_size} ranks "
                f"({numbers.world_size} = {numbers.world_size // size:g} x {size:g} + {numbers.world_size % size:g}): "
                "give every node the same number of ranks, or --setup zero3"
            )
    for block in (_OPTIMIZER, _PARAM):
        device = _get(setup.template, f"{block}.device") or "none"
        if device not in ("none", "cpu", "nvme"):
            raise SetupError(f"{block}.device is {device!r}: write none, cpu or nvme")
        if device != "none" and stage < 3 and (block == _PARAM or device == "nvme"):
            raise SetupError(f"{block}.device {device} is for stage 3, not {stage}: use zero3_offload or zero3_nvme")
        if device == "nvme" and _get(setup.template, f"{block}.nvme_path") in (None, "auto") and not numbers.nvme_path:
            raise SetupError(
                f"{block}.nvme_path is not known: give --nvme-path DIR, a folder on a local disk of every node"
            )


def _resolved(block: Mapping[str, JsonValue], known: Keys, above: str, auto: Callable[[str], JsonValue]) -> Json:
    """The block without what is null or switched off, and with every "auto" replaced."""
    out: Json = {}
    for key, value in block.items():
        kind = known.get(key, "refused")
        value = auto(above + key) if value == "auto" else value
        if value is None or kind == "refused":
            continue
        if isinstance(value, dict) and not isinstance(kind, str):
            value = _resolved(value, kind, f"{above}{key}.", auto)
        out[key] = int(value) if kind == "int" and isinstance(value, float) else value
    return out


def _get(template: Mapping[str, JsonValue], path: str) -> JsonValue:
    value: JsonValue = dict(template)
    for key in path.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _set_default(template: Json, path: str, value: JsonValue) -> None:
    *above, key = path.split(".")
    for name in above:
        inner = template.get(name)
        if not isinstance(inner, dict):
            inner = template[name] = {}
        template = inner
    if template.get(key) is None:
        template[key] = value


def _no_duplicates(pairs: list[tuple[str, JsonValue]]) -> Json:
    keys = [key for key, _ in pairs]
    if twice := sorted({key for key in keys if keys.count(key) > 1}):
        raise SetupError(f"the key {twice[0]!r} stands twice in one block")
    return dict(pairs)


def _no_constant(name: str) -> JsonValue:
    raise SetupError(f"{name} is no number in JSON")


def _installed() -> str:
    try:
        return metadata.version("deepspeed")
    except metadata.PackageNotFoundError:
        return f"{READ_AT} (not installed)"
