"""Reads a weights file of any form without running code from it; says what the file is where it is something else."""

import json
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from flash_launch.errors import WeightsError

__all__ = ["Tables", "read_tables"]

Tables = dict[str, dict[str, Tensor]]
"""Tensors by their names, by the keys under which they lie in the file, joined by dots: "", "state_dict", ..."""

# Under these keys, or keys that begin so, lies what is not the model.
_NOT_THE_MODEL = re.compile(
    r"(.*_)?(optim|lr_sched|sched|scaler|amp|rng|loops|callbacks|criterion|loss|hparams|hyper)", re.IGNORECASE
)
_DEPTH = 3
_INDEX = ".index.json"
_ENDINGS = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", _INDEX)

_STARTS = {
    b"version https://git-lfs": (
        "is a pointer of Git LFS, not the file that it stands for: fetch that with git lfs pull, or from the web page"
    ),
    b"\x89HDF": "is an HDF5 file, as Keras writes: convert it to safetensors with the names of the backbone",
    b"\x93NUMPY": "is a numpy array: save tensors by name, with safetensors.torch.save_file or torch.save",
    b"\x1f\x8b": "is compressed with gzip: unpack it and give what is inside",
    b"BZh": "is compressed with bzip2: unpack it and give what is inside",
    b"\xfd7zXZ": "is compressed with xz: unpack it and give what is inside",
    b"GGUF": "is a GGUF file, as llama.cpp reads: give the safetensors file of the model",
}


def read_tables(path: Path) -> Tables:
    """The tensors in a file: safetensors, what torch.save wrote, or an index of several such files.

    Raises:
        WeightsError: it does not exist, cannot be read or holds no tensors by name; says what it is.
    """
    if path.is_dir():
        inside = sorted(file.name for file in path.iterdir() if file.name.endswith(_ENDINGS))
        hint = (
            f"name a file in it: {', '.join(inside[:5])}" if inside else f"none in it ends with {', '.join(_ENDINGS)}"
        )
        raise _no_file(path, "is not a file", f" ({hint})")
    if not path.is_file():
        raise _no_file(path, "is not a file" if path.exists() else "does not exist")
    if path.name.endswith(".json"):
        return {"": _read_index(path)}
    tables = dict(_tables(_read(path), ""))
    if not tables:
        raise WeightsError(f"weights file {path} is not a state_dict, tensors by name: save model.state_dict()")
    return tables


def _no_file(path: Path, why: str, hint: str = "") -> WeightsError:
    return WeightsError(
        f"weights file {path} {why}: give --weights a file, a name of the backbone's own, or none{hint}"
    )


def _read(path: Path) -> object:
    try:
        if _is_safetensors(path):
            return load_file(path)
        if path.suffix == ".safetensors":  # which torch.load goes by, where it knows the name
            with path.open("rb") as file:
                return torch.load(file, map_location="cpu", weights_only=True)
        # files that torch wrote before 1.6, as are some of torchvision's, are no archives and cannot be mapped
        content: object = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # torch's unpickler fails in any way on what is no weights file
        if (what := _what_it_is(path)) is not None:
            raise WeightsError(f"weights file {path} {what}") from error
        if isinstance(error, pickle.UnpicklingError):
            raise _holds_code(path, error) from error
        said = (str(error) or type(error).__name__).splitlines()[0]
        raise WeightsError(
            f"weights file {path} cannot be read ({said}): give a safetensors file, or one that torch.save wrote"
        ) from error
    return content


def _is_safetensors(path: Path) -> bool:
    """By what is in it; its name may be wrong."""
    with path.open("rb") as file:
        start = file.read(9)
    return start[8:] == b"{" or (path.suffix == ".safetensors" and not zipfile.is_zipfile(path))


def _what_it_is(path: Path) -> str | None:
    """What a file that cannot be read is, and the way to the right one; None: nothing that is known."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(512)
    if not start:
        return "is empty: fetch it again"
    for begins, what in _STARTS.items():
        if start.startswith(begins):
            return what
    if start[257:262] == b"ustar":
        return "is a tar archive: unpack it and give what is inside"
    if start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        return (
            "is a web page (HTML), not weights, as downloads leave where a login, a confirmation or a quota stands "
            "before the file: open the link in a browser and fetch the file itself"
        )
    if start.lstrip()[:1] in (b"{", b"[") and start[8:9] != b"{":
        return "is a text in JSON, not weights: give the file of tensors it belongs to"
    if start[8:9] == b"{" and (needs := int.from_bytes(start[:8], "little")) + 8 > size:
        return f"is cut short: it has {size:,} bytes, its header alone {needs + 8:,}; fetch it again"
    if start.startswith(b"PK"):
        return _what_archive(path, size)
    if start[:1] != b"\x80" and start[8:9] != b"{":  # with which torch.save's older files begin, and safetensors files
        return "is neither a safetensors file nor one that torch.save wrote: convert it to one of these"
    return None


def _what_archive(path: Path, size: int) -> str | None:
    if not zipfile.is_zipfile(path):
        return f"is cut short: it begins as torch.save's files do, and ends after {size:,} bytes; fetch it again"
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if any(name.endswith("constants.pkl") for name in names):
        return (
            "is a TorchScript archive, whose code is not run: where you trust it, save "
            "torch.jit.load(FILE).state_dict() with torch.save"
        )
    if not any(name.endswith("data.pkl") for name in names):
        return f"is a zip archive that torch.save did not write: unpack it and give what is inside ({names[0]}, ...)"
    return None


def _holds_code(path: Path, error: pickle.UnpicklingError) -> WeightsError:
    refused = re.search(r"(?:GLOBAL |Unsupported class |global )([\w.]+\.\w+)", str(error))
    what = f"it refers to {refused[1]}; " if refused else ""
    return WeightsError(
        f"weights file {path} holds more than tensors, and its code is not run: save the model's state_dict() alone "
        f"({what}where you trust the file, torch.load(FILE, weights_only=False) opens it for that)"
    )


def _tables(content: object, where: str, depth: int = 0) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Every mapping of names to tensors in it, as far down as checkpoints have them."""
    if not isinstance(content, Mapping):
        return
    tensors = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}
    if tensors:
        yield where, tensors
    for key, value in content.items() if depth < _DEPTH else ():
        if isinstance(key, str) and not _NOT_THE_MODEL.match(key):
            yield from _tables(value, f"{where}.{key}".lstrip("."), depth + 1)


def _read_index(path: Path) -> dict[str, Tensor]:
    """The tensors of all the files that an index names, as Hugging Face's tools write it."""
    try:
        content: object = json.loads(path.read_bytes())
    except ValueError as error:
        raise WeightsError(f"weights file {path} cannot be read as JSON ({error}): fetch it again") from error
    names = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(names, dict) or not all(isinstance(part, str) for part in names.values()):
        raise WeightsError(
            f"weights file {path} is JSON without a weight_map, so no index of weights: give an index "
            f"(*{_INDEX}) or the file of tensors itself"
        )
    parts = {part: path.parent / part for part in sorted(set(names.values()))}
    missing = [str(file) for file in parts.values() if not file.is_file()]
    if missing:
        raise WeightsError(
            f"{len(missing)} of the {len(parts)} files that {path} names are missing, the first is {missing[0]}: put "
            "them beside it"
        )
    state: dict[str, Tensor] = {}
    for part, file in parts.items():
        tables = read_tables(file)
        of_part = tables.get("", {})
        lacking = [name for name, its in names.items() if its == part and name not in of_part]
        if lacking:
            raise WeightsError(f"{file} does not hold {lacking[0]}, which {path} says it does: fetch both again")
        state |= of_part
    return state
