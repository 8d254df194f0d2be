"""The keys that a setup's JSON may have: what DeepSpeed reads, what DDP takes, what is refused and why; and the check.

Read from DeepSpeed's runtime/config.py, runtime/constants.py and the pydantic models beside them, at `READ_AT`.
tests/launcher/test_setups.py compares the tables with the installed DeepSpeed, so that a new one is noticed.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from flash_launch.errors import SetupError

READ_AT = "0.19.8"
"""The version of DeepSpeed whose configuration code these tables were read from."""

JsonValue: TypeAlias = "bool | int | float | str | list[JsonValue] | dict[str, JsonValue] | None"
Json: TypeAlias = dict[str, JsonValue]

Keys: TypeAlias = Mapping[str, "str | Keys"]
"""A key and the kind of its value (bool, int, number, str, list, or refused), or the keys of its block."""


def _all(kind: str, names: str) -> dict[str, str | Keys]:
    """`names`, separated by blanks, all of one kind."""
    return dict.fromkeys(names.split(), kind)


_MONITOR: Keys = {"enabled": "bool", "output_path": "str", "job_name": "str"}

_ZERO: Keys = {
    "stage": "int",
    **_all(
        "bool", "contiguous_gradients reduce_scatter use_multi_rank_bucket_allreduce allgather_partitions overlap_comm"
    ),
    **_all(
        "bool", "compute_grad_norm load_from_fp32_weights elastic_checkpoint ignore_unused_parameters legacy_stage1"
    ),
    **_all("bool", "round_robin_gradients parameter_alignment memory_efficient_linear pipeline_loading_checkpoint"),
    **_all("bool", "override_module_apply log_trace_cache_warnings enable_sanity_checks zero_quantized_weights"),
    **_all("bool", "zero_quantized_nontrainable_weights zero_quantized_gradients save_muon_momentum_buffer_in_memory"),
    **_all("int", "reduce_bucket_size allgather_bucket_size sub_group_size zero_hpz_partition_size"),
    # Each of these is read under both names.
    **_all("int", "stage3_prefetch_bucket_size stage3_param_persistence_threshold stage3_model_persistence_threshold"),
    **_all("int", "stage3_max_live_parameters stage3_max_reuse_distance stage3_module_granularity_threshold"),
    **_all("int", "prefetch_bucket_size param_persistence_threshold model_persistence_threshold"),
    **_all("int", "max_live_parameters max_reuse_distance module_granularity_threshold"),
    **_all("bool", "stage3_gather_16bit_weights_on_model_save stage3_use_all_reduce_for_fetch_params"),
    **_all("bool", "gather_16bit_weights_on_model_save use_all_reduce_for_fetch_params"),
    **_all("bool", "stage3_allgather_sequential allgather_sequential stage3_gather_fp16_weights_on_model_save"),
    **_all("bool", "cpu_offload cpu_offload_param cpu_offload_use_pin_memory"),
    "zenflow": "refused",
    "leaf_module": _all("list", "classes names name_suffixes"),
    "offload_param": {
        **_all("str", "device nvme_path"),
        **_all("int", "buffer_count buffer_size max_in_cpu"),
        "pin_memory": "bool",
    },
    "offload_optimizer": {
        **_all("str", "device nvme_path"),
        "buffer_count": "int",
        **_all("bool", "pin_memory pipeline_read pipeline_write fast_init super_offload"),
        **_all("number", "ratio cpuadam_cores_perc"),
    },
}

DEEPSPEED_KEYS: Keys = {
    **_all("int", "train_batch_size train_micro_batch_size_per_gpu gradient_accumulation_steps steps_per_print"),
    **_all("number", "gradient_clipping gradient_predivide_factor"),
    **_all("bool", "zero_allow_untested_optimizer zero_force_ds_cpu_optimizer managed_gradient_accumulation"),
    **_all("bool", "prescale_gradients disable_allgather wall_clock_breakdown memory_breakdown dump_state"),
    **_all("bool", "disable_python_gc dataloader_drop_last use_data_before_expert_parallelism"),
    **_all("str", "communication_data_type seq_parallel_communication_data_type gradient_allreduce_op log_level"),
    "vocabulary_size": "int",
    "zero_optimization": _ZERO,
    "bf16": _all(
        "bool",
        "enabled immediate_grad_update check_grad_overflow bf16_master_weights_and_grads bf16_optimizer_states",
    ),
    "fp16": {
        **_all("bool", "enabled auto_cast consecutive_hysteresis fp16_master_weights_and_grads"),
        "loss_scale": "number",
        **_all("int", "initial_scale_power loss_scale_window hysteresis min_loss_scale"),
    },
    "data_types": {**_all("str", "grad_accum_dtype param_dtype buffer_dtype"), "keep_in_fp32_modules": "list"},
    "activation_checkpointing": {
        **_all("bool", "partition_activations contiguous_memory_optimization cpu_checkpointing"),
        **_all("bool", "synchronize_checkpoint_boundary profile"),
        "number_checkpoints": "int",
    },
    "aio": {
        **_all("int", "block_size queue_depth intra_op_parallelism"),
        **_all("bool", "single_submit overlap_events use_gds"),
    },
    "comms_logger": {**_all("bool", "enabled prof_all verbose debug"), "prof_ops": "list"},
    "flops_profiler": {
        **_all("bool", "enabled detailed"),
        **_all("int", "profile_step module_depth top_modules"),
        "recompute_fwd_factor": "number",
        "output_file": "str",
    },
    "timers": {"throughput": _all("bool", "enabled synchronized")},
    "tensorboard": _MONITOR,
    "csv_monitor": _MONITOR,
    # Blocks that are refused whole: their own keys are not looked at.
    **_all("refused", "bfloat16 optimizer scheduler checkpoint torch_autocast wandb comet compile pipeline autotuning"),
    **_all("refused", "tensor_parallel expert_parallel hybrid_engine data_efficiency datastates_ckpt"),
    **_all("refused", "weight_quantization sequence_parallel_size data_parallel_size"),
    **_all("refused", "amp nebula compression_training quantize_training sparse_gradients eigenvalue sparse_attention"),
    **_all("refused", "elasticity graph_harvesting curriculum_learning progressive_layer_drop"),
}
"""What DeepSpeed reads from its JSON, at every level."""

DDP_KEYS: Keys = {
    "engine": "str",
    "ddp": {
        **_all("bool", "broadcast_buffers find_unused_parameters gradient_as_bucket_view static_graph"),
        "bucket_cap_mb": "number",
    },
}
"""A setup for torch's DistributedDataParallel: our own form, since DDP has no file of its own."""


