"""Image folders and CSV manifests: splits, labels, transforms, and every fault told before the ranks start."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from flash_launch.data import build_data, check_data
from flash_launch.data.images import ImageData, ImageFiles, LabelledImages, check_files, split_by_class
from flash_launch.data.run_data import RunData
from flash_launch.errors import DataError


def picture(path: Path, shade: int = 0, size: tuple[int, int] = (12, 10)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.linear_gradient("L").resize(size).point(lambda value: (value + shade) % 256).save(path)
    return path


def folder_of(root: Path, classes: dict[str, int], ending: str = "png") -> Path:
    for name, count in classes.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            picture(root / name / f"{number}.{ending}", shade=number * 20)
    return root


def build(spec: Path, **options: object) -> ImageData:
    data = build_data(str(spec), batch_size=2, seed=0, image_size=8, **options)
    assert isinstance(data, ImageData)
    return data


def test_a_folder_of_classes_is_split_by_class_and_seed(tmp_path: Path) -> None:
    folder_of(tmp_path, {"bee": 10, "ant": 5, "one": 1})
    (tmp_path / "ant" / "notes.txt").write_text("not an image")
    picture(tmp_path / "ant" / ".hidden.png")
    picture(tmp_path / "bee" / "deeper" / "x.PNG")
    data = build(tmp_path)
    assert data.class_names == ("ant", "bee", "one")
    assert (data.train_size, data.val_size, data.num_classes, data.image_size) == (14, 3, 3, 8)
    assert "3 classes (ant, bee, one), 14 images to train on, 3 to validate on" in data.description
    again, other = build(tmp_path), build_data(str(tmp_path), batch_size=2, seed=1)
    assert again._val == data._val
    assert isinstance(other, ImageData)
    assert other._val != data._val
    assert build(tmp_path, val_fraction=0.0).val_size == 0
    assert build(tmp_path, val_fraction=0.0).val_dataloader() == []
    with pytest.raises(DataError, match=r"val_fraction was given 1\.0"):
        build(tmp_path, val_fraction=1.0)


def test_train_and_val_folders_are_the_split(tmp_path: Path) -> None:
    folder_of(tmp_path / "train", {"a": 3, "b": 2, "c": 1})
    folder_of(tmp_path / "val", {"b": 2})
    data = build(tmp_path)
    assert (data.train_size, data.val_size) == (6, 2)
    images, labels = next(iter(data.val_dataloader()))
    assert images.shape == (2, 3, 8, 8)
    assert images.dtype == torch.float32
    assert labels.tolist() == [1, 1]
    assert sorted(label for _, batch in data.train_dataloader() for label in batch.tolist()) == [0, 0, 0, 1, 1, 2]
    check_data(data, 2)
    with pytest.raises(DataError, match="2 validation samples cannot be spread over 3 ranks"):
        check_data(data, 3)


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    assert build(folder_of(tmp_path, {"train": 2, "bus": 2})).class_names == ("bus", "train")


def test_folders_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"the folder .*/nowhere does not exist"):
        build(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"--data nowhere is neither digits, a folder"):
        build_data("nowhere", batch_size=2, seed=0)
    with pytest.raises(DataError, match=r"has no classes: it needs a folder of images for each class"):
        build(tmp_path)
    folder_of(tmp_path, {"a": 2, "empty": 0})
    with pytest.raises(DataError, match=r"the class 'empty' is empty: .*/empty has no images"):
        build(tmp_path)
    split = tmp_path / "split"
    folder_of(split / "train", {"a": 2})
    with pytest.raises(DataError, match=r"but no folder val: add .*/val, or give .*/train"):
        build(split)
    folder_of(split / "val", {"a": 1, "z": 1})
    with pytest.raises(DataError, match=r"val/z is a class that .*/train does not have; it has a"):
        build(split)


def test_files_that_cannot_be_read_are_found_and_named(tmp_path: Path) -> None:
    folder_of(tmp_path, {"a": 4, "b": 2}, "jpg")
    whole = picture(tmp_path / "a" / "cut.jpg", size=(200, 200)).read_bytes()
    (tmp_path / "a" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "a" / "text.jpg").write_text("no image")
    data = build(tmp_path)
    with pytest.raises(DataError, match=r"2 of 8 images cannot be read, the first is .*/(cut|text).jpg \(.+\)"):
        check_data(data, 1)
    with pytest.raises(DataError, match=r"image .*/(cut|text).jpg cannot be read"):
        list(data.train_dataloader()), list(data.val_dataloader())
    data.num_workers = 1
    with pytest.raises(DataError, match=r"image .*/(cut|text).jpg cannot be read"):
        list(data.train_dataloader()), list(data.val_dataloader())
    with pytest.raises(DataError, match=r"1 of 2 images are missing, the first is .*/gone.jpg"):
        check_files([tmp_path / "a" / "0.jpg", tmp_path / "gone.jpg"])
    check_files([tmp_path / "a" / f"{number}.jpg" for number in range(4)], limit=2)


def test_augmentation_depends_on_seed_epoch_and_index_alone(tmp_path: Path) -> None:
    paths = tuple(picture(tmp_path / f"{number}.png", size=(40, 40)) for number in range(2))
    epoch = torch.zeros((), dtype=torch.int64)
    dataset = ImageFiles(LabelledImages(paths, (0, 1)), 16, 3, epoch)
    first, other = dataset[0][0], dataset[1][0]
    torch.rand(5)
    assert torch.equal(dataset[0][0], first)
    assert not torch.equal(first, other)
    epoch.fill_(1)
    assert not torch.equal(dataset[0][0], first)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_epoch_reaches_the_loaders_processes(tmp_path: Path, num_workers: int) -> None:
    folder_of(tmp_path, {"a": 4, "b": 4})
    data = build(tmp_path, num_workers=num_workers, val_fraction=0.0)
    loader = data.train_dataloader()
    epochs = []
    for epoch in (0, 1, 0):
        loader.sampler.set_epoch(epoch)
        epochs.append(torch.cat([images for images, _ in loader]))
    assert torch.equal(epochs[0], epochs[2])
    assert not torch.equal(epochs[0], epochs[1])
    data.start_at(0, 3)  # reaches a loader that is made already
    assert torch.equal(torch.cat([images for images, _ in loader]), epochs[0][6:])
    assert torch.equal(torch.cat([images for images, _ in data.train_dataloader()]), epochs[0][6:])


def test_an_epochs_last_batch_of_one_image_is_made_larger_for_a_batch_norm_and_reported(tmp_path: Path) -> None:
    data = build(folder_of(tmp_path, {"a": 3, "b": 2}), val_fraction=0.0)  # in batches of 2
    assert [len(labels) for _, labels in data.train_dataloader()] == [2, 2, 1]
    data.single_samples = False
    check_data(data, 1)
    assert data.notes == [
        "the last batch of an epoch would have one sample on each rank, which a batch norm may not take: each rank "
        "repeats one of the epoch's samples in it"
    ]
    assert [len(labels) for _, labels in data.train_dataloader()] == [2, 2, 2]


def test_a_split_holds_back_the_same_share_of_each_class() -> None:
    images = LabelledImages(tuple(Path(str(number)) for number in range(100)), (0,) * 80 + (1,) * 20)
    train, val = split_by_class(images, 0.25, seed=0)
    assert (val.labels.count(0), val.labels.count(1)) == (20, 5)
    assert sorted((*train.paths, *val.paths)) == sorted(images.paths)


def manifest(tmp_path: Path, text: str) -> Path:
    for number in range(4):
        picture(tmp_path / "images" / f"{number}.png")
    file = tmp_path / "list.csv"
    file.write_text(text, encoding="utf-8-sig")
    return file


def test_a_manifest_with_and_without_a_split(tmp_path: Path) -> None:
    lines = "images/0.png,10\nimages/1.png,9\nimages/2.png,10\nimages/3.png,9\n"
    data = build(manifest(tmp_path, "path, label\n" + lines), val_fraction=0.5)
    assert data.class_names == ("9", "10")
    assert (data.train_size, data.val_size) == (2, 2)
    check_data(data, 2)
    lines = "label,path,split,size\ncat,images/0.png,train,1\ndog,images/1.png,train,2\ncat,images/2.png,val,3\n"
    data = build(manifest(tmp_path, lines))
    assert data.class_names == ("cat", "dog")
    assert [labels.tolist() for _, labels in data.val_dataloader()] == [[0]]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "has no column path and no column label: its first line must be path,label"),
        ("file,label\na,b\n", "has no column path: .* and is file,label"),
        ("path,label\n", "lists no images"),
        ("path,label\na.png,\n", "line 2: the label is empty"),
        ("path,label\na.png,x\n,x\n", "line 3: the path is empty"),
        ("path,label,split\na.png,x,test\n", "line 2: the split is 'test', it must be train or val"),
        ("path,label,split\na.png,x,train\nb.png,y,val\n", "line 3: the class 'y' is in val, but not in train"),
        ("path,label\na.png,x\na.png,y\n", "lists .*a.png twice, on line 2 as x and on line 3 as y"),
        ("path,label,split\na.png,x,train\na.png,x,val\n", "twice, on line 2 as x train and on line 3 as x val"),
        ("path,label,split\na.png,x,val\n", "line 2: the class 'x' is in val, but not in train"),
    ],
)
def test_manifests_that_cannot_be_used(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(DataError, match=told):
        build(manifest(tmp_path, text))


def test_manifests_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none.csv does not exist"):
        build(tmp_path / "none.csv")
    (tmp_path / "latin.csv").write_bytes("path,label\nä.png,x\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"latin.csv cannot be read as CSV in UTF-8"):
        build(tmp_path / "latin.csv")
    data: RunData = build(manifest(tmp_path, "path,label\nimages/0.png,a\nimages/9.png,b\n"))
    with pytest.raises(DataError, match=r"1 of 2 images are missing, the first is .*/images/9.png"):
        check_data(data, 1)
