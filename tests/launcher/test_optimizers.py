"""The optimizers: which class in which place, with which numbers."""

import sys
import types

import pytest
import torch

from flash_launch.errors import ConfigError, LaunchError
from flash_launch.optimizers import build_optimizer, decay_groups, no_decay_names, optimizer_names


def groups() -> list[dict[str, object]]:
    return [
        {"params": [torch.nn.Parameter(torch.ones(2))]},
        {"params": [torch.nn.Parameter(torch.ones(3))], "lr": 0.5},
    ]


def build(name: str, *, offload: bool = False, cuda: bool = False) -> torch.optim.Optimizer:
    return build_optimizer(name, groups(), lr=0.1, weight_decay=0.2, momentum=0.7, offload=offload, cuda=cuda)


@pytest.mark.parametrize(("offload", "cuda"), [(False, False), (False, True), (True, False)])
def test_adamw_is_torchs_where_no_gpu_is_offloaded(offload: bool, cuda: bool) -> None:
    adamw = build("adamw", offload=offload, cuda=cuda)
    assert type(adamw) is torch.optim.AdamW
    assert [(group["lr"], group["weight_decay"]) for group in adamw.param_groups] == [(0.1, 0.2), (0.5, 0.2)]


@pytest.mark.parametrize("offload", [False, True])
def test_sgd_is_torchs_everywhere(offload: bool) -> None:
    sgd = build("sgd", offload=offload, cuda=True)
    assert type(sgd) is torch.optim.SGD
    assert [(group["momentum"], group["weight_decay"]) for group in sgd.param_groups] == [(0.7, 0.2), (0.7, 0.2)]


def fake_cpu_adam(monkeypatch: pytest.MonkeyPatch, cls: type) -> None:
    # The real one compiles for over a minute when it is built.
    module = types.ModuleType("deepspeed.ops.adam")
    module.DeepSpeedCPUAdam = cls  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "deepspeed", types.ModuleType("deepspeed"))
    monkeypatch.setitem(sys.modules, "deepspeed.ops", types.ModuleType("deepspeed.ops"))
    monkeypatch.setitem(sys.modules, "deepspeed.ops.adam", module)


def test_adamw_offloaded_from_a_gpu_is_deepspeeds_cpu_adam_in_adamw_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    class CPUAdam(torch.optim.Adam):
        def __init__(self, params: object, *, lr: float, weight_decay: float, adamw_mode: bool) -> None:
            super().__init__(params, lr=lr, weight_decay=weight_decay)  # type: ignore[arg-type]
            self.adamw_mode = adamw_mode

    fake_cpu_adam(monkeypatch, CPUAdam)
    adam = build("adamw", offload=True, cuda=True)
    assert isinstance(adam, CPUAdam)
    assert adam.adamw_mode
    assert [(group["lr"], group["weight_decay"]) for group in adam.param_groups] == [(0.1, 0.2), (0.5, 0.2)]


def test_a_cpu_adam_that_cannot_be_built_is_told_with_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def __init__(self, *args: object, **kwargs: object) -> None:
            raise RuntimeError("failed to build") from OSError("no c++ here")

    fake_cpu_adam(monkeypatch, Broken)
    with pytest.raises(LaunchError, match=r"no c\+\+ here.*C\+\+ compiler"):
        build("adamw", offload=True, cuda=True)


def test_the_arguments_are_those_of_deepspeeds_cpu_adam() -> None:
    import inspect

    from deepspeed.ops.adam import DeepSpeedCPUAdam

    assert {"lr", "weight_decay", "adamw_mode"} <= inspect.signature(DeepSpeedCPUAdam.__init__).parameters.keys()


def test_an_unknown_name_is_told_with_the_nearest() -> None:
    assert optimizer_names() == ("adamw", "sgd")
    with pytest.raises(ConfigError, match="did you mean 'adamw'"):
        build("adam")


# ---- weight decay


class Norms(torch.nn.Module):
    """A layer, a norm, a scalar, and a head that is tied to an embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(4, 3)
        self.layer = torch.nn.Linear(3, 3)
        self.norm = torch.nn.LayerNorm(3)
        self.scale = torch.nn.Parameter(torch.tensor(1.0))
        self.head = torch.nn.Linear(3, 4)
        self.head.weight = self.embedding.weight


@pytest.mark.parametrize(
    ("patterns", "without"),
    [
        (None, {"layer.bias", "norm.weight", "norm.bias", "scale", "head.bias"}),
        ("none", set()),
        ("*.bias, norm.*", {"layer.bias", "norm.weight", "norm.bias", "head.bias"}),
        ("head.weight", {"embedding.weight"}),  # tied: the first of its names is the optimizer's
    ],
)
def test_weight_decay_leaves_out_what_no_decay_names_and_by_default_norms_and_biases(
    patterns: str | None, without: set[str]
) -> None:
    task = Norms()
    assert set(no_decay_names(task, patterns)) == without
    optimizer = build_optimizer(
        "adamw", decay_groups(task, no_decay_names(task, patterns)), lr=0.1, weight_decay=0.2, momentum=0.7,
        offload=False, cuda=False,
    )  # fmt: skip
    names = {id(parameter): name for name, parameter in task.named_parameters()}
    decays = {names[id(p)]: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decays == {name: 0.0 if name in without else 0.2 for name in names.values()}
    assert all(group["params"] for group in optimizer.param_groups)  # an empty one would be a group too many


def test_a_pattern_that_fits_nothing_is_told_with_the_names_there_are() -> None:
    with pytest.raises(ConfigError, match=r"--no-decay \*\.bais fits none of Norms's 7 parameters.*embedding\.weight"):
        no_decay_names(Norms(), "*.weight,*.bais")
