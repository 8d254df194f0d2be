"""The front door for loops written by hand around Hugging Face's `Accelerator`."""

from flash_strategies.accelerate.finetuner import AccelerateFinetuner

__all__ = ["AccelerateFinetuner"]
