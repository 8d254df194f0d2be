"""What loader workers are given can be sent to a process that is spawned and not forked, as is macOS's way."""

from __future__ import annotations

from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import torch.multiprocessing  # noqa: F401  it teaches the pickler tensors
from PIL import Image
from torch.utils.data import DataLoader

from flash_launch.data import build_data


def test_the_datasets_of_built_in_data_can_be_sent(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for number in range(6):
            path = tmp_path / split / f"class_{number % 2}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (10, 10), (number * 20, 0, 0)).save(path)
    for spec in ("digits", str(tmp_path)):
        data = build_data(spec, batch_size=2, seed=0, image_size=8, num_workers=1)
        for loader in (data.train_dataloader(), data.val_dataloader()):
            assert isinstance(loader, DataLoader)
            assert ForkingPickler.dumps((loader.dataset, loader.collate_fn, loader.worker_init_fn))
