"""ImageClassificationData: images from each source reach the loaders with the right targets; faults are named."""

from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image
from pytorch_lightning import LightningDataModule
from pytorch_lightning.utilities.model_helpers import is_overridden
from torch.utils.data import SequentialSampler, TensorDataset, WeightedRandomSampler

from flash_launch.data.image_classification import ImageClassificationData
from flash_launch.errors import DataError

SIZE = {"transform_kwargs": {"image_size": 4, "mean": (0, 0, 0), "std": (1, 1, 1)}, "batch_size": 2}
Loaded = list[tuple[int, object]]


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    """Six images of one shade each: of image k all pixels are 10 * k."""
    paths = [tmp_path / f"{number}.png" for number in range(6)]
    for number, path in enumerate(paths):
        Image.new("RGB", (6, 5), (10 * number,) * 3).save(path)
    return paths


def loaded(loader: object) -> Loaded:
    """The number of each image, by its shade, and its target."""
    found: Loaded = []
    for batch in loader:  # type: ignore[attr-defined]
        pixels, targets = batch if isinstance(batch, list | tuple) else (batch, [None] * len(batch))
        assert pixels.shape[1:] == (3, 4, 4)
        assert pixels.dtype == torch.float32
        values = targets.tolist() if isinstance(targets, torch.Tensor) else targets
        found += zip((pixels[:, 0, 0, 0] * 25.5).round().int().tolist(), values, strict=True)
    return found


def test_files(images: list[Path]) -> None:
    data = ImageClassificationData.from_files(
        train_files=images[:4],
        train_targets=["bee", "ant", "bee", "ant"],
        val_files=[str(images[4])],
        val_targets=["bee"],
        predict_files=images[4:],
        **SIZE,
    )
    assert (data.labels, data.num_classes, data.multi_label) == (["ant", "bee"], 2, False)
    assert sorted(loaded(data.train_dataloader())) == [(0, 1), (1, 0), (2, 1), (3, 0)]
    assert loaded(data.val_dataloader()) == [(4, 1)]
    assert loaded(data.predict_dataloader()) == [(4, None), (5, None)]
    assert [len(each) for each in (data.train_dataset, data.val_dataset, data.predict_dataset)] == [4, 1, 2]
    assert data.test_dataset is None


def test_a_stage_without_images_has_no_loader(images: list[Path]) -> None:
    data = ImageClassificationData.from_files(test_files=images, test_targets=[0, 1, 2, 0, 1, 2], **SIZE)
    assert is_overridden("test_dataloader", data, LightningDataModule)
    assert not any(is_overridden(f"{stage}_dataloader", data, LightningDataModule) for stage in ("train", "val"))
    assert data.num_classes == 3


def test_folders(images: list[Path], tmp_path: Path) -> None:
    for number, name in enumerate(["class 9", "class 10", "a,b"] * 2):
        (tmp_path / "train" / name).mkdir(parents=True, exist_ok=True)
        images[number].rename(tmp_path / "train" / name / images[number].name)
    (tmp_path / "train" / "a,b" / "list.txt").touch()
    data = ImageClassificationData.from_folders(
        train_folder=tmp_path / "train", predict_folder=tmp_path / "train" / "a,b", **SIZE
    )
    assert data.labels == ["a,b", "class 9", "class 10"]
    assert sorted(loaded(data.train_dataloader())) == [(0, 1), (1, 2), (2, 0), (3, 1), (4, 2), (5, 0)]
    assert loaded(data.predict_dataloader()) == [(2, None), (5, None)]
    assert data.notes[0] == "files that are not images by their ending are passed over: 1 .txt"
    (tmp_path / "val" / "class 8").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(tmp_path / "val" / "class 8" / "x.png")
    with pytest.raises(DataError, match=r"'class 8', which the training data do not have; did you mean 'class 9'\?"):
        ImageClassificationData.from_folders(tmp_path / "train", tmp_path / "val", **SIZE)
    with pytest.raises(DataError, match=r"test_folder=.*nowhere does not exist"):
        ImageClassificationData.from_folders(test_folder=tmp_path / "nowhere", **SIZE)
    (tmp_path / "val" / "class 8" / "x.png").unlink()
    with pytest.raises(DataError, match=r"predict_folder=.*val has no images"):
        ImageClassificationData.from_folders(predict_folder=tmp_path / "val", **SIZE)


SHADES = numpy.arange(6, dtype=numpy.uint8)[:, None, None, None] * numpy.full((6, 3, 5, 6), 10, numpy.uint8)


