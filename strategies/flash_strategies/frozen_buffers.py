"""Frozen modules' buffers, which stand still: norms are held in eval mode, other modules compute on copies."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.hooks import RemovableHandle

from flash_strategies.batch_norms import hold_in_eval
from flash_strategies.buffers import buffer_digest


class FrozenBuffers:
    """Keeps the buffers of one task's frozen modules as they are."""

    def __init__(self, task: nn.Module) -> None:
        """Nothing is held at first."""
        self._task = task
        self._norms: frozenset[str] = frozenset()
        self._copying: dict[str, _Copying] = {}
        self._digests: dict[str, int] = {}

    def hold(self, names: Collection[str]) -> None:
        """Hold these modules from now on, and no others; their floating-point buffers are remembered as they are now.

        Args:
            names: frozen modules, each for itself and not for those below it.
        """
        held = {name: self._task.get_submodule(name) for name in names}
        # a ScriptModule takes no hooks: what it knows of being frozen is eval mode
        norms = [name for name, module in held.items() if isinstance(module, (_NormBase, torch.jit.ScriptModule))]
        self._norms = hold_in_eval(self._task, norms, before=self._norms)
        others = {name: module for name, module in held.items() if name not in self._norms and module._buffers}
        for name in set(self._copying) - set(others):
            self._copying.pop(name).release()
        for name, module in others.items():
            if name not in self._copying:
                self._copying[name] = _Copying(self._task, module)
        self._digests = self._now(names)

    def moved(self) -> list[str]:
        """Floating-point buffers of what is held that are not as they were when it was held."""
        modules = {name.rpartition(".")[0] for name in self._digests}
        now = self._now(modules)
        return [name for name, digest in self._digests.items() if now.get(name) != digest]

    def _now(self, names: Collection[str]) -> dict[str, int]:
        found = {
            f"{name}.{key}" if name else key: buffer_digest(buffer)
            for name in names
            for key, buffer in self._task.get_submodule(name).named_buffers(recurse=False)
            if (buffer.is_floating_point() or buffer.is_complex()) and buffer.numel() and not buffer.is_meta
        }
        return {name: int(digest) for name, digest in found.items()}


class _Copying:
    """Gives a module copies of its own buffers for the time of each forward pass.

    A forward pass of training in which none of the copies changed shows that the buffers are constants (masks, tables
    of positions), and from then on there are no copies: in an ordinary step nothing is compared, and nothing waits.
    """

    def __init__(self, task: nn.Module, module: nn.Module) -> None:
        self._task = task
        self._module = module
        self._decided = False
        self._originals: list[dict[str, torch.Tensor | None]] = []
        self._handles: list[RemovableHandle] = [
            # before the module's own hooks, of which one may write to them (torch.nn.utils.spectral_norm)
            module.register_forward_pre_hook(self._lend, prepend=True),
            module.register_forward_hook(self._take_back, always_call=True),
        ]

    def release(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _lend(self, module: nn.Module, args: object) -> None:
        if torch.compiler.is_compiling():  # the proof at the epoch's end looks at them all the same
            return
        self._originals.append(dict(module._buffers))
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else buffer.clone()

    def _take_back(self, module: nn.Module, args: object, output: object) -> None:
        if not self._originals:
            return
        originals = self._originals.pop()
        used = {name: module._buffers.get(name) for name in originals}
        module._buffers.update(originals)
        if not self._decided and self._task.training:
            self._decided = True
            if all(_same(used[name], original) for name, original in originals.items()):
                self.release()


def _same(used: torch.Tensor | None, original: torch.Tensor | None) -> bool:
    if used is None or original is None:
        return used is original
    return used.shape == original.shape and torch.equal(used, original)
