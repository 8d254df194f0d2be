"""Backbones by name: each family is split into backbone and head, and goes back to torchvision."""

from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from flash_launch.errors import TaskError
from flash_launch.tasks.backbones import backbone_names, build_backbone, split_head, suitable_image_size
from flash_launch.tasks.image import ImageClassifier, check_images, torchvision_state_dict

HEADS = {
    "resnet18": "fc",
    "squeezenet1_1": "classifier.1",
    "mobilenet_v3_small": "classifier.3",
    "shufflenet_v2_x0_5": "fc",
    "mnasnet0_5": "classifier.1",
    "regnet_x_400mf": "fc",
    "googlenet": "fc",
}
LARGE_HEADS = {
    "alexnet": "classifier.6",
    "convnext_tiny": "classifier.2",
    "densenet121": "classifier",
    "efficientnet_b0": "classifier.1",
    "inception_v3": "fc",
    "maxvit_t": "classifier.5",
    "mobilenet_v2": "classifier.1",
    "resnext50_32x4d": "fc",
    "swin_t": "head",
    "swin_v2_t": "head",
    "vgg11_bn": "classifier.6",
    "vit_b_32": "heads.head",
}


@pytest.mark.parametrize(
    ("name", "head"), [*HEADS.items(), *(pytest.param(*pair, marks=pytest.mark.slow) for pair in LARGE_HEADS.items())]
)
def test_task_computes_what_torchvisions_model_computes_and_exports_to_it(name: str, head: str, tmp_path: Path) -> None:
    size = {"inception_v3": 96, "maxvit_t": 224}.get(name, 64)
    options: dict[str, object] = {}
    if name in ("googlenet", "inception_v3"):
        options = {"aux_logits": False, "init_weights": False, "transform_input": True}
    if name.startswith("vit"):
        options = {"image_size": size}
    plain = torchvision.models.get_model(name, num_classes=7, **options)
    file = tmp_path / "plain.safetensors"
    save_file(plain.state_dict(), file)
    task = ImageClassifier(name, 7, str(file), image_size=size)
    images = torch.randn(2, 3, size, size)
    plain.eval()
    task.eval()
    with torch.no_grad():
        assert torch.equal(task(images), plain(images))
    assert task.head_name == head
    assert {key.split(".")[0] for key in task.state_dict()} == {"backbone", "head"}
    exported = torchvision_state_dict(task)
    plain.load_state_dict(exported, strict=True)
    assert exported.keys() == plain.state_dict().keys()
    assert torchvision_state_dict(task, task.state_dict()).keys() == exported.keys()


def test_all_of_torchvisions_classification_models_are_there() -> None:
    assert set(HEADS) | set(LARGE_HEADS) | {"digits_net", "vit_b_16"} <= set(backbone_names())
    assert not any(name.startswith(("fcn", "raft", "quantized", "fasterrcnn")) for name in backbone_names())


def test_resnet18_has_the_leaf_modules_that_flash_counts() -> None:
    leaves = [module for module in build_backbone("resnet18", 2).backbone.modules() if not list(module.children())]
    assert len(leaves) == 51


def test_grey_images_and_three_colours_are_both_taken() -> None:
    for name in ("resnet18", "digits_net"):
        task = ImageClassifier(name, 5, "none").eval()
        grey = torch.randn(2, 1, 8, 8)
        assert torch.allclose(task(grey), task(grey.expand(-1, 3, -1, -1)), atol=1e-6)


def test_an_unknown_backbone_is_answered_with_the_nearest() -> None:
    with pytest.raises(TaskError, match=r"'resnet81'.*resnet18"):
        ImageClassifier("resnet81", 5)


def test_image_sizes() -> None:
    assert suitable_image_size("digits_net") == 8
    assert suitable_image_size("resnet18") == 224
    assert suitable_image_size("inception_v3") == 299
    with pytest.raises(TaskError, match=r"vit_b_32 cannot be built for images of 60 pixels.*--image-size 224"):
        build_backbone("vit_b_32", 5, image_size=60)
    with pytest.raises(TaskError, match=r"squeezenet1_1 cannot take images of 8 pixels"):
        check_images(ImageClassifier("squeezenet1_1", 5, "none"), 8)
    check_images(ImageClassifier("digits_net", 5), 8)


def test_a_model_whose_head_cannot_be_taken_out_is_refused() -> None:
    with pytest.raises(TaskError, match="goes on after its last linear layer, 0"):
        split_head(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
    with pytest.raises(TaskError, match="no linear layer"):
        split_head(nn.Sequential(nn.ReLU()))
    with pytest.raises(TaskError, match="a convolution that is not followed by its pool"):
        split_head(nn.Sequential(nn.Conv2d(2, 2, 1)))


def test_digits_net_has_no_names_in_torchvision() -> None:
    with pytest.raises(TaskError, match="digits_net is not one of torchvision's"):
        torchvision_state_dict(ImageClassifier())


def test_random_weights_depend_on_the_seed_alone() -> None:
    before = torch.get_rng_state()
    first, same, other = (ImageClassifier("digits_net", 5, "none", seed=seed) for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), same.parameters(), strict=True))
    assert not torch.equal(first.head.weight, other.head.weight)
    with pytest.raises(TaskError, match="num_classes was given 0"):
        ImageClassifier("digits_net", 0)
