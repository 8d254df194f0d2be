"""The weights at the end of a run: model.safetensors, under the names of the task's own state_dict."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from flash_strategies.engines.base import Engine


def save_weights(engine: Engine, task: nn.Module, path: Path, *, write: bool) -> None:
    """Gather the weights parameter by parameter and write them; every rank must call it.

    Args:
        engine: how the ranks hold the model.
        task: whose state_dict is meant; parameters that share memory are written under each of their names.
        path: of the file; a reader meets the whole file or none.
        write: on the rank that writes.
    """
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in task.state_dict(keep_vars=True).items():
        whole = engine.gathered(tensor) if isinstance(tensor, nn.Parameter) else nullcontext()
        with whole:
            if write:
                tensors[name] = tensor.detach().cpu().clone().contiguous()
    if write:
        temporary = path.with_name(f".{path.name}.tmp")
        save_file(tensors, temporary)
        temporary.chmod(0o644)  # safetensors makes files that only their owner can read
        temporary.replace(path)
