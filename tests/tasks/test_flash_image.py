"""Flash's ImageClassifier: its arguments, what it logs, its checkpoints; backbones from everywhere."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchmetrics
import torchvision
from pytorch_lightning import Trainer
from torch import Tensor, nn
from torch.nn import functional

import flash_launch as flash
from flash_launch.data.image_classification import ImageClassificationData
from flash_launch.errors import TaskError, WeightsError
from flash_launch.tasks.any_backbone import BACKBONES
from flash_launch.tasks.flash_image import ImageClassifier
from hub_weights import put_into_hub

EXAMPLES = Path(sys.prefix) / "examples" / "bin" / "python"


class Tiny(nn.Module):
    """Two channels of features at each place, without a pool."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.conv(images)


def tiny(**options: object) -> ImageClassifier:
    return ImageClassifier(**{"num_classes": 3, "backbone": (Tiny(), 2), **options})  # type: ignore[arg-type]


def trainer(folder: Path, **options: object) -> Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}
    return Trainer(default_root_dir=folder, **{**quiet, "max_epochs": 1, **options})  # type: ignore[arg-type]


def data(targets: list[object], **options: object) -> ImageClassificationData:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(len(targets), 3, 6, 6, generator=generator)
    return ImageClassificationData.from_tensors(
        images, targets, images, targets, batch_size=2, transform_kwargs={"image_size": 6}, **options
    )


# ---- backbones


def test_a_backbone_of_torchvision_is_its_model() -> None:
    torch.manual_seed(0)
    task = ImageClassifier(num_classes=4, backbone="resnet18", pretrained=False).eval()
    plain = torchvision.models.resnet18(num_classes=4).eval()
    plain.fc.load_state_dict(task.head.state_dict())
    lacking = plain.load_state_dict(task.backbone.state_dict(), strict=False)
    assert lacking.missing_keys == ["fc.weight", "fc.bias"]
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(task(images), plain(images))
    assert {name.split(".")[0] for name in task.state_dict()} == {"backbone", "head"}
    assert task.modules_to_freeze() is task.backbone


def test_pretrained_weights_are_those_in_torchs_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    put_into_hub(tmp_path, "resnet18")
    task = ImageClassifier(num_classes=2)
    (file,) = (tmp_path / "hub" / "checkpoints").iterdir()
    state = torch.load(file, weights_only=True)
    assert torch.equal(task.backbone.get_parameter("conv1.weight"), state["conv1.weight"])
    assert task.notes[0] == "resnet18 starts from ResNet18_Weights.IMAGENET1K_V1"
    from_file = ImageClassifier(num_classes=2, pretrained=str(file))
    assert torch.equal(from_file.backbone.get_parameter("conv1.weight"), state["conv1.weight"])


def test_weights_that_cannot_be_had_are_an_error_in_the_words_of_the_constructor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    with pytest.raises(WeightsError, match=r'no route.*/checkpoints, or name it with pretrained="FILE"'):
        ImageClassifier(num_classes=2)
    with pytest.raises(WeightsError, match=r"resnet18 has no weights 'IMAGENET1K_V9': give IMAGENET1K_V1, DEFAULT"):
        ImageClassifier(num_classes=2, pretrained="IMAGENET1K_V9")
    torch.save({"a": torch.zeros(1)}, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=r"backbone=, or start from random weights with pretrained=False") as caught:
        ImageClassifier(num_classes=2, pretrained=str(tmp_path / "w.pt"))
    assert "--" not in str(caught.value)
    with pytest.raises(WeightsError, match=r"missing\.pt does not exist"):
        tiny(pretrained=str(tmp_path / "missing.pt"))


def test_a_module_with_features_and_a_head_of_ones_own(tmp_path: Path) -> None:
    task = tiny().eval()
    images = torch.randn(2, 3, 6, 6)
    with torch.no_grad():
        features = task.backbone(images).mean(dim=(2, 3))
        assert torch.equal(task(images), task.head(features))
    assert isinstance(tiny(head=lambda f, c: nn.Sequential(nn.Linear(f, 5), nn.Linear(5, c))).head[0], nn.Linear)
    head = nn.Linear(2, 3)
    assert tiny(head=head).head is head
    torch.save(task.backbone.state_dict(), tmp_path / "tiny.pt")
    assert torch.equal(
        tiny(pretrained=str(tmp_path / "tiny.pt")).backbone.conv.weight,  # type: ignore[union-attr]
        task.backbone.conv.weight,  # type: ignore[union-attr]
    )


