"""Weight files as they are found: wrapped, prefixed, in parts, damaged, or no weights at all."""

import argparse
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor

from flash_launch.errors import WeightsError
from flash_launch.tasks.image import ImageClassifier

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def resnet() -> State:
    torch.manual_seed(3)
    return dict(torchvision.models.resnet18(num_classes=3).state_dict())


def under(prefix: str, state: State) -> State:
    return {prefix + name: value for name, value in state.items()}


def plus(state: State, amount: float) -> State:
    return {name: value + amount if value.is_floating_point() else value for name, value in state.items()}


def headless(state: State) -> State:
    return {name: value for name, value in state.items() if not name.startswith("fc.")}


def check_loaded(task: ImageClassifier, state: State, *, head: bool = True) -> None:
    for name, value in task.backbone.state_dict().items():
        assert torch.equal(value, state[name]), name
    assert torch.equal(task.head.weight, state["fc.weight"]) is head


FORMS: dict[str, tuple[Callable[[State], object], str]] = {
    "compiled": (lambda s: under("_orig_mod.", s), ""),
    "compiled in parallel": (lambda s: under("module._orig_mod.", s), " (module)"),
    "sharded": (lambda s: under("_fsdp_wrapped_module.", s), ""),
    "lightning": (lambda s: {"state_dict": under("model.", s), "epoch": 3}, " (state_dict.model)"),
    "lightning, nested": (
        lambda s: {"state_dict": under("net.encoder.module.", s)},
        " (state_dict.net.encoder.module)",
    ),
    "tutorial": (lambda s: {"model_state_dict": s, "optimizer_state_dict": {"state": {}}, "epoch": 1}, ""),
    "net": (lambda s: {"net": s, "acc": 91.5}, " (net)"),
    "deep": (lambda s: {"checkpoint": {"model": under("backbone.", s)}}, " (checkpoint.model.backbone)"),
    "trained and copy": (lambda s: {"state_dict_ema": plus(s, 1), "state_dict": s, "arch": "x"}, " (state_dict)"),
    "only a copy": (lambda s: {"model_ema": under("module.", s)}, " (model_ema.module)"),
    "numbers beside": (lambda s: {**s, "epoch": 3, "_extra_state": None}, ""),
}


@pytest.mark.parametrize("form", FORMS)
def test_tensors_are_found_under_keys_and_after_prefixes(form: str, resnet: State, tmp_path: Path) -> None:
    make, label = FORMS[form]
    file = tmp_path / "w.pth.tar"
    torch.save(make(resnet), file)
    task = ImageClassifier("resnet18", 3, str(file))
    check_loaded(task, resnet)
    assert task.notes[0].startswith(f"resnet18 starts from {file}{label}")


def test_an_averaged_models_count_is_not_used_and_reported(resnet: State, tmp_path: Path) -> None:
    torch.save({"n_averaged": torch.tensor(7), **under("module.", resnet)}, tmp_path / "w.pt")
    task = ImageClassifier("resnet18", 3, str(tmp_path / "w.pt"))
    check_loaded(task, resnet)
    assert task.notes[1:] == ("not used from it: n_averaged",)


def test_of_two_encoders_the_trained_one_is_taken_unless_the_other_is_named(resnet: State, tmp_path: Path) -> None:
    both = under("module.encoder_k.", headless(plus(resnet, 1))) | under("module.encoder_q.", headless(resnet))
    projection = {"module.encoder_q.fc.0.weight": torch.zeros(4, 512), "module.queue": torch.zeros(4, 9)}
    file = tmp_path / "moco.pth"
    torch.save({"state_dict": both | projection, "epoch": 200}, file)
    task = ImageClassifier("resnet18", 3, str(file))
    check_loaded(task, resnet, head=False)
    label = "state_dict.module.encoder_k"
    assert task.notes[0].endswith("(state_dict.module.encoder_q)")
    assert task.notes[1] == f"{label} in it would fit as well: to take that, give --weights {file}:{label}"
    assert "module.queue" in task.notes[2] or "module.encoder_k." in task.notes[2]
    assert "its classification layer is left out" in task.notes[3]
    for key in (label, "encoder_k"):
        check_loaded(ImageClassifier("resnet18", 3, f"{file}:{key}"), plus(resnet, 1), head=False)
    with pytest.raises(
        WeightsError, match=r"has nothing for resnet18 under 'teacher': it has it under .*encoder_k, .*encoder_q"
    ):
        ImageClassifier("resnet18", 3, f"{file}:teacher")


