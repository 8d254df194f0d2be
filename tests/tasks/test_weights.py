"""Pretrained weights: every file that fits is taken, every one that does not is told with its tensors."""

import urllib.error
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor

from flash_launch.errors import WeightsError
from flash_launch.tasks.image import ImageClassifier


@pytest.fixture(scope="module")
def resnet() -> dict[str, Tensor]:
    return dict(torchvision.models.resnet18(num_classes=3).state_dict())


def test_digits_nets_own_weights_are_loaded_unless_none_is_asked_for() -> None:
    pretrained, random = ImageClassifier(seed=1), ImageClassifier(weights="none", seed=1)
    assert torch.equal(pretrained.head.weight, random.head.weight)
    assert not torch.equal(next(pretrained.backbone.parameters()), next(random.backbone.parameters()))
    assert pretrained.notes[0] == "digits_net starts from digits_net's own weights (digits 0 to 4)"
    assert random.notes == ("digits_net starts from random weights",)
    with pytest.raises(WeightsError, match="digits_net has no weights 'IMAGENET1K_V1'"):
        ImageClassifier(weights="IMAGENET1K_V1")


@pytest.mark.parametrize("form", ["plain", "lightning", "torchvision_script", "data_parallel", "task"])
def test_files_of_all_forms_are_loaded(form: str, resnet: dict[str, Tensor], tmp_path: Path) -> None:
    wrapped: dict[str, object] = {
        "plain": resnet,
        "torchvision_script": {"model": resnet, "epoch": 3},
        "data_parallel": {f"module.{key}": value for key, value in resnet.items()},
        "task": {
            f"head.{key[3:]}" if key.startswith("fc.") else f"backbone.{key}": value for key, value in resnet.items()
        },
    }
    wrapped["lightning"] = {"state_dict": wrapped["task"], "epoch": 3}
    file = tmp_path / "w.pt"
    torch.save(wrapped[form], file)
    task = ImageClassifier("resnet18", 3, str(file))
    assert torch.equal(task.backbone.conv1.weight, resnet["conv1.weight"])
    assert torch.equal(task.head.bias, resnet["fc.bias"])
    assert len(task.notes) == 1


def test_another_number_of_classes_leaves_the_head_random_and_says_so(
    resnet: dict[str, Tensor], tmp_path: Path
) -> None:
    file = tmp_path / "w.safetensors"
    save_file(resnet, file)
    task = ImageClassifier("resnet18", 5, str(file))
    assert task.head.weight.shape == (5, 512)
    assert torch.equal(task.backbone.conv1.weight, resnet["conv1.weight"])
    assert "its classification layer is left out (3 classes, not 5)" in task.notes[1]


def test_densenets_old_names_are_brought_to_the_new_ones(tmp_path: Path) -> None:
    state = dict(torchvision.models.densenet121(num_classes=3).state_dict())
    old = {key.replace("norm1", "norm.1").replace("conv2", "conv.2"): value for key, value in state.items()}
    assert old.keys() != state.keys()
    torch.save(old, tmp_path / "w.pth")
    task = ImageClassifier("densenet121", 3, str(tmp_path / "w.pth"))
    name = "features.denseblock1.denselayer1.norm1.weight"
    assert torch.equal(task.backbone.get_parameter(name), state[name])


def test_position_embeddings_are_resized_to_the_image_size(tmp_path: Path) -> None:
    state = torchvision.models.vit_b_32(num_classes=3, image_size=64).state_dict()
    save_file(state, tmp_path / "w.safetensors")
    task = ImageClassifier("vit_b_32", 3, str(tmp_path / "w.safetensors"), image_size=96)
    assert task.backbone.encoder.pos_embedding.shape == (1, 10, 768)
    assert task.notes[1] == "its position embeddings are resized to images of 96 pixels"


def test_side_heads_in_a_file_are_left_out(tmp_path: Path) -> None:
    plain = torchvision.models.googlenet(num_classes=3, init_weights=False, aux_logits=True)
    save_file(plain.state_dict(), tmp_path / "w.safetensors")
    task = ImageClassifier("googlenet", 3, str(tmp_path / "w.safetensors"))
    assert torch.equal(task.backbone.conv1.conv.weight, plain.conv1.conv.weight)


def test_shapes_that_do_not_fit_are_told_with_the_fix(resnet: dict[str, Tensor], tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    save_file(resnet | {"conv1.weight": torch.zeros(32, 3, 7, 7)}, file)
    with pytest.raises(
        WeightsError,
        match=r"w.safetensors does not fit resnet18: backbone.conv1.weight is \(32, 3, 7, 7\) in the file and "
        r"\(64, 3, 7, 7\) in resnet18.*--backbone.*--weights none",
    ):
        ImageClassifier("resnet18", 3, str(file))


def test_missing_and_unexpected_names_are_told(resnet: dict[str, Tensor], tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    renamed = {key.replace("layer4", "stage4"): value for key, value in resnet.items()}
    save_file(renamed, file)
    with pytest.raises(
        WeightsError,
        match=r"missing are backbone.layer4.0.conv1.weight, .* and \d+ more. "
        r"unknown to resnet18 are backbone.stage4.0.bn1.bias, ",
    ):
        ImageClassifier("resnet18", 3, str(file))


def test_files_that_cannot_be_read(tmp_path: Path, resnet: dict[str, Tensor]) -> None:
    with pytest.raises(WeightsError, match=r"missing.pt does not exist"):
        ImageClassifier(weights=str(tmp_path / "missing.pt"))
    for name in ("broken.safetensors", "broken.pt"):
        (tmp_path / name).write_bytes(b"no weights at all")
        with pytest.raises(WeightsError, match=rf"{name} is neither a safetensors file nor one that torch.save wrote"):
            ImageClassifier(weights=str(tmp_path / name))
    torch.save(torchvision.models.resnet18(), tmp_path / "whole.pt")
    with pytest.raises(WeightsError, match=r"whole.pt holds more than tensors, and its code is not run"):
        ImageClassifier("resnet18", weights=str(tmp_path / "whole.pt"))
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(WeightsError, match=r"list.pt is not a state_dict"):
        ImageClassifier(weights=str(tmp_path / "list.pt"))


def test_weights_by_name(monkeypatch: pytest.MonkeyPatch, resnet: dict[str, Tensor]) -> None:
    with pytest.raises(
        WeightsError, match=r"resnet18 has no weights 'IMAGENET1K_V9': give IMAGENET1K_V1, DEFAULT, none"
    ):
        ImageClassifier("resnet18", 3, "IMAGENET1K_V9")

    def offline(*_: object, **__: object) -> dict[str, Tensor]:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    with pytest.raises(
        WeightsError, match=r"ResNet18_Weights.IMAGENET1K_V1 could not be fetched from https://.*no route.*checkpoints"
    ):
        ImageClassifier("resnet18", 3)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *_, **__: resnet)
    task = ImageClassifier("resnet18", 3, "IMAGENET1K_V1")
    assert torch.equal(task.head.weight, resnet["fc.weight"])
    assert task.notes == ("resnet18 starts from ResNet18_Weights.IMAGENET1K_V1",)
