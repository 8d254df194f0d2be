"""CSV files as they are found: cells with commas, other separators, damaged text; refused with the line, or read."""

from pathlib import Path

import pytest

from flash_launch.data import build_data
from flash_launch.data.images import ImageData
from flash_launch.errors import DataError


def build(tmp_path: Path, content: bytes | str) -> ImageData:
    file = tmp_path / "list.csv"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    data = build_data(str(file), batch_size=2, seed=0)
    assert isinstance(data, ImageData)
    return data


def test_quoted_commas_belong_to_the_name_of_the_class(tmp_path: Path) -> None:
    data = build(tmp_path, 'path, label\na.png, "one, x"\nb.png,"one, y"\n"c, d.png",two\n\n')
    assert data.class_names == ("one, x", "one, y", "two")
    assert tmp_path / "c, d.png" in (*data._train.paths, *data._val.paths)


@pytest.mark.parametrize(("separator", "word"), [(";", "a semicolon"), ("\t", "a tab")])
def test_other_separators_are_read_and_reported(tmp_path: Path, separator: str, word: str) -> None:
    lines = ("\ufeffpath|label", "a.png|one, x", "b.png|one, y", "")
    data = build(tmp_path, "\r\n".join(lines).replace("|", separator))
    assert data.class_names == ("one, x", "one, y")
    assert data.notes == [f"{tmp_path / 'list.csv'} is read with {word} between its cells"]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (
            "path,label\na.png,x\nb.png,one, two\n",
            r"list.csv, line 3 has 3 cells and the header has 2 \(path,label\): .*",
        ),
        ("path,label\na.png,one, two\n", r"put a cell that holds a comma in double quotes.*'a.png,one,two'"),
        ("path,label\na.png,x,\n", r"line 2 has 3 cells"),
        ("path,label,split\na.png,x,train\na.png,x\n", r"line 3 has 2 cells and the header has 3"),
        ("path,label,split\na.png,one, two,train\n", r"line 2 has 4 cells"),
        ("path;label\na.png;x;y\n", r"line 2 has 3 cells.* put a cell that holds a semicolon in double quotes"),
        ('path,label\na.png,"x\nb.png,y\nc.png,"z"\n', r"line \d+ (cannot be read as CSV|: a cell goes over)"),
        ('path,label\na.png,"x\nb.png,y"\n', r"line 3: a cell goes over several lines: is a quote opened"),
        ("path,label,label\na.png,x,y\n", r"has 2 columns label: leave one"),
        ("path,label\na.png,x\0\n", r"line 2 has a NUL byte"),
        (
            "path,label\na.png,x\nb.png,z\xfc\n".encode("latin-1"),
            r"in UTF-8: line 3 has the byte 0xfc; save it as UTF-8",
        ),
        ("path,label\na.png,x\n".encode("utf-16"), r"in UTF-8: line 1 has the byte 0xff; .*UTF-16"),
        ("path,label\na.png,  \n", r"line 2: the label is empty"),
        ("path|label\na.png|x\n", r"has no column path and no column label: .* and is path\|label"),
        ("path,label\na.png,x\nb.png,x\n", r"1 class \(x\), 1 image to train on, 1 to validate on: a classifier needs"),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_line(tmp_path: Path, content: bytes | str, told: str) -> None:
    with pytest.raises(DataError, match=told):
        build(tmp_path, content)


def test_columns_are_known_in_any_case_and_unused_ones_are_reported(tmp_path: Path) -> None:
    lines = ("Path,LABEL,Split,fold", "a.png,x,train,1", "b.png,y,train,1", "c.png,x,val,2", "d.png,y,val,2")
    data = build(tmp_path, "\n".join(lines))
    assert [path.name for path in data._train.paths] == ["a.png", "b.png"]
    assert [path.name for path in data._val.paths] == ["c.png", "d.png"]
    assert data.notes == [f"columns of {tmp_path / 'list.csv'} that are not used: fold"]