def test_student_and_teacher_of_one_file(resnet: State, tmp_path: Path) -> None:
    of_dino = {"head.mlp.0.weight": torch.zeros(8, 512)}
    student = under("module.backbone.", headless(resnet)) | under("module.", of_dino)
    teacher = under("backbone.", headless(plus(resnet, 1))) | of_dino
    file = tmp_path / "dino.pth"
    torch.save({"teacher": teacher, "student": student, "optimizer": {"state": {0: {"exp_avg": torch.ones(1)}}}}, file)
    task = ImageClassifier("resnet18", 3, str(file))
    check_loaded(task, resnet, head=False)
    assert "(student.module" in task.notes[0]
    assert task.notes[1].startswith("teacher")
    check_loaded(ImageClassifier("resnet18", 3, f"{file}:teacher"), plus(resnet, 1), head=False)


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_an_index_is_read_part_by_part(form: str, resnet: State, tmp_path: Path) -> None:
    names = list(resnet)
    weight_map = {name: f"model-0000{1 + (i >= 60)}-of-00002.{form}" for i, name in enumerate(names)}
    for part in set(weight_map.values()):
        state = {name: resnet[name] for name in names if weight_map[name] == part}
        if form == "safetensors":
            save_file(state, tmp_path / part)
        else:
            torch.save(state, tmp_path / part)
    index = tmp_path / f"model.{form}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    check_loaded(ImageClassifier("resnet18", 3, str(index)), resnet)
    with pytest.raises(WeightsError, match=r"It is one of several parts: give the index file"):
        ImageClassifier("resnet18", 3, str(tmp_path / f"model-00001-of-00002.{form}"))
    with pytest.raises(WeightsError, match=rf"is not a file: give .* \(name a file in it: .*model.{form}.index.json"):
        ImageClassifier("resnet18", 3, str(tmp_path))
    (tmp_path / f"model-00002-of-00002.{form}").unlink()
    with pytest.raises(
        WeightsError, match=r"1 of the 2 files that .* names are missing, the first is .*00002-of-00002"
    ):
        ImageClassifier("resnet18", 3, str(index))
    index.write_text('{"hidden_size": 3}')
    with pytest.raises(WeightsError, match=r"is JSON without a weight_map, so no index of weights"):
        ImageClassifier("resnet18", 3, str(index))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["layer1.0.conv1.weight", "bn1.running_var", "fc.bias"])
def test_nan_and_infinity_are_refused_by_name(name: str, value: float, resnet: State, tmp_path: Path) -> None:
    broken = resnet[name].clone()
    broken.view(-1)[1] = value
    torch.save(resnet | {name: broken}, tmp_path / "w.pt")
    named = name.replace("fc", "head") if name.startswith("fc") else f"backbone.{name}"
    with pytest.raises(
        WeightsError, match=rf"w.pt holds NaN or infinity in {named} \(1 of {broken.numel():,} values\)"
    ):
        ImageClassifier("resnet18", 3, str(tmp_path / "w.pt"))
    if name.startswith("fc"):  # a head that is left out may hold what it will
        ImageClassifier("resnet18", 5, str(tmp_path / "w.pt"))


def test_what_overflows_or_is_quantized_is_refused(resnet: State, tmp_path: Path) -> None:
    torch.save(resnet | {"bn1.weight": torch.full((64,), 1e300, dtype=torch.float64)}, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=r"NaN or infinity in backbone.bn1.weight \(64 of 64"):
        ImageClassifier("resnet18", 3, str(tmp_path / "w.pt"))
    torch.save(resnet | {"conv1.weight": torch.ones(64, 3, 7, 7, dtype=torch.int8)}, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=r"holds backbone.conv1.weight as torch.int8, as quantized files do"):
        ImageClassifier("resnet18", 3, str(tmp_path / "w.pt"))


