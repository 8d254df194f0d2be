"""What the Accelerate door refuses, with the cure; and one process, which needs no ranks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import DummyOptim, set_seed
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

from flash_strategies import TransitionError, UnsupportedVersionError
from flash_strategies.accelerate import AccelerateFinetuner, private
from flash_strategies.errors import CheckpointError, ParameterError


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Accelerate keeps its state in classes."""
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_CPU"):
        monkeypatch.delenv(name, raising=False)
    yield
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


class Task(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
        self.head = nn.Linear(4, 2)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.backbone(inputs))
        return logits


def made(**options: Any) -> tuple[Accelerator, Task, AccelerateFinetuner, torch.optim.Optimizer]:
    accelerator, task = Accelerator(cpu=True, **options), Task()
    finetuner = AccelerateFinetuner(accelerator, task, ("freeze_unfreeze", 1), max_epochs=2, train_bn=False)
    return accelerator, task, finetuner, torch.optim.SGD(task.parameters(), lr=0.1)


def loader() -> DataLoader[Any]:
    return DataLoader(TensorDataset(torch.randn(12, 4), torch.arange(12) % 2), batch_size=4)


def test_what_is_prepared_already_is_refused() -> None:
    accelerator, task, finetuner, optimizer = made()
    prepared = accelerator.prepare(optimizer)
    with pytest.raises(TransitionError, match=r"AcceleratedOptimizer is prepared already.*bare one"):
        finetuner.prepare(task, prepared)
    with pytest.raises(TransitionError, match="AcceleratedScheduler is prepared already"):
        finetuner.prepare(task, optimizer, accelerator.prepare(torch.optim.lr_scheduler.StepLR(optimizer, 1)))
    model = accelerator.prepare(Task())
    with pytest.raises(TransitionError, match=r"model is prepared already.*finetuner\.prepare"):
        AccelerateFinetuner(accelerator, model, "freeze")


def test_prepare_wants_the_model_and_its_one_optimizer() -> None:
    _, task, finetuner, optimizer = made()
    for wrong in ([task], [optimizer], [Task(), optimizer], [task, optimizer, Task()], [task, optimizer, optimizer]):
        with pytest.raises(TransitionError, match="its one optimizer, in one call"):
            finetuner.prepare(*wrong)
    with pytest.raises(TransitionError, match=r"DummyOptim.*build torch's in the script"):
        finetuner.prepare(task, DummyOptim(task.parameters()))
    finetuner.prepare(task, optimizer)
    with pytest.raises(TransitionError, match="called before, and now with a SGD"):
        finetuner.prepare(optimizer)
    assert finetuner.prepare(loader()).total_batch_size == 4  # type: ignore[attr-defined]


def test_before_prepare_there_is_no_loop() -> None:
    _, _, finetuner, optimizer = made()
    with pytest.raises(TransitionError, match=r"call prepare\(\)"):
        finetuner.begin_epoch(0)
    for build in (lambda: finetuner.ddp(optimizer), lambda: finetuner.deepspeed(optimizer, {})):
        with pytest.raises(TransitionError, match=r"call prepare\(model, optimizer"):
            build()


def test_how_an_accelerator_holds_models(monkeypatch: pytest.MonkeyPatch) -> None:
    task = Task()
    accelerator = Accelerator(cpu=True)

    def refused(match: str) -> None:
        with pytest.raises(TransitionError, match=match):
            AccelerateFinetuner(accelerator, task, "freeze")

    with monkeypatch.context() as patched:
        patched.setattr(type(accelerator), "distributed_type", "FSDP")
        refused(r"by FSDP.*DeepSpeedPlugin with ZeRO stage 1, 2 or 3")
    with monkeypatch.context() as patched:
        patched.setattr(type(accelerator), "distributed_type", "DEEPSPEED")
        plugin = SimpleNamespace(deepspeed_config={"zero_optimization": {"stage": 0}})
        patched.setattr(accelerator, "state", SimpleNamespace(deepspeed_plugin=plugin))
        refused("ZeRO stage is 0")
    with monkeypatch.context() as patched:
        patched.setenv("ACCELERATE_USE_DEEPSPEED", "true")
        refused(r"did not take it.*cpu=True")
    with monkeypatch.context() as patched:
        patched.setenv("WORLD_SIZE", "2")
        refused(r"2 processes were started.*Accelerator\(cpu=True\)")
    with monkeypatch.context() as patched:
        patched.setattr(type(accelerator), "mixed_precision", "fp8")
        refused("fp8")
    assert all(parameter.requires_grad for parameter in task.parameters())