@dataclass(frozen=True)
class Refusal:
    """Why DeepSpeed's key is refused here, although DeepSpeed may know it."""

    reason: str
    """What is wrong with it, and what to do."""
    allowed: tuple[bool | int | float | str, ...] = (False,)
    """Values that are let through; null and a block with `"enabled": false` always are."""


_REMOVED = Refusal(f"DeepSpeed {READ_AT} has no longer this feature: remove the key")
_PARALLEL = Refusal(
    "flash-launch is data parallel: parameters split in any other way cannot be unfrozen between phases. Remove it"
)
_MASTERS = Refusal("transitions carry fp32 masters and fp32 Adam state: remove the key")
_DATA = Refusal("batches come from the run's own data loaders: remove the key")
_QUANTIZED = Refusal(
    "quantized weights or gradients change frozen weights by rounding, and ranks could not be proved equal: remove it"
)
_CHECKPOINTS = Refusal("checkpoints are flash-launch's own, for any number of ranks and any stage: remove the key")
_LAYOUT = Refusal("it lays the optimizer's partitions out in a way that transitions were not proved on: remove it")
_PRECISION = Refusal("the precision comes from the run: remove the block and give --precision")
_AVERAGE = "gradients are averaged over all ranks, once and unscaled: remove the key"
_MONITORING = Refusal("metrics are written to the run folder: remove the block")

