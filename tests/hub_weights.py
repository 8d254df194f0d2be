"""Random weights in the place of torchvision's, in a cache folder of torch.hub: pretrained=True without a network."""

from pathlib import Path

import torch
import torchvision

__all__ = ["put_into_hub"]


def put_into_hub(torch_home: Path, *names: str) -> None:
    """Write weights of these backbones to where torch looks for what it has fetched.

    Args:
        torch_home: the folder; set the environment variable TORCH_HOME to it.
        names: of torchvision's models; their default weights are meant.
    """
    folder = torch_home / "hub" / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        url = torchvision.models.get_model_weights(name)["DEFAULT"].url
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            torch.save(torchvision.models.get_model(name).state_dict(), folder / Path(url).name)