def written(path: Path, what: str, state: State) -> None:
    content = {
        "page": b"\n<!DOCTYPE html><html>Quota exceeded</html>",
        "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 3\n",
        "empty": b"",
        "json": b'{"hidden_size": 3}',
        "hdf5": b"\x89HDF\r\n\x1a\n" + bytes(600),
        "gzip": b"\x1f\x8b\x08" + bytes(20),
        "cut header": (10_000).to_bytes(8, "little") + b'{"a":',
        "pickle": pickle.dumps({"a": argparse.Namespace(b=1)}, 2),
    }
    if what in content:
        path.write_bytes(content[what])
    elif what == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("resnet/readme.txt", "x")
    elif what in ("namespace", "numpy"):
        torch.save({"model": state, "more": argparse.Namespace(a=1) if what == "namespace" else numpy.float64(1)}, path)
    else:
        torch.save(state, path)
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("page", r"is a web page \(HTML\), not weights.*fetch the file itself"),
        ("pointer", r"is a pointer of Git LFS, .* git lfs pull"),
        ("empty", r"is empty: fetch it again"),
        ("json", r"is a text in JSON, not weights"),
        ("hdf5", r"is an HDF5 file"),
        ("gzip", r"is compressed with gzip: unpack it"),
        ("cut header", r"is cut short: it has 13 bytes, its header alone 10,008"),
        ("cut", r"is cut short: it begins as torch.save's files do"),
        ("zip", r"is a zip archive that torch.save did not write: unpack it .*\(resnet/readme.txt"),
    ],
)
def test_a_file_that_is_no_weights_is_called_what_it_is(
    what: str, said: str, ending: str, resnet: State, tmp_path: Path
) -> None:
    written(tmp_path / f"w.{ending}", what, resnet)
    with pytest.raises(WeightsError, match=rf"w.{ending} {said}"):
        ImageClassifier("resnet18", 3, str(tmp_path / f"w.{ending}"))


@pytest.mark.parametrize(
    ("what", "refused"), [("namespace", "argparse.Namespace"), ("numpy", "numpy._core.multiarray.scalar")]
)
def test_what_is_refused_beside_the_tensors_is_named(what: str, refused: str, resnet: State, tmp_path: Path) -> None:
    written(tmp_path / "w.pt", what, resnet)
    with pytest.raises(
        WeightsError,
        match=rf"holds more than tensors, .*state_dict\(\) alone \(it refers to {refused}; where you trust",
    ):
        ImageClassifier("resnet18", 3, str(tmp_path / "w.pt"))


def test_a_file_that_fits_nothing_is_shown_beside_the_backbone(resnet: State, tmp_path: Path) -> None:
    renamed = {
        name.replace("layer", "stages.").replace("conv", "c").replace("bn", "n"): v for name, v in resnet.items()
    }
    save_file({f"enc.{name}.x": value for name, value in renamed.items()}, tmp_path / "w.safetensors")
    with pytest.raises(
        WeightsError,
        match=r"its tensors are called enc.n1.num_batches_tracked.x, .*, those of resnet18 conv1.weight, .*"
        r"The shapes are those of resnet18: save it with the names of torchvision's resnet18$",
    ):
        ImageClassifier("resnet18", 3, str(tmp_path / "w.safetensors"))
    save_file({"a.weight": torch.zeros(3)}, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match=r"called a.weight, those of .*Name the backbone they were made for"):
        ImageClassifier("resnet18", 3, str(tmp_path / "w.safetensors"))


def test_a_file_is_known_by_what_is_in_it_whatever_its_name(resnet: State, tmp_path: Path) -> None:
    save_file(resnet, tmp_path / "w.bin")
    check_loaded(ImageClassifier("resnet18", 3, str(tmp_path / "w.bin")), resnet)
    torch.save(resnet, tmp_path / "w.safetensors")
    check_loaded(ImageClassifier("resnet18", 3, str(tmp_path / "w.safetensors")), resnet)


def test_the_same_tensors_under_another_name_are_no_other_choice(resnet: State, tmp_path: Path) -> None:
    own_head = {"classifier.weight": torch.zeros(3, 512)}
    for name, content in (("key", {"teacher": under("backbone.", headless(resnet))}), ("head", None)):
        file = tmp_path / f"{name}.pth"
        torch.save(content or under("backbone.", headless(resnet)) | own_head, file)
        task = ImageClassifier("resnet18", 3, str(file))
        check_loaded(task, resnet, head=False)
        assert not any("would fit as well" in note for note in task.notes)


@pytest.mark.parametrize("form", ["meta", "sparse"])
def test_tensors_that_have_no_dense_numbers_are_refused_by_name(form: str, resnet: State, tmp_path: Path) -> None:
    weight = resnet["fc.weight"].to("meta") if form == "meta" else resnet["fc.weight"].to_sparse()
    torch.save({**resnet, "fc.weight": weight}, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=r"holds head\.weight (without its numbers|as a sparse tensor)"):
        ImageClassifier("resnet18", 3, str(tmp_path / "w.pt"))


def test_other_binary_files_are_not_taken_for_code(tmp_path: Path) -> None:
    (tmp_path / "w.pt").write_bytes(b"\x08\x07\x12\x07pytorch\x1a\x03" + bytes(range(256)))
    with pytest.raises(WeightsError, match=r"is neither a safetensors file nor one that torch\.save wrote"):
        ImageClassifier("resnet18", 3, str(tmp_path / "w.pt"))