def test_a_registered_backbone_is_asked_for_with_pretrained_and_its_arguments() -> None:
    @ImageClassifier.backbones(name="tiny_of_mine")
    def tiny_of_mine(pretrained: bool = True, shade: int = 0) -> tuple[nn.Module, int]:
        calls.append((pretrained, shade))
        return Tiny(), 2

    calls: list[tuple[bool, int]] = []
    try:
        assert "tiny_of_mine" in ImageClassifier.available_backbones()
        task = ImageClassifier(num_classes=3, backbone="tiny_of_mine", backbone_kwargs={"shade": 7}, pretrained=False)
        assert calls == [(False, 7)]
        assert task(torch.zeros(1, 3, 6, 6)).shape == (1, 3)
        with pytest.raises(TaskError, match=r"no backbone is called 'tiny_of_mime': the nearest are tiny_of_mine"):
            ImageClassifier(num_classes=3, backbone="tiny_of_mime")
    finally:
        BACKBONES.remove("tiny_of_mine")


@pytest.mark.slow  # timm alone takes seconds to import
@pytest.mark.skipif(not EXAMPLES.exists(), reason="no environment with timm: make examples")
def test_a_backbone_of_timm(tmp_path: Path) -> None:
    script = (
        "import torch\n"
        "from flash_launch.errors import WeightsError\n"
        "from flash_launch.image import ImageClassifier\n"
        "for name in ('resnet10t', 'mobilenetv3_small_050', 'timm/resnet18'):\n"
        "    task = ImageClassifier(num_classes=3, backbone=name, pretrained=False).eval()\n"
        "    assert task(torch.zeros(2, 3, 32, 32)).shape == (2, 3), name\n"
        "    torch.save(task.backbone.state_dict(), 'w.pt')\n"
        "    again = ImageClassifier(num_classes=3, backbone=name, pretrained='w.pt')\n"
        "    pairs = zip(task.backbone.parameters(), again.backbone.parameters(), strict=True)\n"
        "    assert all(torch.equal(a, b) for a, b in pairs), name\n"
        "assert 'timm/resnet10t' in ImageClassifier.available_backbones()\n"
        "from flash_launch.tasks.optimizer_choice import build_optimizer, build_scheduler\n"
        "optimizer = build_optimizer('sgd', task.parameters(), 1.0)\n"
        "spec = ('linear_schedule_with_warmup', {'num_warmup_steps': 0.5})\n"
        "made = build_scheduler(spec, optimizer, lambda: 8)\n"
        "assert made['interval'] == 'step' and made['scheduler'].get_last_lr() == [0.0]\n"
        "rates = []\n"
        "for _ in range(8):\n"
        "    optimizer.step()\n"
        "    made['scheduler'].step()\n"
        "    rates += made['scheduler'].get_last_lr()\n"
        "assert rates == [0.25, 0.5, 0.75, 1.0, 0.75, 0.5, 0.25, 0.0], rates\n"
        "try:\n"
        "    ImageClassifier(num_classes=3, backbone='resnet10t')\n"
        "except WeightsError as error:\n"
        "    assert 'pretrained=\"FILE\"' in str(error), error\n"
        "    print('offline')\n"
    )
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    ended = subprocess.run(
        [str(EXAMPLES), "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240
    )
    assert (ended.returncode, ended.stdout) == (0, "offline\n"), ended.stderr


# ---- what it trains on and logs


def test_values_of_an_epoch_are_those_of_all_samples(tmp_path: Path) -> None:
    targets = [0, 1, 2, 2, 1]
    task = tiny(optimizer="sgd", learning_rate=1e-9)
    fit = trainer(tmp_path, enable_checkpointing=False)
    fit.fit(task, datamodule=(module := data(targets)))
    logged = {name: float(value) for name, value in fit.callback_metrics.items()}
    assert logged.keys() == {
        *(f"train_{name}{end}" for name in ("cross_entropy", "accuracy") for end in ("", "_step", "_epoch")),
        *("val_cross_entropy", "val_accuracy"),
    }
    images = torch.stack([module.val_dataset[index][0] for index in range(5)])  # type: ignore[index]
    with torch.no_grad():
        logits = task.eval()(images)
    assert logged["val_cross_entropy"] == pytest.approx(float(functional.cross_entropy(logits, torch.tensor(targets))))
    assert logged["val_accuracy"] == pytest.approx(float((logits.argmax(1) == torch.tensor(targets)).float().mean()))


def test_several_labels_per_sample_are_trained_on_with_binary_cross_entropy(tmp_path: Path) -> None:
    module = data([[1, 1, 0], [0, 1, 1], [1, 0, 0], [0, 0, 0]])
    task = tiny(num_classes=module.num_classes, multi_label=module.multi_label, learning_rate=1e-9)
    fit = trainer(tmp_path, enable_checkpointing=False)
    fit.fit(task, datamodule=module)
    samples = [module.val_dataset[index] for index in range(4)]  # type: ignore[index]
    with torch.no_grad():
        logits = task.eval()(torch.stack([image for image, _ in samples]))
    wanted = torch.stack([target for _, target in samples])
    expected = functional.binary_cross_entropy_with_logits(logits, wanted)
    assert float(fit.callback_metrics["val_binary_cross_entropy_with_logits"]) == pytest.approx(float(expected))
    yes, is_ = logits > 0, wanted > 0.5
    f1 = 2 * (yes & is_).sum() / (yes.sum() + is_.sum())
    assert float(fit.callback_metrics["val_f1score"]) == pytest.approx(float(f1))


def test_losses_and_metrics_of_ones_own(tmp_path: Path) -> None:
    def off_by(shares: Tensor, targets: Tensor) -> Tensor:
        return (shares.argmax(1) - targets).abs().float().mean()

    task = tiny(
        loss_fn={"first": functional.cross_entropy, "second": nn.CrossEntropyLoss(weight=torch.ones(3))},
        metrics=[off_by, torchmetrics.Accuracy(task="multiclass", num_classes=3)],
    )
    fit = trainer(tmp_path, enable_checkpointing=False)
    fit.fit(task, datamodule=data([0, 1, 2]))
    logged = fit.callback_metrics
    assert {"val_first", "val_second", "val_total_loss", "val_off_by", "val_accuracy"} <= logged.keys()
    assert float(logged["val_total_loss"]) == pytest.approx(float(logged["val_first"] + logged["val_second"]))


def test_batches_may_be_dicts() -> None:
    task = tiny().eval()
    images, targets = torch.randn(2, 3, 6, 6), torch.tensor([0, 1])
    with torch.no_grad():
        pair, of_dict = task._step((images, targets), "test"), task._step({"input": images, "target": targets}, "test")
        assert torch.equal(pair, of_dict)
        for batch in (images, [images, targets], {"input": images}):
            assert torch.equal(task.predict_step(batch, 0), task(images))


def test_the_optimizer_holds_frozen_parameters_too() -> None:
    task = tiny(optimizer=("sgd", {"momentum": 0.9}), lr_scheduler=("steplr", {"step_size": 2}), learning_rate=0.5)
    task.backbone.requires_grad_(False)
    made = task.configure_optimizers()
    assert isinstance(made, dict)
    held = [p for group in made["optimizer"].param_groups for p in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in task.parameters()}
    assert made["lr_scheduler"]["interval"] == "step"


# ---- checkpoints


def test_the_quick_start_from_folder_to_labels(tmp_path: Path) -> None:
    from PIL import Image

    for name, colour in (("ants", (200, 180, 160)), ("bees", (60, 40, 20))):
        (tmp_path / "train" / name).mkdir(parents=True)
        for number in range(8):
            Image.new("RGB", (9, 9), tuple(c + 3 * number for c in colour)).save(
                tmp_path / "train" / name / f"{number}.png"
            )
    module = ImageClassificationData.from_folders(
        train_folder=tmp_path / "train", batch_size=4, transform_kwargs={"image_size": 8}
    )
    task = ImageClassifier(backbone="digits_net", labels=module.labels, learning_rate=3e-3, optimizer=("adam", {}))
    fit = flash.Trainer(
        max_epochs=12, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    fit.finetune(task, datamodule=module, strategy=("freeze_unfreeze", 1))
    fit.save_checkpoint(tmp_path / "x.pt")
    again = ImageClassifier.load_from_checkpoint(tmp_path / "x.pt")
    assert (again.labels, again.hparams["learning_rate"]) == (["ants", "bees"], 3e-3)
    assert all(torch.equal(a, b) for a, b in zip(task.parameters(), again.parameters(), strict=True))
    files = [tmp_path / "train" / name / "3.png" for name in ("bees", "ants", "bees")]
    predict = ImageClassificationData.from_files(predict_files=files, batch_size=2, transform_kwargs={"image_size": 8})
    found = fit.predict(again, datamodule=predict, output="labels")
    assert [label for batch in found for label in batch] == ["bees", "ants", "bees"]


def test_a_checkpoint_of_a_module_of_ones_own_asks_for_it(tmp_path: Path) -> None:
    task = tiny(head=lambda f, c: nn.Linear(f, c), optimizer=("sgd", {"lr": 0.5}))
    fit = trainer(tmp_path, enable_checkpointing=False)
    fit.fit(task, datamodule=data([0, 1, 2]))
    fit.save_checkpoint(tmp_path / "x.ckpt")
    with pytest.raises(
        TaskError, match=r"not saved in it, backbone \(Tiny\), head \(<lambda>\): give them to load_from_"
    ):
        ImageClassifier.load_from_checkpoint(tmp_path / "x.ckpt")
    again = ImageClassifier.load_from_checkpoint(tmp_path / "x.ckpt", backbone=(Tiny(), 2), head="linear")
    assert torch.equal(again.backbone.conv.weight, task.backbone.conv.weight)  # type: ignore[union-attr]
    assert again.configure_optimizers().defaults["lr"] == 0.5  # type: ignore[union-attr]


class Harmful:
    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return (Path.touch, (Path("harm"),))  # type: ignore[return-value]


def test_a_checkpoint_runs_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {}, "hyper_parameters": {}, "extra": Harmful()}, "x.ckpt")
    with pytest.raises(Exception, match=r"[Ww]eights.only"):
        ImageClassifier.load_from_checkpoint(tmp_path / "x.ckpt")
    assert not Path("harm").exists()


