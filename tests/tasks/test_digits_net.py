"""digits_net: what is shipped is small, loads, and shows finetuning at work."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

from flash_launch.data.digits import digit_split
from flash_launch.tasks.digits_net import DIGITS_NET_WEIGHTS, DigitsNet
from flash_launch.tasks.image import ImageClassifier
from flash_launch.tasks.pretrain_digits import main, pretrain


def _accuracy(weights: str | None, unfreeze_epoch: int, seed: int, epochs: int = 8, batch_size: int = 64) -> float:
    """A plain loop: the head alone, from `unfreeze_epoch` on the backbone too; accuracy on the validation images."""
    train, val = digit_split()
    task = ImageClassifier(weights=weights, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    task.backbone.requires_grad_(False)
    optimizer = torch.optim.AdamW(task.head.parameters(), 1e-3)
    for epoch in range(epochs):
        if epoch == unfreeze_epoch:
            task.backbone.requires_grad_(True)
            optimizer.add_param_group({"params": list(task.backbone.parameters())})
        task.backbone.train(epoch >= unfreeze_epoch)
        for batch in torch.split(torch.randperm(len(train), generator=generator), batch_size):
            images, labels = train[batch.tolist()]
            loss = functional.cross_entropy(task(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    task.eval()
    images, labels = val.tensors
    with torch.no_grad():
        return (task(images).argmax(dim=1) == labels).float().mean().item()


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
def test_unfreezing_a_pretrained_backbone_beats_random_weights_and_a_frozen_one(seed: int) -> None:
    unfrozen, frozen, random = _accuracy(None, 4, seed), _accuracy(None, 8, seed), _accuracy("none", 4, seed)
    assert unfrozen > 0.85
    assert unfrozen > frozen + 0.15
    assert unfrozen > random + 0.15


def test_the_shipped_weights_are_small_and_fit() -> None:
    assert DIGITS_NET_WEIGHTS.stat().st_size < 300_000
    DigitsNet().load_state_dict(load_file(DIGITS_NET_WEIGHTS), strict=True)
    assert sum(parameter.numel() for parameter in DigitsNet().parameters()) == 50_112


def test_other_sizes_and_three_colours_are_taken() -> None:
    assert DigitsNet()(torch.randn(2, 3, 20, 20)).shape == (2, DigitsNet.num_features)


def test_the_script_writes_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("flash_launch.tasks.pretrain_digits.pretrain", lambda: pretrain(epochs=1))
    main([str(tmp_path / "new.safetensors")])
    assert "accuracy on digits 0 to 4" in capsys.readouterr().out
    DigitsNet().load_state_dict(load_file(tmp_path / "new.safetensors"), strict=True)


@pytest.mark.slow
def test_the_script_trains_a_good_network() -> None:
    assert pretrain()[1] > 0.99
