"""On a rank: ImageClassificationData under Lightning's Trainer and Flash's; writes what this rank saw to a file."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import SequentialSampler

import flash_launch as flash
from flash_launch.data.distributed import shard_eval_loader, shard_train_loader
from flash_launch.data.own import OwnData
from flash_launch.image import ImageClassificationData, ImageClassifier

SIZE, CLASSES = 11, 3


def data(**options: object) -> ImageClassificationData:
    """Image k is of one shade, k / 20, and its target k modulo 3."""
    images = (torch.arange(SIZE) / 20).reshape(-1, 1, 1, 1).expand(-1, 3, 2, 2)
    targets = [k % CLASSES for k in range(SIZE)]
    same: dict[str, object] = {"transform": lambda image: torch.full((3, 2, 2), image.getpixel((0, 0))[0] / 255)}
    return ImageClassificationData.from_tensors(
        images, targets, images, targets, images, targets, images, batch_size=2, **{**same, **options}
    )


class Shade(nn.Module):
    """Features that are the shade, without parameters that matter."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, images: Tensor) -> Tensor:
        return images[:, :1, 0, 0] * self.scale


class Seeing(ImageClassifier):
    """Notes the images of each stage, by number."""

    seen: dict[str, list[list[int]]]

    def _step(self, batch: list[Tensor], stage: str) -> Tensor:  # type: ignore[override]
        self.seen.setdefault(stage, []).append([round(float(shade) * 20) for shade in batch[0][:, 0, 0, 0]])
        return super()._step(batch, stage)


def task() -> Seeing:
    torch.manual_seed(0)
    made = Seeing(labels=["a", "b", "c"], backbone=(Shade(), 1), optimizer="sgd", learning_rate=1e-12)
    with torch.no_grad():  # the label of image k is that of k // 4
        made.head.weight.copy_(torch.tensor([[0.0], [40.0], [80.0]]))  # type: ignore[operator]
        made.head.bias.copy_(torch.tensor([0.0, -7.0, -22.0]))  # type: ignore[operator]
    made.seen = {}
    return made


def fitted(make: Callable[..., pl.Trainer], **options: object) -> dict[str, object]:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = make(**quiet, enable_checkpointing=False, devices=2, strategy="ddp", max_epochs=2, num_sanity_val_steps=0)
    module, made = data(**options), task()
    trainer.fit(made, datamodule=module)
    values = {name: float(value) for name, value in trainer.callback_metrics.items() if not name.endswith("_step")}
    trainer.test(made, datamodule=module, verbose=False)
    values |= {name: float(value) for name, value in trainer.callback_metrics.items()}
    found: dict[str, object] = {"seen": made.seen, "values": values}
    found["predicted"] = trainer.predict(made, datamodule=module)
    if isinstance(trainer, flash.Trainer):
        found["labels"] = trainer.predict(made, datamodule=module, output="labels")
    return found


def dealt() -> dict[str, object]:
    """What the command makes of the loaders: they are dealt out already."""
    own = OwnData(data(), seed=0)
    own.module.trainer = own.trainer
    loader = own.module.train_dataloader()
    train = shard_train_loader(loader, rank=dist.get_rank(), world_size=2, seed=0)
    val_loader = own.module.val_dataloader()
    val = shard_eval_loader(val_loader, rank=dist.get_rank(), world_size=2)
    return {"same": train.loader is loader and val.loader is val_loader, "anywhere": train.starts_anywhere}


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    results = {
        "lightning": fitted(pl.Trainer),
        "flash": fitted(flash.Trainer),
        "ordered": fitted(pl.Trainer, sampler=SequentialSampler)["seen"],
        "dealt": dealt(),
    }
    torch.save(results, folder / f"{os.environ['RANK']}.pt")
    sys.stdout.flush()
    dist.barrier()  # no rank goes while another still hears of it
    os._exit(0)  # gloo's threads may end Python by SIGABRT (pytorch/pytorch#179291)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
