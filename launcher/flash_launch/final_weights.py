"""The weights at the end of a run: model.safetensors, under the names of the task's own state_dict."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn
from tqdm.auto import tqdm

from flash_launch.checkpoint.tensor_files import Source, in_file_order, new_file, write_safetensors
from flash_launch.checkpoint.writing import WRITE_SECONDS
from flash_strategies.agreement import ControlGroup
from flash_strategies.engines.base import Engine

__all__ = ["save_weights"]

_PIECE = 8 * 2**20


def save_weights(engine: Engine, task: nn.Module, path: Path, *, write: bool) -> None:
    """Gather the weights parameter by parameter and write them, a piece at a time; every rank must call it.

    No rank holds more than one whole parameter beside its own. The ranks wait for the one that writes as long as they
    wait for a checkpoint.

    Args:
        engine: how the ranks hold the model.
        task: whose state_dict is meant; parameters that share memory are written under each of their names.
        path: of the file; a reader meets the whole file or none.
        write: on the rank that writes.

    Raises:
        CheckpointError: it cannot be written; nothing is left of it.
    """
    names = {id(parameter): name for name, parameter in engine.parameters.items()}
    sources: dict[str, Source] = {}
    for key, tensor in task.state_dict(keep_vars=True).items():
        if isinstance(tensor, torch.Tensor):
            shape = engine.shape(names[id(tensor)]) if id(tensor) in names else tuple(tensor.shape)
            sources[key] = _source(engine, tensor, shape)
        elif write:  # a module's get_extra_state() may be anything
            tqdm.write(f"note: {key} of the task's state_dict is no tensor, so {path.name} is written without it")
    done = ControlGroup(WRITE_SECONDS)
    if write:
        with new_file(path) as file:
            write_safetensors(file, sources, {})
    else:
        for _, source in in_file_order(sources):
            for _ in source.pieces():  # takes part in gathering it
                pass
    done.meet("the end of writing the final weights")


def _source(engine: Engine, tensor: torch.Tensor, shape: tuple[int, ...]) -> Source:
    def pieces() -> Iterator[torch.Tensor]:
        if not isinstance(tensor, nn.Parameter):
            yield from _cut(tensor)
            return
        with engine.gathered(tensor):
            yield from _cut(tensor)

    return Source(shape, tensor.dtype, pieces)


def _cut(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    for piece in torch.split(tensor.detach().reshape(-1), _PIECE):
        yield piece.cpu()
