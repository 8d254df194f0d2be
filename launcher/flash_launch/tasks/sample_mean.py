"""SampleMean: a mean over all samples of all ranks, however unevenly they came in batches."""

import torch
from torch import Tensor
from torchmetrics import Metric

__all__ = ["SampleMean"]


class SampleMean(Metric):
    """The mean of a quantity over samples, from the means of batches; give it to `self.log`.

    Two nearer ways are not exact. `self.log(..., sync_dist=True)` divides the number of samples by the ranks as an
    integer on gloo (Lightning 2.6.6, `_sync_ddp`). `torchmetrics.MeanMetric` drops NaN values or, told to keep them,
    drops the weights (torchmetrics 1.9.0, `nan_strategy="disable"`); a diverged run shall show its NaN.
    """

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        # Float64: a sum over millions of samples, and ranks must agree whatever the order of their batches.
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, mean: Tensor, size: int) -> None:
        """Add a batch of `size` samples with this mean, a tensor without dimensions."""
        self.total += mean.detach().double() * size
        self.count += size

    def compute(self) -> Tensor:
        """The mean so far, float32."""
        return (self.total / self.count).float()
