"""DistributedDataParallel that also trains what hides parameters from autograd's graph: reentrant checkpointing.

With `find_unused_parameters`, DDP walks the graph of a forward pass and takes what it does not meet for unused. A
function that runs its own backward pass inside of the outer one (`torch.utils.checkpoint` with `use_reentrant=True`,
reversible layers) hides its parameters: DDP counts them as done, their gradients come after all, and the step fails
with "mark a variable ready only once". Such a model is averaged here instead, when the backward pass has ended.

Whether a model is such a one shows in the graph of the first forward pass after wrapping, and the ranks agree on it
before that graph is walked backward.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from torch import nn
from torch.autograd import Variable
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_leaves

from flash_strategies.sparse_gradients import no_gradient, sparse_parameters

_BUCKET = 1 << 25
"""Bytes that are averaged at once."""


class AveragingDDP(DistributedDataParallel):
    """DDP, where need be without its reducer; arguments are DDP's."""

    def __init__(self, module: nn.Module, **options: object) -> None:
        """Wrap.

        Args:
            module: whose parameters that require a gradient are averaged.
            options: DDP's.
        """
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", ".*broadcast_buffers", FutureWarning
            )  # its successor would send buffers at the start
            super().__init__(module, **options)  # type: ignore[arg-type]
        sparse = sparse_parameters(module)
        self._averaged = [
            (parameter, name in sparse) for name, parameter in module.named_parameters() if parameter.requires_grad
        ]
        # whoever gave other options knows the model
        self._hides: bool | None = None if options.get("find_unused_parameters") and not self.static_graph else False
        self._queued = False

    def wrap_again(self, **options: object) -> None:
        """Begin anew around the same module, in place: whoever holds this object need not hear of a transition."""
        training = self.training
        AveragingDDP.__init__(self, self.module, **options)
        self.training = training

    def _post_forward(self, output: object) -> object:
        """DDP's step between the two passes, in which its reducer gets ready; left out where it would fail."""
        if self._hides is False or not torch.is_grad_enabled() or not self.require_backward_grad_sync:
            return super()._post_forward(output)  # type: ignore[no-untyped-call]
        roots = [leaf for leaf in tree_leaves(output) if isinstance(leaf, torch.Tensor) and leaf.requires_grad]
        if self._hides is None:
            self._hides = self._agreed(hides_parameters(roots, [parameter for parameter, _ in self._averaged]))
            return self._post_forward(output)
        with self.no_sync():
            output = super()._post_forward(output)  # type: ignore[no-untyped-call]
        self._queued = False
        for root in roots:
            root.register_hook(self._queue)  # type: ignore[no-untyped-call]
        return output

    def _agreed(self, hides: bool) -> bool:
        found = torch.tensor(int(hides), device=self._averaged[0][0].device)
        dist.all_reduce(found, op=dist.ReduceOp.MAX, group=self.process_group)
        return bool(found)

    def _queue(self, gradient: torch.Tensor) -> None:
        if not self._queued:  # once for a backward pass, at its end
            self._queued = True
            Variable._execution_engine.queue_callback(self._average)

    @torch.no_grad()
    def _average(self) -> None:
        """Average all gradients over the ranks; averaging what is equal already changes nothing."""
        self._queued = False
        dense: list[torch.Tensor] = []
        for parameter, sparse in self._averaged:
            if parameter.grad is None:
                parameter.grad = no_gradient(parameter, sparse=sparse)
            if parameter.grad.is_sparse:
                total = parameter.grad.coalesce() / self._world_size
                dist.all_reduce(total, group=self.process_group)
                parameter.grad = total
            else:
                dense.append(parameter.grad)
        for bucket in _buckets(dense):
            flat = torch.cat([_real(gradient).reshape(-1) for gradient in bucket]) / self._world_size
            dist.all_reduce(flat, group=self.process_group)
            offset = 0
            for gradient in map(_real, bucket):
                gradient.copy_(flat[offset : offset + gradient.numel()].view_as(gradient))
                offset += gradient.numel()

    @property
    def _world_size(self) -> int:
        return dist.get_world_size(self.process_group)


def hides_parameters(roots: Sequence[torch.Tensor], parameters: Sequence[nn.Parameter]) -> bool:
    """Whether a graph may hide parameters that get a gradient all the same.

    Args:
        roots: what backward passes begin at.
        parameters: that require a gradient.

    Returns:
        True where there is a checkpoint, or another function written in Python while some parameter is not met.
    """
    met: set[int] = set()
    seen: set[object] = set()
    written = False
    nodes = [root.grad_fn for root in roots]
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if isinstance(node, torch.autograd.function.BackwardCFunction):
            written = True
            if "checkpoint" in type(node).__name__.lower():
                return True
        variable = getattr(node, "variable", None)
        if variable is not None:
            met.add(id(variable))
        nodes.extend(following for following, _ in node.next_functions)
    return written and any(id(parameter) not in met for parameter in parameters)


def _real(gradient: torch.Tensor) -> torch.Tensor:
    return torch.view_as_real(gradient) if gradient.is_complex() else gradient


def _buckets(gradients: Sequence[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """Gradients of one type and device each, up to a size."""
    kinds: dict[object, list[torch.Tensor]] = {}
    for gradient in gradients:
        kinds.setdefault((gradient.dtype, gradient.device), []).append(gradient)
    for members in kinds.values():
        bucket: list[torch.Tensor] = []
        size = 0
        for gradient in members:
            bucket.append(gradient)
            size += gradient.numel() * gradient.element_size()
            if size >= _BUCKET:
                yield bucket
                bucket, size = [], 0
        if bucket:
            yield bucket
