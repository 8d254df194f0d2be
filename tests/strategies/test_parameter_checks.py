"""What an engine cannot hold is refused by name, with what takes it; what it can is not."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from flash_strategies.engines.ddp import DDPEngine
from flash_strategies.errors import ParameterError
from flash_strategies.lightning import FinetuningDeepSpeedStrategy
from flash_strategies.parameter_checks import Holding, averaged_copy, check_callbacks, check_copies, check_parameters
from flash_strategies.plain import Finetuner

DDP, ZERO1, ZERO2, ZERO3 = (Holding(stage) for stage in range(4))
ZERO = (ZERO1, ZERO2, ZERO3)
BF16 = Holding(2, torch.bfloat16)


def task(backbone: nn.Module) -> nn.Module:
    module = nn.Module()
    module.backbone = nn.Sequential(nn.Linear(4, 4), backbone)
    module.head = nn.Linear(4, 2)
    return module


def holding(parameter: torch.Tensor) -> nn.Module:
    module = nn.Module()
    module.weight = nn.Parameter(parameter, requires_grad=parameter.is_floating_point() or parameter.is_complex())
    return task(module)


def shared_memory(overlap: int = 2) -> nn.Module:
    module, memory = nn.Module(), torch.zeros(8)
    module.weight = nn.Parameter(memory[: 4 + overlap])
    module.other = nn.Parameter(memory[4:])
    return task(module)


REFUSED = [
    (task(nn.LazyLinear(4)), (DDP, *ZERO), "backbone.1.weight has no shape yet"),
    (task(nn.LazyBatchNorm1d()), (DDP, *ZERO), "backbone.1.weight has no shape yet"),
    (task(nn.Linear(4, 4, device="meta")), (DDP, *ZERO), "backbone.1.weight is on the device 'meta'"),
    (holding(torch.zeros(2, dtype=torch.complex64)), ZERO, "backbone.1.weight is complex64"),
    (holding(torch.zeros(2, dtype=torch.complex128)), (DDP, *ZERO), "backbone.1.weight is complex128"),
    (holding(torch.zeros(2, dtype=torch.float64)), (*ZERO, BF16), "cast it down: .*setup ddp.* takes it"),
    (holding(torch.zeros(2, dtype=torch.bfloat16)), ZERO, "mix it with other types: .*or --precision bf16"),
    (holding(torch.zeros(2, dtype=torch.float16)), (*ZERO, BF16), "backbone.1.weight is float16"),
    (holding(torch.zeros(2).to_sparse()), (DDP, *ZERO), "has the layout torch.sparse_coo"),
    (holding(torch.zeros(0, 2)), (ZERO3,), "backbone.1.weight has no elements"),
    (task(nn.Embedding(3, 4, sparse=True)), (*ZERO, Holding(cuda=True)), "backbone.1.weight has sparse gradients"),
    (task(nn.EmbeddingBag(3, 4, sparse=True)), ZERO, "backbone.1.weight has sparse gradients"),
    (task(torch.compile(nn.Linear(4, 4), backend="eager")), (ZERO3,), "backbone.1 is compiled"),
    (task(AveragedModel(nn.Linear(4, 4))), (ZERO3,), "backbone.1 is an AveragedModel"),
    (task(torch.jit.script(nn.Linear(4, 4))), (ZERO3,), "backbone.1 is a ScriptModule"),
    (holding(torch.ones(1).expand(4)), (DDP, *ZERO), "backbone.1.weight is an expanded view"),
    (shared_memory(), ZERO, "backbone.1.weight and backbone.1.other are two parameters in the same memory"),
]
TAKEN = [
    (task(torch.jit.script(nn.Linear(4, 4))), (DDP, ZERO1, ZERO2)),
    (shared_memory(overlap=0), (DDP, *ZERO)),
    (holding(torch.zeros(2, dtype=torch.complex64)), (DDP,)),
    (holding(torch.zeros(2, dtype=torch.float64)), (DDP,)),
    (holding(torch.zeros(2, dtype=torch.bfloat16)), (DDP, BF16)),
    (holding(torch.tensor(1.0)), (DDP, *ZERO, BF16)),
    (holding(torch.arange(3)), (DDP, *ZERO, BF16)),
    (holding(torch.zeros(0, 2)), (DDP, ZERO1, ZERO2)),
    (task(nn.Embedding(3, 4, sparse=True)), (DDP,)),
    (task(torch.compile(nn.Linear(4, 4), backend="eager")), (DDP, ZERO1, ZERO2)),
    (task(AveragedModel(nn.Linear(4, 4))), (DDP, ZERO1, ZERO2)),
    (task(nn.BatchNorm1d(4)), (DDP, *ZERO, BF16)),
]


@pytest.mark.parametrize(("module", "holdings", "message"), REFUSED, ids=[row[2] for row in REFUSED])
def test_refused_by_name(module: nn.Module, holdings: tuple[Holding, ...], message: str) -> None:
    for how in holdings:
        with pytest.raises(ParameterError, match=message):
            check_parameters(module, how)


@pytest.mark.parametrize(("module", "holdings"), TAKEN)
def test_taken(module: nn.Module, holdings: tuple[Holding, ...]) -> None:
    for how in holdings:
        assert check_parameters(module, how) == ()


def test_another_layout_is_said_where_it_is_not_kept() -> None:
    module = task(nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last))
    assert check_parameters(module, DDP) == ()
    (note,) = check_parameters(module, ZERO2)
    assert note.startswith("backbone.1.weight: held in the order of the dimensions")


def test_a_copy_that_is_averaged_into_is_known_by_its_values() -> None:
    module = task(nn.Linear(4, 4))
    assert averaged_copy(module) is None
    module.backbone[0].load_state_dict(module.backbone[1].state_dict())
    assert averaged_copy(module) is None  # layers that begin alike, and train
    module.momentum = copy.deepcopy(module.backbone).requires_grad_(False)
    found = averaged_copy(module)
    assert found == "momentum, a copy of backbone that is not trained,"
    for how in (DDP, ZERO1, ZERO2):
        check_copies(found, how)
    with pytest.raises(ParameterError, match="momentum, a copy of backbone"):
        check_copies(found, ZERO3)
    with torch.no_grad():
        for parameter in module.momentum.parameters():
            parameter.add_(1)
    assert averaged_copy(module) is None


def test_weight_averaging_callbacks() -> None:
    from pytorch_lightning.callbacks import EMAWeightAveraging, LearningRateMonitor

    check_callbacks([EMAWeightAveraging()], ZERO2)
    check_callbacks([LearningRateMonitor()], ZERO3)
    with pytest.raises(ParameterError, match="EMAWeightAveraging averages weights"):
        check_callbacks([LearningRateMonitor(), EMAWeightAveraging()], ZERO3)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (torch.optim.AdamW, {}, "which AdamW does not take: give it sparse=False"),
        (torch.optim.SGD, {"momentum": 0.9}, "with momentum 0.9: leave it out"),
        (torch.optim.Adagrad, {"weight_decay": 0.1}, "with weight_decay 0.1: leave it out"),
    ],
)
def test_an_optimizer_that_would_fail_at_a_sparse_gradient(
    kind: type[torch.optim.Optimizer], options: dict[str, float], message: str
) -> None:
    module = task(nn.Embedding(3, 4, sparse=True))
    with pytest.raises(ParameterError, match=message):
        DDPEngine(module, kind(module.parameters(), lr=0.1, **options))
    dense = [parameter for name, parameter in module.named_parameters() if name != "backbone.1.weight"]
    DDPEngine(module, kind(dense, lr=0.1, **options))
    DDPEngine(module, torch.optim.SGD(module.parameters(), lr=0.1))


def test_every_door_looks() -> None:
    module = task(nn.Linear(4, 4).double())
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for stage in (1, 2, 3):
        with pytest.raises(ParameterError, match=r"backbone\.1\.weight is float64"):
            Finetuner(module).deepspeed(optimizer, {"zero_optimization": {"stage": stage}})
    broken = holding(torch.zeros(2, dtype=torch.complex128))
    with pytest.raises(ParameterError, match="complex128"):
        Finetuner(broken).ddp(torch.optim.SGD(broken.parameters(), lr=0.1))
    Finetuner(module).ddp(optimizer)


def test_a_lazy_module_is_named_before_anything_is_frozen() -> None:
    with pytest.raises(ParameterError, match=r"backbone\.1\.weight has no shape yet"):
        Finetuner(task(nn.LazyLinear(4)), ("freeze_unfreeze", 1), max_epochs=2)


def test_what_peft_keeps_beside_a_copy_is_not_averaged() -> None:
    kept = type("ModulesToSaveWrapper", (nn.Module,), {"__module__": "peft.utils.other"})()
    kept.original = nn.Linear(4, 4).requires_grad_(False)
    kept.copy = copy.deepcopy(kept.original).requires_grad_(True)
    assert averaged_copy(task(kept)) is None


def test_plain_lightning_looks_at_weights_before_it_casts_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FinetuningDeepSpeedStrategy, "root_device", torch.device("cpu"))
    strategy = FinetuningDeepSpeedStrategy({"zero_optimization": {"stage": 2}})
    strategy._config_initialized = True
    strategy._lightning_module = holding(torch.zeros(2, dtype=torch.complex64))
    with pytest.raises(ParameterError, match=r"backbone\.1\.weight is complex64"):
        strategy.setup(None)
