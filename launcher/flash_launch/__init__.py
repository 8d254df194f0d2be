"""flash-launch: finetuning of large backbones over many ranks."""

__version__ = "0.1.0"
