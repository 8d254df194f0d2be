"""The run's data: digits, image folders, CSV manifests, one's own."""

from collections.abc import Mapping
from pathlib import Path

import flash_strategies.lightning  # noqa: F401 - before Lightning: both of its names lead to the same classes then

# isort: split
from pytorch_lightning import LightningDataModule, LightningModule

from flash_launch.data.digits import Digits
from flash_launch.data.folder import image_folder
from flash_launch.data.manifest import image_manifest
from flash_launch.data.own import OwnData, TaskData
from flash_launch.data.run_data import RunData
from flash_launch.errors import DataError
from flash_launch.tasks.own import build_own, load_class

__all__ = ["RunData", "build_data", "check_data"]


def build_data(
    spec: str | None,
    *,
    batch_size: int,
    seed: int,
    val_fraction: float = 0.2,
    num_workers: int = 0,
    image_size: int | None = None,
    args: Mapping[str, object] | None = None,
    task: LightningModule | None = None,
) -> RunData:
    """The data of a run. Cheap: folders are listed, files are not read (see `check_data`).

    Args:
        spec: "digits", a FOLDER, a FILE.csv, or "module:Class" for a LightningDataModule of one's own; None: the
            loaders of `task`.
        batch_size: samples per rank and batch; one's own loaders keep theirs.
        seed: of shuffling, augmentation and splitting.
        val_fraction: share of each class held back for validation where the data have no split, in [0, 1).
        num_workers: loader processes per rank.
        image_size: pixels on each side; None: 8 for digits, 224 for files.
        args: for the constructor of one's own LightningDataModule.
        task: the task, asked for its loaders where `spec` is None.

    Raises:
        DataError: data that do not exist, or cannot be used; one class of images, and no `task` to make sense of it.
        TaskError: a "module:Class" that cannot be found or built.
    """
    if spec is None:
        if task is None:
            raise DataError("no data were given: name some with --data, or give the task a train_dataloader()")
        return TaskData(task, seed)
    if spec == "digits":
        return Digits(batch_size=batch_size, seed=seed, num_workers=num_workers, image_size=image_size)
    path = Path(spec).expanduser()
    if ":" in spec and not path.exists():
        return OwnData(build_own(load_class(spec, LightningDataModule), args or {}, "--data-args"), seed)
    if path.suffix.lower() != ".csv" and not path.is_dir() and "/" not in spec:
        raise DataError(f"--data {spec} is neither digits, a folder, a file that ends with .csv, nor module:Class")
    data = (image_manifest if path.suffix.lower() == ".csv" else image_folder)(
        path,
        batch_size=batch_size,
        seed=seed,
        val_fraction=val_fraction,
        num_workers=num_workers,
        image_size=image_size,
    )
    if task is None and data.num_classes == 1:
        raise DataError(
            f"{data.description}: a classifier needs two classes or more. In a folder each folder is a class, in a CSV "
            "file each label; give --data the folder that holds the folders of the classes"
        )
    return data


def check_data(data: RunData, world_size: int) -> None:
    """Look for what would stop the run later, once and before the ranks start; decodes image files.

    Raises:
        DataError: fewer validation samples than ranks; files that are missing or cannot be read.
    """
    data.check(world_size)