@pytest.mark.parametrize(
    "made",
    [
        lambda targets: ImageClassificationData.from_numpy(SHADES, targets, **SIZE),
        lambda targets: ImageClassificationData.from_numpy(list(SHADES[:, :1] / 255), targets, **SIZE),
        lambda targets: ImageClassificationData.from_tensors(torch.tensor(SHADES), targets, **SIZE),
        lambda targets: ImageClassificationData.from_tensors(torch.tensor(SHADES) / 255, torch.tensor(targets), **SIZE),
        lambda targets: ImageClassificationData.from_images(
            [Image.fromarray(shade.transpose(1, 2, 0)) for shade in SHADES], targets, **SIZE
        ),
    ],
)
def test_images_in_memory(made: Callable[[list[int]], ImageClassificationData]) -> None:
    targets = [0, 1, 2, 2, 1, 0]
    assert sorted(loaded(made(targets).train_dataloader())) == list(enumerate(targets))


def test_a_csv_file_and_a_table(images: list[Path], tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("id,name,wings,legs\n0,fly,1.0,1\n1.png,ant,0,1\n2,worm,0,0\n")
    one = ImageClassificationData.from_csv("id", "name", train_file=tmp_path / "list.csv", **SIZE)
    assert one.labels == ["ant", "fly", "worm"]
    assert sorted(loaded(one.train_dataloader())) == [(0, 1), (1, 0), (2, 2)]
    several = ImageClassificationData.from_csv("id", ["wings", "legs"], train_file=tmp_path / "list.csv", **SIZE)
    assert (several.labels, several.multi_label) == (["wings", "legs"], True)
    assert sorted(loaded(several.train_dataloader())) == [(0, [1, 1]), (1, [0, 1]), (2, [0, 0])]
    numbered = ImageClassificationData.from_csv("id", "legs", train_file=tmp_path / "list.csv", **SIZE)
    assert (numbered.labels, numbered.num_classes) == (None, 2)
    table = {"id": ["a", "b"], "kind": ["x", "y"]}
    frame = ImageClassificationData.from_data_frame(
        "id",
        "kind",
        train_data_frame=table,
        train_images_root=tmp_path,
        train_resolver=lambda root, name: root / f"{'ab'.index(str(name)) + 3}.png",
        predict_data_frame={"id": numpy.array([5, 4])},
        predict_images_root=tmp_path,
        **SIZE,
    )
    assert sorted(loaded(frame.train_dataloader())) == [(3, 0), (4, 1)]
    assert loaded(frame.predict_dataloader()) == [(5, None), (4, None)]


class LikePandas:
    """Its columns and their values are arrays, which are neither true nor false."""

    columns = numpy.array(["id", "kind"])

    def __getitem__(self, name: str) -> numpy.ndarray:
        return {"id": numpy.array(["1.png", "2.png"], object), "kind": numpy.array([1, 0])}[name]


def test_a_data_frame_of_another_library(images: list[Path], tmp_path: Path) -> None:
    data = ImageClassificationData.from_data_frame(
        "id", "kind", train_data_frame=LikePandas(), train_images_root=tmp_path, **SIZE
    )
    assert (data.labels, data.num_classes) == (None, 2)
    assert sorted(loaded(data.train_dataloader())) == [(1, 1), (2, 0)]
    with pytest.raises(DataError, match=r"train_data_frame has no column 'kinds'; did you mean 'kind'\?"):
        ImageClassificationData.from_data_frame("id", "kinds", train_data_frame=LikePandas(), **SIZE)


def test_faults_of_tables(images: list[Path], tmp_path: Path) -> None:
    file = tmp_path / "list.csv"
    file.write_text("id,name\n0,fly\n1,ant\n")
    with pytest.raises(DataError, match=r"list.csv has no column 'nam'; did you mean 'name'\?"):
        ImageClassificationData.from_csv("id", "nam", train_file=file, **SIZE)
    with pytest.raises(DataError, match="needs target_fields"):
        ImageClassificationData.from_csv("id", train_file=file, **SIZE)
    with pytest.raises(DataError, match=r"columns name hold \['fly'\] for train sample 0: .* give its name alone"):
        ImageClassificationData.from_csv("id", ["name"], train_file=file, **SIZE)
    Image.new("RGB", (4, 4)).save(tmp_path / "1.jpg")
    with pytest.raises(DataError, match=r"has '1', which may be .*1.jpg or .*1.png: write the ending"):
        ImageClassificationData.from_csv("id", "name", train_file=file, **SIZE)
    file.write_text("id,name\n0,fly\n7,ant\n")
    with pytest.raises(DataError, match=r"has .*/7, which does not exist"):
        ImageClassificationData.from_csv("id", "name", train_file=file, **SIZE)


class Labelled(TensorDataset):
    targets = (1, 0, 1)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return super().__getitem__(index)[0], self.targets[index]


def test_datasets() -> None:
    pixels = torch.arange(3).reshape(3, 1, 1, 1).expand(3, 3, 4, 4) / 25.5  # taken as they are
    data = ImageClassificationData.from_datasets(
        train_dataset=Labelled(pixels),
        val_dataset=[{"input": pixels[2], "target": 0}],  # type: ignore[arg-type]
        predict_dataset=TensorDataset(pixels),
        batch_size=2,
    )
    assert sorted(loaded(data.train_dataloader())) == [(0, 1), (1, 0), (2, 1)]
    assert loaded(data.val_dataloader()) == [(2, 0)]
    assert loaded(data.predict_dataloader()) == [(0, None), (1, None), (2, None)]
    with pytest.raises(DataError, match="train_dataset gives no target for sample 0"):
        ImageClassificationData.from_datasets(train_dataset=TensorDataset(pixels), batch_size=2)


def test_val_split_depends_on_the_seed_alone(images: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def parts(seed: int | None) -> tuple[set[int], set[int]]:
        torch.rand(1)
        data = ImageClassificationData.from_files(images, [0, 1] * 3, val_split=0.34, seed=seed, **SIZE)
        return {k for k, _ in loaded(data.train_dataloader())}, {k for k, _ in loaded(data.val_dataloader())}

    train, val = parts(1)
    assert (len(train), len(val), train | val) == (4, 2, set(range(6)))
    assert parts(1) == (train, val)
    assert any(parts(seed) != (train, val) for seed in range(2, 6))
    monkeypatch.setenv("PL_GLOBAL_SEED", "1")
    assert parts(None) == (train, val)


def test_training_is_mirrored_by_seed_and_epoch_and_evaluation_is_not(tmp_path: Path) -> None:
    picture = numpy.zeros((3, 4, 4), numpy.uint8)
    picture[:, :, 0] = 255
    data = ImageClassificationData.from_numpy([picture] * 16, [0, 1] * 8, [picture], [0], **{**SIZE, "batch_size": 16})

    def mirrored(epoch: int) -> list[bool]:
        loader = data.train_dataloader()
        loader.sampler.set_epoch(epoch)
        ((pixels, _),) = loader
        return (pixels[:, 0, 0, 0] == 0).tolist()

    assert 0 < sum(mirrored(0)) < 16
    assert mirrored(0) == mirrored(0)
    assert mirrored(0) != mirrored(1)
    ((pixels, _),) = data.val_dataloader()
    assert pixels[0, 0, :, 0].tolist() == [1.0] * 4


def test_loader_processes_give_what_the_process_that_trains_would() -> None:
    picture = numpy.zeros((3, 4, 4), numpy.uint8)
    picture[:, :, 0] = 255

    def epochs(**options: object) -> list[torch.Tensor]:
        data = ImageClassificationData.from_numpy([picture] * 8, list(range(8)), **SIZE, **options)
        loader, found = data.train_dataloader(), []
        for epoch in range(2):
            loader.sampler.set_epoch(epoch)
            found += [part for batch in loader for part in batch]
        return found

    alone, process = epochs(), epochs(num_workers=1, persistent_workers=True)
    assert len(alone) == len(process) == 16
    assert all(torch.equal(a, b) for a, b in zip(alone, process, strict=True))


def test_fewer_images_than_ranks_are_refused_by_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageClassificationData, "rank_and_world", (0, 2))
    data = ImageClassificationData.from_numpy(predict_data=SHADES[:1], **SIZE)
    with pytest.raises(DataError, match="1 image to predict on cannot be spread over 2 ranks"):
        data.predict_dataloader()


def test_a_transform_of_the_users_own(images: list[Path]) -> None:
    class Shade:
        def __init__(self, factor: float = 1.0) -> None:
            self.factor = factor

        def __call__(self, image: Image.Image) -> torch.Tensor:
            return torch.full((3, 4, 4), image.getpixel((0, 0))[0] / 255 * self.factor)  # type: ignore[index]

    def made(transform: object, **options: object) -> ImageClassificationData:
        return ImageClassificationData.from_files(
            images[:2], [0, 1], images[2:3], [1], batch_size=2, transform=transform, **options
        )

    assert sorted(loaded(made(Shade()).train_dataloader())) == [(0, 0), (1, 1)]
    twice = made(Shade, transform_kwargs={"factor": 2.0})
    assert loaded(twice.val_dataloader()) == [(4, 1)]
    by_stage = made({"train": Shade(2.0), "val": Shade()})
    assert sorted(loaded(by_stage.train_dataloader())) == [(0, 0), (2, 1)]
    assert loaded(by_stage.val_dataloader()) == [(2, 1)]
    with pytest.raises(DataError, match=r"made a Image of train image 0, not a tensor: end it with"):
        made(lambda image: image).train_dataset[0]
    with pytest.raises(DataError, match=r"'trian': its keys are stages, train, val, test, predict"):
        made({"trian": Shade()})
    with pytest.raises(DataError, match="is for the default transform, or a class"):
        made(Shade(), transform_kwargs={"factor": 2.0})
    with pytest.raises(DataError, match=r"transform_kwargs has 'imagesize'; did you mean 'image_size'\?"):
        made(None, transform_kwargs={"imagesize": 3})


def test_a_sampler_says_the_order(images: list[Path]) -> None:
    data = ImageClassificationData.from_files(images, [0, 1] * 3, sampler=SequentialSampler, **SIZE)
    assert [number for number, _ in loaded(data.train_dataloader())] == list(range(6))
    one = WeightedRandomSampler([0.0, 0, 0, 1, 0, 0], 4)
    data = ImageClassificationData.from_files(images, [0, 1] * 3, sampler=one, **SIZE)
    assert [number for number, _ in loaded(data.train_dataloader())] == [3] * 4


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, "batch_size is missing"),
        ({"batch_size": 0}, "batch_size was given 0: it is a whole number of 1 or more"),
        ({"batch_size": 2, "num_worker": 1}, r"no argument 'num_worker'; did you mean 'num_workers'\?"),
        ({"batch_size": 2, "sampler": 3}, "sampler is 3"),
        ({"batch_size": 2, "val_split": 1.0}, "val_split was given 1.0"),
        ({"batch_size": 2, "val_split": 0.01}, "leaves none to validate on"),
        ({"batch_size": 2, "val_split": 0.5, "val_files": [], "val_targets": []}, "no validation data beside it"),
        ({"batch_size": 2, "val_files": ["x.png"]}, "val_files has x.png, which does not exist|without val_targets"),
        ({"batch_size": 2, "val_targets": [0]}, "val_targets are given without val_files"),
        ({"batch_size": 2, "test_files": [], "test_targets": []}, "there are no images to test on"),
    ],
)
def test_options_that_make_no_sense(images: list[Path], options: dict[str, object], told: str) -> None:
    with pytest.raises(DataError, match=told):
        ImageClassificationData.from_files(images[:2], [0, 1], **options)


