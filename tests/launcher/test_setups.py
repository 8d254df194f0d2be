"""The setups: what each becomes, what is refused and with which words, and what the installed DeepSpeed makes of it."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from importlib import resources
from pathlib import Path

import pytest

from flash_launch import setup_keys, setups
from flash_launch.errors import SetupError
from flash_launch.setup_keys import DEEPSPEED_KEYS, REFUSED, Json, JsonValue, Keys
from flash_launch.setups import (
    ModelNumbers,
    RunNumbers,
    check_machine,
    check_setup,
    load_setup,
    resolve_setup,
    setup_names,
)

RUN = RunNumbers(
    world_size=8,
    procs_per_node=4,
    micro_batch_size=16,
    accumulate=2,
    gradient_clip=None,
    precision="32",
    cuda=True,
    nvme_path="/nvme",
)
MODEL = ModelNumbers(trainable=50_000_000, total=400_000_000, hidden_size=1024, largest_layer=12_600_000)
ZERO = [name for name in setup_names() if name != "ddp"]


def written(folder: Path, template: JsonValue) -> str:
    path = folder / "own.json"
    path.write_text(json.dumps(template))
    return str(path)


def leaves(template: Json, above: str = "") -> dict[str, JsonValue]:
    found: dict[str, JsonValue] = {}
    for key, value in template.items():
        found |= leaves(value, f"{above}{key}.") if isinstance(value, dict) else {above + key: value}
    return found


def resolved(name: str, run: RunNumbers = RUN, model: ModelNumbers = MODEL) -> dict[str, JsonValue]:
    return leaves(resolve_setup(load_setup(name), run, model))


# Templates


@pytest.mark.parametrize("name", setup_names())
def test_every_template_loads_and_leaves_no_auto(name: str) -> None:
    setup = load_setup(name)
    assert setup.name == name
    assert setup.engine == ("ddp" if name == "ddp" else "deepspeed")
    assert setup.stage == (0 if name == "ddp" else int(name[4]))
    assert setup.offload == ("offload" in name or "nvme" in name)
    result = resolve_setup(setup, RUN, MODEL)
    assert "auto" not in json.dumps(result)
    assert "train_batch_size" not in setup.template
    assert json.loads(json.dumps(result)) == result


def test_names_are_the_files_of_the_folder() -> None:
    files = resources.files("flash_launch.ds_configs").iterdir()
    assert sorted(path.name.removesuffix(".json") for path in files if path.name.endswith(".json")) == sorted(
        setup_names()
    )


def test_the_readme_explains_every_key_and_only_those() -> None:
    readme = resources.files("flash_launch.ds_configs").joinpath("README.md").read_text(encoding="utf-8")
    explained = re.findall(r"^\| `([^`]+)` \| \S", readme.partition("## Every key")[2], flags=re.MULTILINE)
    assert len(explained) == len(set(explained))
    assert set(explained) == {key for name in setup_names() for key in leaves(dict(load_setup(name).template))}
    listed = re.findall(r"^\| `([^`]+)` \|", readme.partition("## What")[0], flags=re.MULTILINE)
    assert tuple(listed) == setup_names()


def test_resolving_does_not_change_the_setup() -> None:
    setup = load_setup("zero3_nvme")
    before = json.dumps(setup.template)
    resolve_setup(setup, RUN, MODEL)
    assert json.dumps(setup.template) == before


def test_setups_import_neither_torch_nor_deepspeed() -> None:
    code = (
        "import sys, flash_launch.setups, flash_launch.lr_schedules; print({'torch', 'deepspeed'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "set()"


# What is filled in


def test_ddp_becomes_what_torch_takes() -> None:
    import inspect

    from torch.nn.parallel import DistributedDataParallel

    result = resolve_setup(load_setup("ddp"), RUN, MODEL)
    assert result["find_unused_parameters"] is True
    assert result["gradient_as_bucket_view"] is True
    known = setup_keys.DDP_KEYS["ddp"]
    assert not isinstance(known, str)
    assert known.keys() <= inspect.signature(DistributedDataParallel.__init__).parameters.keys()


@pytest.mark.parametrize("name", ZERO)
def test_the_run_fills_in_batch_clipping_and_precision(name: str) -> None:
    keys = resolved(name, replace(RUN, gradient_clip=0.5, precision="bf16"))
    assert keys["train_micro_batch_size_per_gpu"] == 16
    assert keys["gradient_accumulation_steps"] == 2
    assert keys["gradient_clipping"] == 0.5
    assert (keys["bf16.enabled"], keys["fp16.enabled"]) == (True, False)
    # Left out, DeepSpeed clips at 1.
    assert resolved(name)["gradient_clipping"] == 0.0


@pytest.mark.parametrize(
    ("precision", "enabled"),
    [("32", ""), ("32-true", ""), ("bf16", "bf16"), ("bf16-mixed", "bf16"), ("fp16", "fp16"), ("16-mixed", "fp16")],
)
def test_precisions(precision: str, enabled: str) -> None:
    keys = resolved("zero2", replace(RUN, precision=precision))
    assert [kind for kind in ("bf16", "fp16") if keys[f"{kind}.enabled"]] == ([enabled] if enabled else [])


def test_zero3_sizes_follow_the_hidden_size_and_never_exceed_the_model() -> None:
    keys = resolved("zero3")
    assert keys["zero_optimization.reduce_bucket_size"] == 1024**2
    assert keys["zero_optimization.stage3_prefetch_bucket_size"] == int(0.9 * 1024**2)
    assert keys["zero_optimization.stage3_param_persistence_threshold"] == 10_240
    head = replace(MODEL, trainable=5_000)
    assert resolved("zero3", model=head)["zero_optimization.reduce_bucket_size"] == 5_000
    assert resolved("zero2", model=head)["zero_optimization.reduce_bucket_size"] == 5_000
    huge = replace(MODEL, trainable=10**10)
    assert resolved("zero2", model=huge)["zero_optimization.reduce_bucket_size"] == 200_000_000


@pytest.mark.parametrize("cuda", [False, True])
def test_memory_is_pinned_with_cuda_only(cuda: bool) -> None:
    for name in ("zero2_offload", "zero3_offload", "zero3_nvme"):
        pinned = [value for key, value in resolved(name, replace(RUN, cuda=cuda)).items() if key.endswith("pin_memory")]
        assert pinned == [cuda] * (1 if name == "zero2_offload" else 2)


def test_nvme_has_its_path_and_a_buffer_for_the_largest_layer() -> None:
    keys = resolved("zero3_nvme")
    assert keys["zero_optimization.offload_param.nvme_path"] == "/nvme"
    assert keys["zero_optimization.offload_optimizer.nvme_path"] == "/nvme"
    assert keys["zero_optimization.offload_param.buffer_size"] == 12_600_000


def test_hpz_splits_inside_a_node() -> None:
    assert resolved("zero3_hpz")["zero_optimization.zero_hpz_partition_size"] == 4
    with pytest.raises(SetupError, match=r"4 does not divide 6 ranks \(6 = 1 x 4 \+ 2\).*--setup zero3"):
        check_setup(load_setup("zero3_hpz"), replace(RUN, world_size=6))


def test_a_users_bare_file_is_filled_in(tmp_path: Path) -> None:
    own = written(tmp_path, {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}})
    assert resolved(own, replace(RUN, cuda=False)) == {
        "train_micro_batch_size_per_gpu": 16,
        "gradient_accumulation_steps": 2,
        "gradient_clipping": 0.0,
        "bf16.enabled": False,
        "fp16.enabled": False,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization.stage": 2,
        "zero_optimization.reduce_bucket_size": 50_000_000,
        "zero_optimization.offload_optimizer.device": "cpu",
        "zero_optimization.offload_optimizer.pin_memory": False,
    }


def test_nulls_and_features_that_are_off_are_left_out(tmp_path: Path) -> None:
    own: Json = {
        "train_batch_size": "auto",
        "fp16": None,
        "amp": {"enabled": False},
        "wandb": {"enabled": False},
        "sparse_gradients": False,
        "data_types": {"keep_in_fp32_modules": "auto"},
        "zero_optimization": {"stage": 3.0, "zenflow": None, "mics_shard_size": None, "reduce_bucket_size": 5e8},
    }
    keys = resolved(written(tmp_path, own))
    assert keys["train_batch_size"] == 256
    assert keys["fp16.enabled"] is False
    assert repr(keys["zero_optimization.reduce_bucket_size"]) == "500000000"
    assert not [key for key in keys if key.startswith(("amp", "wandb", "sparse", "data_types.", "zero_optimization.m"))]
    assert "zero_optimization.zenflow" not in keys


# What is refused


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ({"zero_optimisation": {"stage": 2}}, "'zero_optimisation'; did you mean 'zero_optimization'"),
        ({"zero_optimization": {"stag": 2}}, "'zero_optimization.stag'; did you mean 'stage'"),
        ({"zero_optimization": {"stage": 2, "offload_optimizer": {"devise": "cpu"}}}, "did you mean 'device'"),
        ({"reduce_bucket_size": 5, "zero_optimization": {"stage": 2}}, "mean 'zero_optimization.reduce_bucket_size'"),
        ({"bf16": {"enable": True}, "zero_optimization": {"stage": 2}}, "did you mean 'enabled'"),
        ({"engine": "ddp", "ddp": {"find_unused": True}}, "did you mean 'find_unused_parameters'"),
        ({"ddp": {}}, '"engine": "ddp"'),
        ({"engine": "fsdp", "ddp": {}}, '"engine": "ddp"'),
        ({"engine": "ddp", "ddp": {"static_graph": 1}}, "static_graph is 1, but must be true or false"),
        ({"zero_optimization": {"stage": 4}}, r"DeepSpeed \S+ has the ZeRO stages 1, 2 and 3, not 4"),
        ({"zero_optimization": {"stage": 0}}, "--setup ddp"),
        ({"bf16": {"enabled": True}}, "stage 0.*--setup ddp"),
        ({"zero_optimization": True}, "is a block"),
        ({"zero_optimization": [2]}, "must be a block with"),
        ({"zero_optimization": {"stage": "2"}}, 'stage is "2", but must be a whole number'),
        ({"zero_optimization": {"stage": True}}, "stage is true, but must be a whole number"),
        ({"zero_optimization": {"stage": 2, "reduce_bucket_size": 0.5}}, "must be a whole number"),
        ({"zero_optimization": {"stage": 2, "overlap_comm": "auto"}}, 'no rule for "auto"'),
        (
            {"optimizer": {"type": "AdamW", "params": {"lr": "auto"}}},
            "--optimizer, --lr, --weight-decay and --momentum",
        ),
        ({"scheduler": {"type": "WarmupLR"}}, "--lr-schedule and --warmup-steps"),
        ({"zero_optimization": {"stage": 3, "mics_shard_size": 8}}, "no longer"),
        ({"zero_optimization": {"stage": 1, "legacy_stage1": True}}, "no longer"),
        ({"zero_optimization": {"stage": 2, "cpu_offload": True}}, "offload_optimizer"),
        ({"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu", "ratio": 0.5}}}, "not proved"),
        ({"managed_gradient_accumulation": False}, "end of an accumulation"),
        ({"gradient_allreduce_op": "sum"}, "averaged"),
        ({"prescale_gradients": True}, "averaged"),
        ({"compile": {"deepcompile": True}}, "DeepCompile"),
        ([], "one JSON object"),
    ],
)
def test_a_file_is_refused_by_name_and_with_the_fix(tmp_path: Path, template: Json, told: str) -> None:
    with pytest.raises(SetupError, match=told) as refused:
        load_setup(written(tmp_path, template))
    assert "own.json" in str(refused.value)


@pytest.mark.parametrize("path", REFUSED)
def test_everything_in_the_table_of_refusals_is_refused(tmp_path: Path, path: str) -> None:
    value: JsonValue = False if path == "managed_gradient_accumulation" else {"some": "thing"}
    for key in reversed(path.split(".")):
        value = {key: value}
    with pytest.raises(SetupError, match=re.escape(f"{path} is refused: {REFUSED[path].reason}")):
        load_setup(written(tmp_path, value))


def test_what_is_no_setup_at_all(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"did you mean 'zero2_offload'.*zero3_hpz"):
        load_setup("zero2_ofload")
    with pytest.raises(SetupError, match="cannot be read"):
        load_setup(str(tmp_path / "missing.json"))
    for text, told in [
        ("{", "not valid JSON"),
        ('{"bf16": {}, "bf16": {}}', "'bf16' stands twice"),
        ('{"a": NaN}', "NaN"),
    ]:
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(SetupError, match=told):
            load_setup(str(tmp_path / "bad.json"))


@pytest.mark.parametrize(
    ("template", "run", "told"),
    [
        ({"train_batch_size": 128}, {}, r"128, but 16 per rank \(--batch-size\) x 2 \(--accumulate\) x 8 ranks = 256"),
        ({"train_micro_batch_size_per_gpu": 4}, {}, "4, but the run has 16: give --batch-size 4"),
        ({"gradient_accumulation_steps": 4}, {}, "--accumulate 4"),
        ({"gradient_clipping": 1.0}, {}, "--gradient-clip 1.0"),
        (
            {"bf16": {"enabled": True}},
            {},
            "bf16.enabled is true, but the run's precision is fp32: give --precision bf16",
        ),
        ({"bf16": {"enabled": False}}, {"precision": "bf16"}, "give --precision 32"),
        ({"fp16": {"enabled": True}}, {"precision": "bf16"}, "give --precision fp16"),
        ({"data_types": {"param_dtype": "fp16"}}, {}, "param_dtype is fp16"),
        ({}, {"precision": "fp16", "cuda": False}, "fp16 needs a GPU"),
        ({}, {"precision": "fp8"}, "no precision 'fp8'"),
        (
            {"zero_optimization": {"stage": 1}, "data_types": {"grad_accum_dtype": "fp32"}},
            {"precision": "bf16"},
            "stage 2",
        ),
        ({"zero_optimization": {"stage": 2, "offload_param": {"device": "cpu"}}}, {}, "is for stage 3, not 2"),
        ({"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "nvme"}}}, {}, "is for stage 3, not 2"),
        ({"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "gpu"}}}, {}, "write none, cpu or nvme"),
        (
            {"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}}},
            {"nvme_path": None},
            "--nvme-path DIR",
        ),
        ({"zero_optimization": {"stage": 2, "zero_hpz_partition_size": 2}}, {}, "is for stage 3"),
        ({"zero_optimization": {"stage": 3, "zero_hpz_partition_size": 3}}, {}, "3 does not divide 8"),
        ({"zero_optimization": {"stage": 3, "compute_grad_norm": False}}, {}, "compute_grad_norm"),
        (
            {
                "zero_force_ds_cpu_optimizer": True,
                "zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}},
            },
            {},
            "zero_force_ds_cpu_optimizer",
        ),
    ],
)
def test_contradictions_with_the_run_are_refused(
    tmp_path: Path, template: Json, run: dict[str, object], told: str
) -> None:
    setup = load_setup(written(tmp_path, {"zero_optimization": {"stage": 2}} | template))
    with pytest.raises(SetupError, match=told):
        check_setup(setup, replace(RUN, **run))  # type: ignore[arg-type]


def test_numbers_that_agree_are_taken(tmp_path: Path) -> None:
    own = {"train_batch_size": 256, "train_micro_batch_size_per_gpu": 16, "gradient_accumulation_steps": 2}
    check_setup(load_setup(written(tmp_path, own | {"zero_optimization": {"stage": 1}})), RUN)


def test_nvme_without_libaio_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.util.find_library", lambda name: None)
    for name in setup_names():
        if name != "zero3_nvme":
            check_machine(load_setup(name))
    with pytest.raises(SetupError, match="libaio-dev"):
        check_machine(load_setup("zero3_nvme"))


# Against the installed DeepSpeed


def test_the_tables_name_every_field_of_deepspeeds_models() -> None:
    import deepspeed
    from deepspeed.comm.config import CommsLoggerConfig
    from deepspeed.monitor.config import CSVConfig, TensorBoardConfig
    from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from deepspeed.runtime.zero.leaf_module_config import DeepSpeedZeroLeafModuleConfig
    from deepspeed.runtime.zero.offload_config import (
        DeepSpeedZeroOffloadOptimizerConfig,
        DeepSpeedZeroOffloadParamConfig,
    )
    from deepspeed.utils.config import DeepSpeedThroughputTimerConfig

    assert deepspeed.__version__ == setup_keys.READ_AT, "read the tables of setup_keys.py again"
    models = {
        "zero_optimization": DeepSpeedZeroConfig,
        "zero_optimization.offload_param": DeepSpeedZeroOffloadParamConfig,
        "zero_optimization.offload_optimizer": DeepSpeedZeroOffloadOptimizerConfig,
        "zero_optimization.leaf_module": DeepSpeedZeroLeafModuleConfig,
        "bf16": DeepSpeedBF16Config,
        "fp16": DeepSpeedFP16Config,
        "comms_logger": CommsLoggerConfig,
        "tensorboard": TensorBoardConfig,
        "csv_monitor": CSVConfig,
        "timers.throughput": DeepSpeedThroughputTimerConfig,
    }
    kinds = {bool: "bool", int: "int", float: "number", str: "str", list: "list"}
    for path, model in models.items():
        block: str | Keys = DEEPSPEED_KEYS
        for key in path.split("."):
            assert not isinstance(block, str)
            block = block[key]
        assert not isinstance(block, str)
        names = {name for key, field in model.model_fields.items() for name in (key, field.alias) if name}
        assert names == set(block), path
        for key, field in model.model_fields.items():
            if field.annotation in kinds:
                assert block[key] == kinds[field.annotation], f"{path}.{key}"


def test_the_tables_name_every_key_that_deepspeed_asks_for() -> None:
    from deepspeed.runtime.config import DeepSpeedConfig

    asked: set[str] = set()

    class Asked(dict[str, object]):
        """A dict that writes down which keys it is asked for, below its own path."""

        path = ""

        def __contains__(self, key: object) -> bool:
            asked.add(self.path + str(key))
            return super().__contains__(key)

        def __getitem__(self, key: str) -> object:
            asked.add(self.path + key)
            return super().__getitem__(key)

        def get(self, key: str, default: object = None) -> object:  # type: ignore[override]
            asked.add(self.path + key)
            return super().get(key, default)

        def keys(self) -> "Asked":  # type: ignore[override]
            return self

    template = Asked(train_micro_batch_size_per_gpu=1)
    blocks = ("aio", "activation_checkpointing", "flops_profiler", "data_types")
    for name in blocks:
        block = Asked()
        block.path = f"{name}."
        template[name] = block
    DeepSpeedConfig(template)

    top = {path for path in asked if "." not in path}
    # sequence_parallel_size is asked for under torch.distributed only, and by deepspeed.initialize.
    assert top - {"aio"} <= set(DEEPSPEED_KEYS)
    assert set(DEEPSPEED_KEYS) - top == {"sequence_parallel_size", "data_parallel_size", "bfloat16"} - top
    for name in blocks:
        known = DEEPSPEED_KEYS[name]
        assert not isinstance(known, str)
        assert {path.partition(".")[2] for path in asked if path.startswith(f"{name}.")} == set(known)


@pytest.mark.parametrize("name", ZERO)
@pytest.mark.parametrize("precision", ["32", "bf16", "fp16"])
def test_deepspeed_takes_what_was_meant(name: str, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from deepspeed.runtime import config as deepspeed_config

    # What it asks for without a process group, where it would take the world size for 1.
    monkeypatch.setattr(deepspeed_config.dist, "get_rank", lambda: 0)
    monkeypatch.setattr(deepspeed_config.dist, "get_world_size", lambda: RUN.world_size)
    run = replace(RUN, precision=precision, gradient_clip=0.5)
    taken = deepspeed_config.DeepSpeedConfig(resolve_setup(load_setup(name), run, MODEL))
    zero = taken.zero_config
    assert taken.train_batch_size == 16 * 2 * 8
    assert (taken.train_micro_batch_size_per_gpu, taken.gradient_accumulation_steps) == (16, 2)
    assert taken.gradient_clipping == 0.5
    assert taken.zero_allow_untested_optimizer
    assert zero.stage == int(name[4])
    assert zero.reduce_bucket_size == (1024**2 if zero.stage == 3 else 50_000_000)
    assert (taken.bfloat16_config.enabled, taken.float16_config.enabled) == (precision == "bf16", precision == "fp16")
    assert taken.float16_config.loss_scale == 0, "dynamic"
    optimizer = {"zero2_offload": "cpu", "zero3_offload": "cpu", "zero3_nvme": "nvme"}.get(name)
    param = {"zero3_offload": "cpu", "zero3_nvme": "nvme"}.get(name)
    assert (zero.offload_optimizer and zero.offload_optimizer.device) == optimizer
    assert (zero.offload_param and zero.offload_param.device) == param
    assert taken.zero_force_ds_cpu_optimizer == (optimizer is None)
    if optimizer:
        assert zero.offload_optimizer.pin_memory
    if zero.stage == 3:
        assert zero.prefetch_bucket_size == int(0.9 * 1024**2)
        assert zero.param_persistence_threshold == 10_240
        assert zero.zero_hpz_partition_size == (4 if name == "zero3_hpz" else 1)
    if name == "zero3_nvme":
        assert str(zero.offload_param.nvme_path) == "/nvme"
        assert zero.offload_param.buffer_size == 12_600_000
        assert taken.aio_config["queue_depth"] == 8


def test_an_unknown_installed_version_still_names_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise setups.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(setups.metadata, "version", missing)
    assert setups._installed() == "0.19.8 (not installed)"
