"""Makes digits_net.safetensors: digits_net trained on scikit-learn's digits 0 to 4. About 20 s on one core.

Run it as `python -m flash_launch.tasks.pretrain_digits [FILE]`; without FILE it replaces the one that is shipped.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from flash_launch.data.digits import digit_images
from flash_launch.data.sampling import drawn_from
from flash_launch.tasks.digits_net import DIGITS_NET_WEIGHTS, DigitsNet

__all__ = ["main", "pretrain"]

_DIGITS = (0, 1, 2, 3, 4)


def pretrain(epochs: int = 40, batch_size: int = 64, lr: float = 3e-3, seed: int = 0) -> tuple[DigitsNet, float]:
    """Train on all images of the digits 0 to 4, turned, scaled and moved a little.

    Returns:
        The network, and its accuracy on these images as they are, from 0 to 1.
    """
    images, labels = digit_images(_DIGITS)
    generator = torch.Generator().manual_seed(seed)
    with drawn_from(seed):
        net, head = DigitsNet(), nn.Linear(DigitsNet.num_features, len(_DIGITS))
    optimizer = torch.optim.AdamW([*net.parameters(), *head.parameters()], lr)
    steps = epochs * -(-len(images) // batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(epochs):
        for batch in torch.split(torch.randperm(len(images), generator=generator), batch_size):
            loss = functional.cross_entropy(head(net(_moved(images[batch], generator))), labels[batch])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
    net.eval()
    with torch.no_grad():
        accuracy = (head(net(images)).argmax(dim=1) == labels).float().mean().item()
    return net, accuracy


def _moved(images: Tensor, generator: torch.Generator) -> Tensor:
    """Images turned by up to 14 degrees, scaled by up to 15 % and shifted by up to 10 % of their width."""

    def uniform(limit: float) -> Tensor:
        return (2 * torch.rand(len(images), generator=generator) - 1) * limit

    angle, scale = uniform(0.25), 1 + uniform(0.15)
    rows = [
        torch.stack([scale * angle.cos(), -scale * angle.sin(), uniform(0.2)], dim=1),
        torch.stack([scale * angle.sin(), scale * angle.cos(), uniform(0.2)], dim=1),
    ]
    grid = functional.affine_grid(torch.stack(rows, dim=1), list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, padding_mode="border", align_corners=False)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train and write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", nargs="?", type=Path, default=DIGITS_NET_WEIGHTS)
    file: Path = parser.parse_args(arguments).file
    torch.set_num_threads(1)
    net, accuracy = pretrain()
    save_file(net.state_dict(), file, {"trained_on": "scikit-learn digits 0 to 4"})
    print(f"{file}: {file.stat().st_size} bytes, accuracy on digits 0 to 4 {accuracy:.3f}")


if __name__ == "__main__":
    main()