def test_images_that_make_no_sense(images: list[Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="train_files has 6 images and train_targets 2 targets"):
        ImageClassificationData.from_files(images, [0, 1], **SIZE)
    with pytest.raises(DataError, match="train_files is a str: give a list"):
        ImageClassificationData.from_files(str(images[0]), [0, 1], **SIZE)
    (tmp_path / "x.txt").touch()
    with pytest.raises(DataError, match=r"predict_files has .*x.txt, which is no image by its ending: images end with"):
        ImageClassificationData.from_files(predict_files=[tmp_path / "x.txt"], **SIZE)
    for picture, told in (
        (numpy.zeros((4, 4, 3), numpy.uint8), r"train image 0 has the shape \(4, 4, 3\).*\.transpose\(2, 0, 1\)"),
        (numpy.full((3, 4, 4), 255.0), r"train image 0 holds floats from 255 to 255: give floats from 0 to 1"),
        (numpy.zeros((3, 4, 4), numpy.int64), "is of torch.int64: give bytes"),
    ):
        data = ImageClassificationData.from_numpy([picture], [0], **SIZE)
        with pytest.raises(DataError, match=told):
            data.train_dataset[0]


def test_numpy_files_are_images(tmp_path: Path) -> None:
    numpy.save(tmp_path / "a.npy", SHADES[3])
    data = ImageClassificationData.from_files(predict_files=[tmp_path / "a.npy"], **SIZE)
    assert loaded(data.predict_dataloader()) == [(3, None)]