REFUSED: Mapping[str, Refusal] = {
    "optimizer": Refusal(
        "the optimizer comes from the run, so that each phase can rebuild it (1-bit optimizers, LAMB, Lion and Muon "
        "keep state that a transition cannot move): "
        "remove the block and give --optimizer, --lr, --weight-decay and --momentum"
    ),
    "scheduler": Refusal(
        "the schedule comes from the run, since DeepSpeed's ignore param groups that are added later: "
        "remove the block and give --lr-schedule and --warmup-steps"
    ),
    "bfloat16": Refusal("this is the old name: write bf16"),
    "torch_autocast": _PRECISION,
    "data_types.buffer_dtype": _PRECISION,
    "bf16.bf16_master_weights_and_grads": _MASTERS,
    "bf16.bf16_optimizer_states": _MASTERS,
    "fp16.fp16_master_weights_and_grads": _MASTERS,
    "checkpoint": _CHECKPOINTS,
    "datastates_ckpt": _CHECKPOINTS,
    "zero_optimization.elastic_checkpoint": _CHECKPOINTS,
    "wandb": _MONITORING,
    "comet": _MONITORING,
    "pipeline": _PARALLEL,
    "tensor_parallel": _PARALLEL,
    "expert_parallel": _PARALLEL,
    "use_data_before_expert_parallelism": _PARALLEL,
    "sequence_parallel_size": Refusal(_PARALLEL.reason, (1,)),
    "data_parallel_size": _PARALLEL,
    "hybrid_engine": Refusal("it is for generating text between training steps: remove the block"),
    "compile": Refusal("DeepCompile keeps a graph of the parameters that trained when it was built: remove the block"),
    "autotuning": Refusal("it starts runs of its own: remove the block"),
    "data_efficiency": _DATA,
    "dataloader_drop_last": _DATA,
    "weight_quantization": _QUANTIZED,
    "zero_optimization.zero_quantized_weights": _QUANTIZED,
    "zero_optimization.zero_quantized_nontrainable_weights": _QUANTIZED,
    "zero_optimization.zero_quantized_gradients": _QUANTIZED,
    "disable_allgather": Refusal("without the all-gather ranks do not get each other's updates: remove the key"),
    "gradient_allreduce_op": Refusal(_AVERAGE, ("mean",)),
    "prescale_gradients": Refusal(_AVERAGE),
    "gradient_predivide_factor": Refusal(_AVERAGE, (1,)),
    "managed_gradient_accumulation": Refusal(
        "DeepSpeed has to find the end of an accumulation itself: remove the key", (True,)
    ),
    "zero_allow_untested_optimizer": Refusal(
        "DeepSpeed would then refuse SGD and optimizers of your own: remove the key", (True,)
    ),
    "zero_optimization.zenflow": Refusal("ZenFlow updates parameters outside the optimizer's step: remove the block"),
    "zero_optimization.legacy_stage1": _REMOVED,
    "zero_optimization.parameter_alignment": _LAYOUT,
    "zero_optimization.offload_optimizer.ratio": Refusal(_LAYOUT.reason, (1,)),
    "zero_optimization.offload_optimizer.super_offload": _LAYOUT,
    "zero_optimization.cpu_offload": Refusal('deprecated: write "offload_optimizer": {"device": "cpu"}'),
    "zero_optimization.cpu_offload_param": Refusal('deprecated: write "offload_param": {"device": "cpu"}'),
    "zero_optimization.cpu_offload_use_pin_memory": Refusal(
        "deprecated: write pin_memory in offload_optimizer and offload_param"
    ),
    "zero_optimization.stage3_gather_fp16_weights_on_model_save": Refusal(
        "deprecated: write stage3_gather_16bit_weights_on_model_save"
    ),
    **dict.fromkeys(
        [
            *("amp", "nebula", "compression_training", "quantize_training", "sparse_gradients", "eigenvalue"),
            *("sparse_attention", "elasticity", "graph_harvesting", "curriculum_learning", "progressive_layer_drop"),
        ],
        _REMOVED,
    ),
    **dict.fromkeys(
        [
            f"zero_optimization.{key}"
            for key in ("mics_shard_size", "mics_hierarchical_params_gather", "zeropp_loco_param")
        ],
        _REMOVED,
    ),
}
"""By dotted path: what is refused knowingly."""


def _is_number(value: JsonValue) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


_KINDS: Mapping[str, tuple[str, Callable[[JsonValue], bool]]] = {
    "bool": ("true or false", lambda value: isinstance(value, bool)),
    # 5e8 is a float to JSON and a whole number to DeepSpeed.
    "int": ("a whole number", lambda value: _is_number(value) and float(str(value)).is_integer()),
    "number": ("a number", _is_number),
    "str": ("a text", lambda value: isinstance(value, str)),
    "list": ("a list", lambda value: isinstance(value, list)),
}


def nearest(given: str, known: Iterable[str]) -> str:
    """`; did you mean X?` for the closest of the known names, else nothing."""
    close = difflib.get_close_matches(given, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def check_keys(template: Json, known: Keys, auto: frozenset[str] = frozenset()) -> None:
    """Every key of the template, at every level; `auto` are the dotted paths that may say "auto".

    Raises:
        SetupError: a key that nobody reads, a value of the wrong type, or a key that is refused.
    """
    _check_block(template, known, "", known, auto)


def _check_block(block: Json, known: Keys, above: str, root: Keys, auto: frozenset[str]) -> None:
    for key, value in block.items():
        path = above + key
        refusal = REFUSED.get(path)
        if refusal is not None:
            off = value is None or (isinstance(value, dict) and value.get("enabled") is False)
            if not off and value not in refusal.allowed:
                raise SetupError(f"{path} is refused: {refusal.reason}")
            continue
        kind = known.get(key)
        if kind is None:
            raise SetupError(f"nobody reads the key {path!r}{_hint(key, known, root)}")
        if value is None or (value == "auto" and path in auto):
            continue
        if value == "auto":
            raise SetupError(
                f'{path}: there is no rule for "auto"; it is known for {", ".join(sorted(auto)) or "no key"}'
            )
        if isinstance(kind, str):
            wanted, fits = _KINDS[kind]
            if not fits(value):
                raise SetupError(f"{path} is {json.dumps(value)}, but must be {wanted}")
        elif isinstance(value, dict):
            _check_block(value, kind, f"{path}.", root, auto)
        else:
            raise SetupError(f"{path} is {json.dumps(value)}, but must be a block with {', '.join(sorted(kind))}")


def _hint(key: str, known: Keys, root: Keys) -> str:
    """Where a key that is unknown here may belong."""
    elsewhere = [path for path in _paths(root) if path.rpartition(".")[2] == key]
    return f"; did you mean {elsewhere[0]!r}?" if elsewhere else nearest(key, known) or nearest(key, _paths(root))


def _paths(known: Keys, above: str = "") -> list[str]:
    """All dotted paths of a table."""
    paths: list[str] = []
    for key, kind in known.items():
        paths.append(above + key)
        if not isinstance(kind, str):
            paths += _paths(kind, f"{above}{key}.")
    return paths
