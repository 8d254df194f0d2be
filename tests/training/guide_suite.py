"""The guide's file on one rank or more: each block runs as it is, and is compared with plain torch after it."""

from __future__ import annotations

import copy
import io
import logging
import os
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
import torchvision
from PIL import Image

GUIDE = Path(__file__).with_name("guide.py")
ARCHIVE = "hymenoptera_data"
IMAGE = "val/bees/65038344_52a45d090d.jpg"
BLOCKS = ("no_freeze", "freeze", "freeze_unfreeze", "unfreeze_milestones", "custom")


@dataclass(frozen=True)
class Case:
    """The guide on a setup."""

    world_size: int
    setup: str

    suite = Path(__file__)

    @property
    def name(self) -> str:
        """For `run_case`."""
        return f"{self.world_size}-{self.setup}"


@dataclass(frozen=True)
class Block:
    """What one block of the guide did, on this rank."""

    steps: int
    epochs: int
    moved: tuple[str, ...]
    """Parts of the model that moved: backbone, its batch norms, head."""
    error: float
    """How far the weights are from plain torch's, as a share of how far they moved."""
    digest: str
    """Of all weights and buffers."""
    warned: tuple[str, ...]


def blocks() -> list[str]:
    """The file's text, block by block."""
    return GUIDE.read_text(encoding="utf-8").split("# ----\n")


def prepare(folder: Path) -> None:
    """The archive as it would have been fetched, and weights of a ResNet-18 where torch keeps what it fetched."""
    (folder / "data").mkdir(parents=True)
    image = io.BytesIO()
    noise = torch.randint(0, 256, (20, 30, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    Image.fromarray(noise.numpy()).save(image, "JPEG")
    with zipfile.ZipFile(folder / f"data/{ARCHIVE}.zip", "w") as archive:
        archive.writestr(f"{ARCHIVE}/{IMAGE}", image.getvalue())
    cache = folder / "torch/hub/checkpoints"
    cache.mkdir(parents=True)
    torch.manual_seed(0)
    weights = torchvision.models.ResNet18_Weights.DEFAULT.url.rpartition("/")[2]
    torch.save(torchvision.models.resnet18().state_dict(), cache / weights)


def run_case(name: str) -> list[Block]:
    """What each block did."""
    _, setup = name.split("-")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    folders: list[object] = [tempfile.mkdtemp()]
    if dist.is_initialized():
        dist.broadcast_object_list(folders)
    folder = Path(str(folders[0]))
    if not dist.is_initialized() or dist.get_rank() == 0:
        prepare(folder)
    if dist.is_initialized():
        dist.barrier()
    os.chdir(folder)
    os.environ.update(
        TORCH_HOME=str(folder / "torch"),
        PL_TRAINER_STRATEGY=setup,
        PL_TRAINER_ACCELERATOR="cpu",
        PL_TRAINER_DEVICES=os.environ.get("LOCAL_WORLD_SIZE", "1"),
        PL_TRAINER_ENABLE_PROGRESS_BAR="False",
        PL_TRAINER_LOGGER="False",
        PL_TRAINER_ENABLE_CHECKPOINTING="False",
    )
    first, *others = blocks()
    names: dict[str, object] = {"__name__": "guide"}
    exec(compile(first, str(GUIDE), "exec"), names)
    seen = _notes_batches(names["model"])
    return [_run(block, names, seen) for block in others]


def _run(block: str, names: dict[str, object], seen: list[tuple[torch.Tensor, torch.Tensor]]) -> Block:
    model, trainer = names["model"], names["trainer"]
    seen.clear()
    before = copy.deepcopy(model.state_dict())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        exec(compile(block, str(GUIDE), "exec"), names)
    after = {key: value.clone() for key, value in model.state_dict().items()}
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    expected = _plain(model, before, trained, [_of_all_ranks(batch) for batch in seen])
    distance = sum(float((after[n] - expected[n]).square().sum()) for n in expected) ** 0.5
    length = sum(float((expected[n] - before[n]).square().sum()) for n in expected) ** 0.5
    moved = {_part(n, model) for n, p in model.named_parameters() if not torch.equal(before[n], after[n])}
    return Block(
        steps=trainer.global_step,
        epochs=trainer.current_epoch,
        moved=tuple(sorted(moved)),
        error=distance / length,
        digest=_digest(after),
        warned=tuple(str(one.message) for one in caught if "never reaches" in str(one.message)),
    )


def _plain(
    model: torch.nn.Module,
    before: dict[str, torch.Tensor],
    trained: set[str],
    steps: list[list[tuple[torch.Tensor, torch.Tensor]]],
) -> dict[str, torch.Tensor]:
    """Weights after plain torch's training on all ranks' batches, in one process."""
    plain = copy.deepcopy(model)
    plain.load_state_dict(before)
    plain.train()
    for name, parameter in plain.named_parameters():
        parameter.requires_grad_(name in trained)
    optimizer = torch.optim.Adam([p for p in plain.parameters() if p.requires_grad])
    for batches in steps:
        optimizer.zero_grad()
        losses = [torch.nn.functional.cross_entropy(plain(images), targets) for images, targets in batches]
        torch.stack(losses).mean().backward()
        optimizer.step()
    return {name: p.detach() for name, p in plain.named_parameters()}


def _notes_batches(model: object) -> list[tuple[torch.Tensor, torch.Tensor]]:
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    step: Callable[..., torch.Tensor] = model.training_step  # type: ignore[attr-defined]

    def noting(batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        images, targets = batch.values() if isinstance(batch, dict) else batch
        seen.append((images.clone(), targets.clone()))
        return step(batch, batch_idx)

    model.training_step = noting  # type: ignore[attr-defined]
    return seen


def _of_all_ranks(batch: tuple[torch.Tensor, torch.Tensor]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    if not dist.is_initialized():
        return [batch]
    found: list[tuple[torch.Tensor, torch.Tensor]] = [batch] * dist.get_world_size()
    dist.all_gather_object(found, batch)
    return found


def _part(name: str, model: torch.nn.Module) -> str:
    if not name.startswith("backbone."):
        return "head"
    norm = isinstance(model.get_submodule(name.rpartition(".")[0]), torch.nn.BatchNorm2d)
    return "norms" if norm else "backbone"


def _digest(state: dict[str, torch.Tensor]) -> str:
    import hashlib

    found = hashlib.sha256()
    for key in sorted(state):
        found.update(state[key].contiguous().numpy().tobytes())
    return found.hexdigest()


if __name__ == "__main__":
    for found in run_case(f"1-{sys.argv[1]}"):
        print(found)