# ---- faults


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"num_classes": None}, "how many classes"),
        ({"num_classes": 1}, "whole number of 2 or more: with one class alone"),
        ({"num_classes": 2, "labels": ["a", "b", "c"]}, "num_classes=2 contradicts the 3 labels"),
        ({"num_classes": None, "labels": ["a", "a"]}, "the same name twice"),
        ({"num_classes": None, "labels": "ab"}, "labels is 'ab': give a list"),
        ({"backbone": 3}, r"backbone is 3: it must be a name, or a pair \(module, num_features\)"),
        ({"backbone_kwargs": {"x": 1}}, "are for a backbone by name, and a module was given"),
        (
            {"backbone": "resnet18", "backbone_kwargs": {"widths": 1}, "pretrained": False},
            r"cannot be built with \{'wid",
        ),
        ({"head": "linnear"}, "head is 'linnear': give 'linear', a module"),
        ({"head": lambda f, c: 3}, "made a int, not a module"),
        ({"pretrained": None}, "pretrained is None: give True, False"),
        ({"optimizer": "sgdd"}, r"no optimizer 'sgdd'; did you mean 'sgd'\?"),
        ({"lr_scheduler": "steplrr"}, r"no lr_scheduler 'steplrr'; did you mean 'steplr'\?"),
        ({"learning_rate": 0}, "learning_rate was given 0: it must be above 0"),
        ({"loss_fn": 3}, "loss_fn has 3: give a function"),
        ({"loss_fn": nn.CrossEntropyLoss}, "give a function, or an object that can be called"),
        ({"metrics": []}, "metrics has nothing in it"),
    ],
)
def test_arguments_that_make_no_sense(options: dict[str, object], told: str) -> None:
    with pytest.raises(TaskError, match=told):
        tiny(**options)


