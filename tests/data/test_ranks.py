"""Over real ranks on gloo: metrics equal those of one process, and orders that differ are an error, not a hang."""

import os
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pytorch_lightning import LightningDataModule, Trainer
from torch import distributed, multiprocessing
from torch.nn import functional
from torch.utils.data import DataLoader, Sampler, TensorDataset

from flash_launch.data import build_data
from flash_launch.data.own import OwnData, TaskData
from flash_launch.data.run_data import RunData
from flash_launch.errors import DataError
from flash_launch.tasks.image import ImageClassifier

SIZE = 11


def _on_rank(rank: int, function: Callable[[Path], object], folder: Path, world_size: int, port: int) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_RANK": str(rank), "NODE_RANK": "0"}
    os.environ |= {"RANK": str(rank), "RANKS": str(world_size), "OMP_NUM_THREADS": "1"}
    torch.set_num_threads(1)
    torch.save(function(folder), folder / f"{rank}.pt")
    os._exit(
        0
    )  # gloo's threads may hold tensors, which end a process by SIGABRT while Python ends (pytorch/pytorch#179291)


def on_ranks(function: Callable[[Path], object], folder: Path, world_size: int) -> list[object]:
    """What the function returns on each of these ranks, in order."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.spawn(_on_rank, (function, folder, world_size, port), world_size, join=False)
    try:
        end = time.monotonic() + 120
        while not context.join(timeout=end - time.monotonic()):
            if time.monotonic() > end:
                pytest.fail("the ranks took longer than 120 s")
    finally:
        for process in context.processes:
            process.kill()
    return [torch.load(folder / f"{rank}.pt") for rank in range(world_size)]


def samples() -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    return TensorDataset(
        torch.randn(SIZE, 1, 8, 8, generator=generator), torch.randint(5, (SIZE,), generator=generator)
    )


class Samples(LightningDataModule):
    num_classes = 5

    def setup(self, stage: str) -> None:
        assert self.trainer is not None
        self.data = samples()

    def train_dataloader(self) -> DataLoader[tuple[torch.Tensor, ...]]:
        return DataLoader(self.data, 2, shuffle=True)

    def val_dataloader(self) -> list[DataLoader[tuple[torch.Tensor, ...]]]:
        return [DataLoader(self.data, 2)]


class Trained(ImageClassifier):
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.01)

    def on_train_epoch_start(self) -> None:
        self.seen: list[torch.Tensor] = []

    def on_train_batch_start(self, batch: tuple[torch.Tensor, ...], batch_idx: int) -> None:
        self.seen += list(batch[0].flatten(1)[:, 0])


class WithLoaders(Trained):
    def train_dataloader(self) -> DataLoader[tuple[torch.Tensor, ...]]:
        return DataLoader(samples(), 2, shuffle=True)


def trainer() -> Trainer:
    world_size = int(os.environ["RANKS"])
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    return Trainer(
        accelerator="cpu",
        devices=world_size,
        strategy="ddp" if world_size > 1 else "auto",
        max_epochs=2,
        logger=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        **quiet,
    )


def validated(folder: Path) -> dict[str, float]:
    trainer().validate(task := ImageClassifier(), datamodule=OwnData(Samples(), seed=0), verbose=False)
    return {name: float(value) for name, value in task.trainer.callback_metrics.items()}


def trained(folder: Path) -> dict[str, object]:
    return {"fitted": fitted(), "differed": differed(), "validated": validated(folder)}


def fitted() -> list[dict[str, object]]:
    results: list[dict[str, object]] = []
    with_loaders = WithLoaders()
    runs: list[tuple[Trained, RunData]] = [
        (Trained(), OwnData(Samples(), seed=0)),
        (with_loaders, TaskData(with_loaders, seed=0)),
        (Trained(), build_data("digits", batch_size=32, seed=0)),
    ]
    for task, data in runs:
        trainer().fit(task, datamodule=data)
        metrics = {name: float(value) for name, value in task.trainer.callback_metrics.items()}
        digest = float(sum(parameter.detach().double().sum() for parameter in task.parameters()))
        results.append({"metrics": metrics, "seen": torch.stack(task.seen), "digest": digest})
    return results


class Differing(Sampler[int]):
    def __iter__(self):
        return iter([0, 1] if distributed.get_rank() == 0 else [1, 0])

    def __len__(self) -> int:
        return 2


class DifferingSamples(Samples):
    def train_dataloader(self) -> DataLoader[tuple[torch.Tensor, ...]]:
        return DataLoader(self.data, 2, sampler=Differing())


def differed() -> str:
    with pytest.raises(DataError) as told:
        trainer().fit(Trained(), datamodule=OwnData(DifferingSamples(), seed=0))
    return str(told.value)


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, object]]:
    return on_ranks(trained, tmp_path_factory.mktemp("ranks"), 2)


@pytest.mark.parametrize("world_size", [1, 2, pytest.param(3, marks=pytest.mark.slow)])
def test_metrics_over_ranks_equal_those_of_one_process(
    world_size: int, tmp_path: Path, two_ranks: list[dict[str, object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    task = ImageClassifier().eval()
    images, labels = samples().tensors
    with torch.no_grad():
        logits = task(images)
    loss = float(functional.cross_entropy(logits, labels))
    accuracy = float((logits.argmax(dim=1) == labels).float().mean())
    if world_size == 1:
        monkeypatch.setenv("RANKS", "1")
        ranks = [validated(tmp_path)]
    elif world_size == 2:
        ranks = [rank["validated"] for rank in two_ranks]
    else:
        ranks = on_ranks(validated, tmp_path, world_size)
    for metrics in ranks:
        assert metrics == {"val_loss": pytest.approx(loss, rel=1e-6), "val_accuracy": pytest.approx(accuracy, rel=1e-6)}


def test_own_data_and_own_loaders_are_trained_on_over_ranks(two_ranks: list[dict[str, object]]) -> None:
    ranks = [rank["fitted"] for rank in two_ranks]
    for first, second in zip(*ranks, strict=True):
        assert first["digest"] == second["digest"]
        shared = {"train_loss_epoch", "val_loss", "val_accuracy"} & first["metrics"].keys()
        assert "train_loss_epoch" in shared
        assert {name: first["metrics"][name] for name in shared} == {name: second["metrics"][name] for name in shared}
        assert len(first["seen"]) == len(second["seen"])
    own, with_loaders, digits = ranks[0]
    assert "val_accuracy" not in with_loaders["metrics"]
    assert {"train_loss", "val_accuracy", "val_loss"} <= digits["metrics"].keys()
    seen = torch.cat([own["seen"], ranks[1][0]["seen"]])
    assert set(seen.tolist()) == set(samples().tensors[0].flatten(1)[:, 0].tolist())
    assert len(seen) == 12


def test_orders_that_differ_between_ranks_are_an_error(two_ranks: list[dict[str, object]]) -> None:
    for rank in two_ranks:
        told = rank["differed"]
        assert told.startswith("the loader's Differing gives rank 1 another order than rank 0")


def test_data_without_train_loaders_are_refused() -> None:
    with pytest.raises(DataError, match="LightningDataModule has no train_dataloader"):
        OwnData(LightningDataModule(), seed=0)
    with pytest.raises(DataError, match="no data were given"):
        build_data(None, batch_size=2, seed=0)
    assert build_data(None, batch_size=2, seed=0, task=WithLoaders()).num_classes == 5


def test_a_data_module_is_named_by_its_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(sys.path))
    Path("own_data_module.py").write_text(
        "import pytorch_lightning as pl\n"
        "class MyData(pl.LightningDataModule):\n"
        "    def __init__(self, classes=('a', 'b')):\n"
        "        super().__init__()\n"
        "        self.class_names, self.num_classes = classes, len(classes)\n"
        "    def train_dataloader(self): ...\n"
        "    def on_after_batch_transfer(self, batch, dataloader_idx): return 'moved'\n"
    )
    data = build_data("own_data_module:MyData", batch_size=2, seed=0, args={"classes": ["x", "y", "z"]})
    assert (data.num_classes, data.class_names) == (3, ("x", "y", "z"))
    assert data.description == "own_data_module:MyData"
    assert data.on_after_batch_transfer(None, 0) == "moved"
    assert data.val_dataloader() == []