def test_another_version_is_said_and_refused_only_where_something_is_missing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    accelerator = Accelerator(cpu=True)
    monkeypatch.setattr(private.metadata, "version", lambda name: "9.1.0")
    AccelerateFinetuner(accelerator, Task(), "freeze")
    assert "accelerate 9.1.0 is installed, whose private parts were not read (read were 1.15.0)" in caplog.text
    with pytest.raises(UnsupportedVersionError, match=r"9\.1\.0.*no state.*pip install accelerate==1\.15\.0"):
        AccelerateFinetuner(object(), Task(), "freeze")


def test_parameters_are_checked_as_at_every_door() -> None:
    accelerator, task = Accelerator(cpu=True), Task()
    task.head.weight = nn.Parameter(torch.zeros(2, 1).expand(2, 4))
    finetuner = AccelerateFinetuner(accelerator, task, "freeze", train_bn=False)
    with pytest.raises(ParameterError, match=r"head\.weight is an expanded view"):
        finetuner.prepare(task, torch.optim.SGD(task.parameters(), lr=0.1))
    task.head.weight.ds_id = 3  # type: ignore[attr-defined]
    with pytest.raises(TransitionError, match=r"head\.weight was partitioned.*zero3_init_flag=False"):
        AccelerateFinetuner(accelerator, task, "freeze")


def test_a_transition_in_the_midst_of_an_accumulation_is_refused() -> None:
    accelerator, task, finetuner, optimizer = made(gradient_accumulation_steps=2)
    model, optimizer, batches = finetuner.prepare(task, optimizer, loader())
    finetuner.begin_epoch(0)
    for inputs, labels in batches:
        with accelerator.accumulate(model):
            accelerator.backward(nn.functional.cross_entropy(model(inputs), labels))
            optimizer.step()
            optimizer.zero_grad()
        break
    with pytest.raises(TransitionError, match=r"1 micro batches were accumulated.*accelerator\.sync_gradients"):
        finetuner.begin_epoch(1)
    assert "backbone.0.weight" not in finetuner.transitions.trainable


def test_a_second_ddp_is_refused(tmp_path: Path) -> None:
    _, task, finetuner, optimizer = made()
    finetuner.prepare(task, optimizer)
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        wrapped = DistributedDataParallel(task)
        finetuner._in_ddp = True
        with pytest.raises(TransitionError, match=r"second DistributedDataParallel.*flash_strategies\.accelerate"):
            finetuner.begin_epoch(0)
        del wrapped
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_one_process_and_what_accelerate_offers(tmp_path: Path, precision: str) -> None:
    accelerator, task, finetuner, optimizer = made(mixed_precision=precision)
    set_seed(2)
    model, optimizer, batches = finetuner.prepare(task, optimizer, loader())
    assert accelerator.unwrap_model(model) is task
    epochs = []
    for epoch in finetuner.epochs():
        assert batches.iteration == epoch  # type: ignore[attr-defined]
        for inputs, labels in finetuner.batches(batches):
            output = model(inputs)
            assert output.dtype == torch.float32
            assert accelerator.gather_for_metrics(output).shape == (4, 2)
            accelerator.backward(nn.functional.cross_entropy(output, labels))
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        epochs.append(len(finetuner.transitions.trainable))
        accelerator.save_state(str(tmp_path / str(epoch)))
    assert epochs == [2, 6]
    assert finetuner.steps == 6
    weights = {name: value.clone() for name, value in task.state_dict().items()}
    # the first epoch's state, in which the backbone is frozen again; then the last one's
    accelerator.load_state(str(tmp_path / "0"))
    assert finetuner.transitions.trainable == ("head.weight", "head.bias")
    assert finetuner.steps == 3
    assert not torch.equal(task.backbone[0].weight, weights["backbone.0.weight"])
    accelerator.load_state(str(tmp_path / "1"))
    assert len(finetuner.transitions.trainable) == 6
    assert all(torch.equal(value, weights[name]) for name, value in task.state_dict().items())


def test_a_state_without_us_or_of_another_setup_is_refused(tmp_path: Path) -> None:
    accelerator, task, finetuner, optimizer = made()
    finetuner.prepare(task, optimizer)
    accelerator.save_state(str(tmp_path / "state"))
    file = tmp_path / "state" / "finetuner.json"
    text = file.read_text()
    file.write_text(text.replace('"stage": 0', '"stage": 2'))
    with pytest.raises(CheckpointError, match=r"saved at ZeRO stage 2 and this is DDP or one process.*finetuner\.save"):
        accelerator.load_state(str(tmp_path / "state"))
    file.unlink()
    with pytest.raises(CheckpointError, match=r"no finetuner\.json.*after finetuner\.prepare"):
        accelerator.load_state(str(tmp_path / "state"))
