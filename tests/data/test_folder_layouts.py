"""Folders of images as people have them: names of splits, wrapper folders, leftovers of tools, and what is asked."""

from pathlib import Path

import pytest
from PIL import Image

from flash_launch.data import build_data
from flash_launch.data.images import ImageData
from flash_launch.errors import DataError


def layout(root: Path, *folders: str) -> Path:
    """Two images in each folder; a path that ends with a file's ending is a file of text."""
    for folder in folders:
        path = root / folder
        if path.suffix:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("text")
            continue
        path.mkdir(parents=True, exist_ok=True)
        for number in range(2):
            Image.new("L", (4, 4), number).save(path / f"{number}.png")
    return root


def build(root: Path) -> ImageData:
    data = build_data(str(root), batch_size=2, seed=0, image_size=8)
    assert isinstance(data, ImageData)
    return data


@pytest.mark.parametrize(
    ("train", "val"),
    [
        ("train", "val"),
        ("Train", "Val"),
        ("TRAINING", "Validation"),
        ("training_set", "valid"),
        ("trainset", "dev"),
        ("train_images", "eval"),
        ("train2017", "val2017"),
        ("ILSVRC2012_img_train", "ILSVRC2012_img_val"),
        ("Training", "Testing"),
    ],
)
def test_splits_have_the_names_they_have_in_the_wild(tmp_path: Path, train: str, val: str) -> None:
    data = build(layout(tmp_path, f"{train}/cat", f"{train}/dog", f"{train}/owl", f"{val}/cat", f"{val}/dog"))
    assert data.class_names == ("cat", "dog", "owl")
    assert (data.train_size, data.val_size) == (6, 4)
    assert all(path.parts[-3] == train for path in data._train.paths)


def test_what_is_not_trained_on_is_reported(tmp_path: Path) -> None:
    splits = layout(tmp_path / "three", *(f"{split}/{name}" for split in ("train", "Val", "test") for name in "ab"))
    data = build(splits)
    assert (data.train_size, data.val_size) == (4, 4)
    assert data.notes == [f"neither trained nor validated on: {splits / 'test'}"]
    data = build(layout(tmp_path / "two", "train/a", "train/b", "test/a", "test/b"))
    assert "has no folder val" in data.notes[0]
    assert data.notes[0].endswith("test is validated on")
    data = build(layout(tmp_path / "files", "a", "b", "a/label.xml", "b/label.xml", "b/x.heic"))
    assert data.notes == ["files that are not images by their ending are passed over: 2 .xml, 1 .heic"]


@pytest.mark.parametrize("wrapper", ["archive", "a/b/c"])
@pytest.mark.parametrize("splits", [("",), ("Train", "Val")])
def test_folders_that_hold_all_others_are_descended_into(tmp_path: Path, wrapper: str, splits: tuple[str, ...]) -> None:
    data = build(layout(tmp_path, *(f"{wrapper}/{split}/{name}" for split in splits for name in "xyz")))
    assert data.class_names == ("x", "y", "z")
    assert data.notes[0].endswith(f"holds a single folder: its classes are taken from {tmp_path / wrapper}")


def test_splits_that_were_unpacked_twice_are_descended_into(tmp_path: Path) -> None:
    data = build(layout(tmp_path, "train/train/a", "train/train/b", "val/images/a", "val/images/b"))
    assert data.class_names == ("a", "b")
    assert (data.train_size, data.val_size) == (4, 4)


def test_what_tools_leave_behind_is_no_class(tmp_path: Path) -> None:
    root = layout(tmp_path, "cat", "dog", "__MACOSX/cat", ".ipynb_checkpoints", "cat/.ipynb_checkpoints", "@eaDir")
    (root / "cat" / "._0.png").write_text("a resource fork")
    (root / "cat" / ".DS_Store").write_text("")
    (root / "dog" / "Thumbs.db").write_text("")
    data = build(root)
    assert data.class_names == ("cat", "dog")
    assert data.train_size + data.val_size == 4
    assert data.notes == []