@pytest.mark.parametrize(
    ("options", "given", "told"),
    [
        ({"num_classes": 2}, {}, "the data have 3 classes and the task 2"),
        ({"multi_label": True}, {}, "the data have one label per sample, and the task was made with multi_label=True"),
        ({"num_classes": None, "labels": ["b", "a", "c"]}, {"labels": ["a", "b", "c"]}, "would stand for two names"),
    ],
)
def test_data_of_other_classes_are_refused(
    options: dict[str, object], given: dict[str, object], told: str, tmp_path: Path
) -> None:
    with pytest.raises(TaskError, match=told):
        trainer(tmp_path).fit(tiny(**options), datamodule=data([0, 1, 2], **given))


def test_batches_that_do_not_fit_are_told() -> None:
    images, shares = torch.randn(2, 3, 6, 6), torch.eye(3)[:2]
    with pytest.raises(TaskError, match=r"targets are of shape \(2, 3\).* give ImageClassifier multi_label=True"):
        tiny().training_step([images, shares], 0)
    assert tiny(loss_fn=functional.cross_entropy, metrics=lambda x, y: x.sum()).training_step([images, shares], 0) > 0
    with pytest.raises(TaskError, match=r"Tiny gives features of shape \(2, 2\) for 2 images, not \(2, 7\)"):
        tiny(backbone=(Tiny(), 7))(images)
    vit = ImageClassifier(3, backbone="vit_b_32", pretrained=False, backbone_kwargs={"image_size": 64})
    with pytest.raises(TaskError, match=r"cannot take images of \(32, 32\) pixels .*transform_kwargs"):
        vit.predict_step(torch.zeros(1, 3, 32, 32), 0)


def test_what_there_is() -> None:
    assert {"resnet18", "digits_net", "vit_b_16"} <= set(ImageClassifier.available_backbones())
    assert ImageClassifier.available_pretrained_weights("resnet50") == ["IMAGENET1K_V1", "IMAGENET1K_V2", "DEFAULT"]
    assert ImageClassifier.available_outputs() == ["classes", "labels", "logits", "preds", "probabilities"]
    assert "adam" in ImageClassifier.available_optimizers()
    assert "steplr" in ImageClassifier.available_lr_schedulers()
    assert "freeze_unfreeze_deepspeed" in ImageClassifier.available_finetuning_strategies()
