"""digits_net: the small pretrained backbone that comes with flash-launch, for the first run and for tests."""

from pathlib import Path

from torch import Tensor, nn

__all__ = ["DIGITS_NET_WEIGHTS", "DigitsNet"]

DIGITS_NET_WEIGHTS = Path(__file__).with_name("digits_net.safetensors")
"""Weights after training on digits 0 to 4, made by `python -m flash_launch.tasks.pretrain_digits`."""

# Eight convolutions: deep enough that a hundred images do not train it from random weights in a few epochs.
_STAGES = ((16, 3), (24, 3), (48, 2))


class DigitsNet(nn.Module):
    """Eight 3x3 convolutions with batch norms in three stages: 50,112 parameters.

    Takes images of shape (n, 1, h, w), normalised, made for h = w = 8; three colours are averaged.
    Returns features of shape (n, `num_features`).
    """

    num_features = _STAGES[-1][0] * 2 * 2

    def __init__(self) -> None:
        super().__init__()
        stages: list[nn.Module] = []
        before = 1
        for stage, (channels, depth) in enumerate(_STAGES):
            blocks: list[nn.Module] = []
            for block in range(depth):
                stride = 2 if stage > 0 and block == 0 else 1
                blocks += [
                    nn.Conv2d(before, channels, 3, stride, padding=1, bias=False),
                    nn.BatchNorm2d(channels),
                    nn.ReLU(),
                ]
                before = channels
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        self.pool = nn.AdaptiveAvgPool2d(2)

    def forward(self, images: Tensor) -> Tensor:
        """Features of shape (n, 192) of images of shape (n, 1 or 3, h, w)."""
        if images.shape[1] != 1:
            images = images.mean(dim=1, keepdim=True)
        features: Tensor = self.pool(self.stages(images))
        return features.flatten(1)