@pytest.mark.parametrize(
    ("folders", "told"),
    [
        (("fold1/cat", "fold1/dog", "fold2/cat", "fold2/dog"), r"fold1, fold2 in .* \(cat, dog\): are they splits, or"),
        (("fold1/cat", "fold2/Cat"), r"are they splits, or classes\?"),
        (("night/cat", "night/dog", "day/cat"), r"day, night in .* \(cat, dog\): are they splits"),
        (("cat/train", "cat/val", "dog/train", "dog/val"), r"cat, dog in .* \(train, val\): are they splits, or"),
        (("val/a", "val/b", "test/a", "test/b"), r"has test, val, but no folder train"),
        (("train/a", "train/b", "test"), r"no folder val"),
        (("Train/a", "train/b", "val/a"), r"several folders that may be its train split, Train, train"),
        (("train/a", "val/a", "valid/a"), r"several folders that may be its val split, val, valid"),
        (("train/a", "train/b", "val/c"), r"val/c is a class that .*train does not have; it has a, b"),
        (("train", "val"), r"train has no classes"),
        (("Train", "Test"), r"Train has no classes"),
        (("only",), r"1 class \(only\), 1 image to train on, 1 to validate on: a classifier needs two"),
        (("fold1/a", "fold1/b", "fold2/b", "fold2/c", "fold3/c", "fold3/a"), r"have the same folders inside"),
        (("x/a", "x/b", "x/c", "y/b", "y/c", "y/d"), r"x, y in .* have much the same folders inside \(a, b, c\)"),
        (("images/train", "images/val", "masks"), r"images has splits inside \(train, val\), and .* \(masks\): give"),
        (("seg_train/a/x", "seg_test/b/y", "seg_pred"), r"seg_test, seg_train in .* are called as splits are"),
        (("train_cat", "train_dog", "test_cat", "test_dog"), r"are called as splits are: are they splits, or classes"),
        (("train/only", "val/only"), r"1 class \(only\), 2 images to train on, 2 to validate on: a classifier"),
    ],
)
def test_folders_that_may_be_meant_otherwise_are_asked_about(
    tmp_path: Path, folders: tuple[str, ...], told: str
) -> None:
    with pytest.raises(DataError, match=told):
        build(layout(tmp_path, *folders))


def test_classes_with_folders_inside_are_classes(tmp_path: Path) -> None:
    data = build(layout(tmp_path / "inner", "cat/images", "dog/images"))
    assert data.class_names == ("cat", "dog")
    data = build(layout(tmp_path / "own", "cat", "cat/night", "dog", "dog/night"))
    assert data.class_names == ("cat", "dog")
    data = build(layout(tmp_path / "vehicles", "bus", "train", "test"))
    assert data.class_names == ("bus", "test", "train")


def test_what_is_in_no_class_and_what_may_be_a_class_is_reported(tmp_path: Path) -> None:
    data = build(layout(tmp_path, "", "animals/cat", "animals/dog", "plants/rose", "plants/images"))
    assert data.class_names == ("animals", "plants")
    assert data.notes == [
        f"images of no class, beside the folders in {tmp_path}, are passed over: 2",
        "folders inside a class belong to it: animals (cat, dog), plants (rose)",
    ]


def test_a_link_to_a_folder_that_holds_it_is_not_walked_into(tmp_path: Path) -> None:
    layout(tmp_path / "data", "cat", "dog")
    layout(tmp_path, "elsewhere")
    (tmp_path / "data" / "cat" / "all").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "cat" / "self").symlink_to(tmp_path / "data" / "cat")
    (tmp_path / "data" / "owl").symlink_to(tmp_path / "elsewhere")
    data = build(tmp_path / "data")
    assert data.class_names == ("cat", "dog", "owl")
    assert data.train_size + data.val_size == 6


def test_classes_whose_names_differ_little_are_reported(tmp_path: Path) -> None:
    data = build(layout(tmp_path, "Cat", "cat", "01", "1", "10"))
    assert data.notes == ["classes whose names differ little are classes of their own: '01', '1', 'Cat', 'cat'"]
