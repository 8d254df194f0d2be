"""ImageClassificationData: images and targets as Lightning Flash's guide gives them, dealt out to ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self, Unpack

import numpy.typing
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from flash_launch.data.folder import class_images, flat_images
from flash_launch.data.image_samples import Split
from flash_launch.data.image_tables import Frame, Resolver, split_of_csv, split_of_frame
from flash_launch.data.split_data import LoaderOptions, SplitData
from flash_launch.errors import DataError

__all__ = ["ImageClassificationData", "LoaderOptions"]

Files = Sequence[str | Path]
Targets = Sequence[object]
Array = numpy.typing.NDArray[numpy.generic]


class ImageClassificationData(SplitData):
    """Images with targets to train, to validate and to test on, and without to predict on; a LightningDataModule.

    Made by one of its class methods. Works with `flash_launch.Trainer` and with Lightning's own, on any number of
    ranks: in training each rank has as many samples and none is missed; in evaluation and prediction each sample
    counts exactly once. A stage without images has no loader. Batches are (images, targets): float32 (n, 3, h, w), and
    int64 (n,), or with several labels per sample float32 (n, classes). Those to predict on are images alone.

    Attributes:
        labels: names of the classes by number; None: targets are numbers.
        multi_label: whether a sample may have any number of labels.
        train_dataset, val_dataset, test_dataset, predict_dataset: the data of a stage; None: there are none.

    Raises:
        DataError: options or data that cannot be used.
    """

    @classmethod
    def from_files(
        cls,
        train_files: Files | None = None,
        train_targets: Targets | None = None,
        val_files: Files | None = None,
        val_targets: Targets | None = None,
        test_files: Files | None = None,
        test_targets: Targets | None = None,
        predict_files: Files | None = None,
        **options: Unpack[LoaderOptions],
    ) -> Self:
        """Image files and a target for each.

        Raises:
            DataError: files that do not exist or are no images by their ending; targets that do not fit.
        """
        return cls._from_pairs(
            "files",
            {"train": train_files, "val": val_files, "test": test_files, "predict": predict_files},
            {"train": train_targets, "val": val_targets, "test": test_targets},
            options,
        )

    @classmethod
    def from_folders(
        cls,
        train_folder: str | Path | None = None,
        val_folder: str | Path | None = None,
        test_folder: str | Path | None = None,
        predict_folder: str | Path | None = None,
        **options: Unpack[LoaderOptions],
    ) -> Self:
        """Folders with a folder of images per class, and a folder of images to predict on.

        The labels are the names of the folders in `train_folder`. Files that are no images by their ending are passed
        over, and counted in `notes`.

        Raises:
            DataError: a folder that does not exist, without classes, with an empty one, or one that is not trained on.
        """
        splits: dict[str, Split | None] = {"train": None, "val": None, "test": None, "predict": None}
        notes: list[str] = []
        for stage, folder in {"train": train_folder, "val": val_folder, "test": test_folder}.items():
            if folder is not None:
                found = class_images(Path(folder).expanduser(), f"{stage}_folder")
                splits[stage] = Split(found.paths, [found.names[label] for label in found.labels], literal=True)
                notes += found.notes
        if predict_folder is not None:
            paths, more = flat_images(Path(predict_folder).expanduser(), "predict_folder")
            splits["predict"] = Split(paths)
            notes += more
        return cls._from_splits(splits, options)._noted(notes)

    @classmethod
    def from_tensors(
        cls,
        train_data: Sequence[Tensor] | Tensor | None = None,
        train_targets: Targets | None = None,
        val_data: Sequence[Tensor] | Tensor | None = None,
        val_targets: Targets | None = None,
        test_data: Sequence[Tensor] | Tensor | None = None,
        test_targets: Targets | None = None,
        predict_data: Sequence[Tensor] | Tensor | None = None,
        **options: Unpack[LoaderOptions],
    ) -> Self:
        """Tensors (n, c, h, w), or a sequence of (c, h, w), of bytes or floats from 0 to 1; 1 or 3 channels."""
        return cls._from_pairs(
            "data",
            {"train": train_data, "val": val_data, "test": test_data, "predict": predict_data},
            {"train": train_targets, "val": val_targets, "test": test_targets},
            options,
        )

    @classmethod
    def from_numpy(
        cls,
        train_data: Sequence[Array] | Array | None = None,
        train_targets: Targets | None = None,
        val_data: Sequence[Array] | Array | None = None,
        val_targets: Targets | None = None,
        test_data: Sequence[Array] | Array | None = None,
        test_targets: Targets | None = None,
        predict_data: Sequence[Array] | Array | None = None,
        **options: Unpack[LoaderOptions],
    ) -> Self:
        """Arrays (n, c, h, w), or a sequence of (c, h, w), of bytes or floats from 0 to 1; 1 or 3 channels."""
        return cls._from_pairs(
            "data",
            {"train": train_data, "val": val_data, "test": test_data, "predict": predict_data},
            {"train": train_targets, "val": val_targets, "test": test_targets},
            options,
        )

    @classmethod
    def from_images(
        cls,
        train_images: Sequence[Image.Image] | None = None,
        train_targets: Targets | None = None,
        val_images: Sequence[Image.Image] | None = None,
        val_targets: Targets | None = None,
        test_images: Sequence[Image.Image] | None = None,
        test_targets: Targets | None = None,
        predict_images: Sequence[Image.Image] | None = None,
        **options: Unpack[LoaderOptions],
    ) -> Self:
        """Images of PIL's."""
        return cls._from_pairs(
            "images",
            {"train": train_images, "val": val_images, "test": test_images, "predict": predict_images},
            {"train": train_targets, "val": val_targets, "test": test_targets},
            options,
        )

    @classmethod
    def from_data_frame(
        cls,
        input_field: str,
        target_fields: str | Sequence[str] | None = None,
        train_data_frame: Frame | None = None,
        train_images_root: str | Path | None = None,
        train_resolver: Resolver | None = None,
        val_data_frame: Frame | None = None,
        val_images_root: str | Path | None = None,
        val_resolver: Resolver | None = None,
        test_data_frame: Frame | None = None,
        test_images_root: str | Path | None = None,
        test_resolver: Resolver | None = None,
        predict_data_frame: Frame | None = None,
        predict_images_root: str | Path | None = None,
        predict_resolver: Resolver | None = None,
        **options: Unpack[LoaderOptions],
    ) -> Self:
        """Tables of columns by name: DataFrames of pandas or polars, or dicts of lists.

        Args:
            input_field: the column of images: paths, relative to the root, or names of files without their ending.
            target_fields: the column of targets; or several columns of 0 and 1, which are the classes.
            train_data_frame, val_data_frame, test_data_frame, predict_data_frame: the tables.
            train_images_root, ...: folder of the images; None: the current one.
            train_resolver, ...: a function from the root and what stands in the column to a file.
            options: see LoaderOptions.

        Raises:
            DataError: a column or an image that is missing, or a name that fits several files.
        """
        tables: dict[str, tuple[Frame | None, str | Path | None, Resolver | None]] = {
            "train": (train_data_frame, train_images_root, train_resolver),
            "val": (val_data_frame, val_images_root, val_resolver),
            "test": (test_data_frame, test_images_root, test_resolver),
            "predict": (predict_data_frame, predict_images_root, predict_resolver),
        }
        splits = {
            stage: None if frame is None else split_of_frame(frame, input_field, target_fields, root, resolver, stage)
            for stage, (frame, root, resolver) in tables.items()
        }
        return cls._from_splits(splits, options, columns=_columns_of_classes(target_fields))

    @classmethod
    def from_csv(
        cls,
        input_field: str,
        target_fields: str | Sequence[str] | None = None,
        train_file: str | Path | None = None,
        train_images_root: str | Path | None = None,
        train_resolver: Resolver | None = None,
        val_file: str | Path | None = None,
        val_images_root: str | Path | None = None,
        val_resolver: Resolver | None = None,
        test_file: str | Path | None = None,
        test_images_root: str | Path | None = None,
        test_resolver: Resolver | None = None,
        predict_file: str | Path | None = None,
        predict_images_root: str | Path | None = None,
        predict_resolver: Resolver | None = None,
        **options: Unpack[LoaderOptions],
    ) -> Self:
        """CSV files with a line of columns; as `from_data_frame`, but paths are relative to the file's folder.

        Raises:
            DataError: a file that cannot be read, with its line; see from_data_frame.
        """
        files: dict[str, tuple[str | Path | None, str | Path | None, Resolver | None]] = {
            "train": (train_file, train_images_root, train_resolver),
            "val": (val_file, val_images_root, val_resolver),
            "test": (test_file, test_images_root, test_resolver),
            "predict": (predict_file, predict_images_root, predict_resolver),
        }
        splits: dict[str, Split | None] = dict.fromkeys(files)
        notes: list[str] = []
        for stage, (file, root, resolver) in files.items():
            if file is not None:
                path = Path(file).expanduser()
                splits[stage], more = split_of_csv(path, input_field, target_fields, root, resolver, stage)
                notes += more
        return cls._from_splits(splits, options, columns=_columns_of_classes(target_fields))._noted(notes)

    @classmethod
    def from_datasets(  # type: ignore[override]  # Lightning's takes data sets that are ready to train on
        cls,
        train_dataset: Dataset[object] | None = None,
        val_dataset: Dataset[object] | None = None,
        test_dataset: Dataset[object] | None = None,
        predict_dataset: Dataset[object] | None = None,
        **options: Unpack[LoaderOptions],
    ) -> Self:
        """Data sets of (image, target), or of dicts with `input` and `target`; to predict on, of images alone too.

        Targets are taken from the attribute `targets` where there is one, as torchvision's data sets have, else each
        sample is read once. Images that are tensors are taken as they are, unless a transform is given.
        """
        given = {"train": train_dataset, "val": val_dataset, "test": test_dataset, "predict": predict_dataset}
        ready = options.get("transform") is None and options.get("transform_kwargs") is None
        splits = {
            stage: None if dataset is None else Split.of_dataset(dataset, stage, ready=ready)
            for stage, dataset in given.items()
        }
        return cls._from_splits(splits, options)

    @classmethod
    def _from_splits(
        cls, splits: Mapping[str, Split | None], options: LoaderOptions, columns: Sequence[str] | None = None
    ) -> Self:
        return cls(splits["train"], splits["val"], splits["test"], splits["predict"], columns=columns, **options)

    @classmethod
    def _from_pairs(
        cls,
        what: str,
        images: Mapping[str, Sequence[object] | Tensor | Array | None],
        targets: Mapping[str, Targets | None],
        options: LoaderOptions,
    ) -> Self:
        splits: dict[str, Split | None] = {}
        for stage, of_stage in images.items():
            its = targets.get(stage)
            name = f"{stage}_{what}"
            if of_stage is None and its is not None:
                raise DataError(f"{stage}_targets are given without {name}")
            if of_stage is not None and its is None and stage != "predict":
                raise DataError(f"{name} are given without {stage}_targets: give a target for each")
            splits[stage] = None if of_stage is None else Split.checked(of_stage, its, name, f"{stage}_targets")
        return cls._from_splits(splits, options)


def _columns_of_classes(target_fields: str | Sequence[str] | None) -> Sequence[str] | None:
    return None if isinstance(target_fields, str) else target_fields
