"""The built-in digits: always the same split, at any image size."""

import torch

from flash_launch.data import build_data
from flash_launch.data.digits import digit_images


def test_digits_5_to_9() -> None:
    data = build_data("digits", batch_size=32, seed=0)
    assert (data.train_size, data.val_size, data.num_classes, data.image_size) == (125, 771, 5, 8)
    assert data.class_names == ("5", "6", "7", "8", "9")
    batches = list(data.train_dataloader())
    assert batches[0][0].shape == (32, 1, 8, 8)
    assert torch.bincount(torch.cat([labels for _, labels in batches])).tolist() == [25] * 5
    assert sum(len(labels) for _, labels in data.val_dataloader()) == 771
    other_seed = build_data("digits", batch_size=1000, seed=1)
    assert torch.equal(next(iter(other_seed.val_dataloader()))[0], torch.cat([i for i, _ in data.val_dataloader()]))


def test_digits_at_another_size() -> None:
    data = build_data("digits", batch_size=4, seed=0, image_size=32)
    assert next(iter(data.val_dataloader()))[0].shape[1:] == (1, 32, 32)


def test_labels_are_positions() -> None:
    images, labels = digit_images((3, 0))
    assert images.shape[1:] == (1, 8, 8)
    assert torch.bincount(labels).tolist() == [183, 178]
    assert abs(images.mean().item()) < 0.2
