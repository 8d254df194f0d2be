"""As other ranks resume: buffers that differed are combined, not rank 0's."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from flash_launch.checkpoint.rank_state import RankState, merged


def state(buffers: dict[str, Tensor]) -> RankState:
    return RankState({}, {}, {}, {}, {}, [], {}, [], {}, buffers)


class Task(nn.Module):
    """Says of one buffer that rank 0's is right."""

    buffer_reduction = {"queue": "rank0"}  # noqa: RUF012


@pytest.mark.parametrize("rank", [0, 2])
def test_buffers_that_differed_are_combined(rank: int) -> None:
    ranks = [
        state(
            {
                "norm.running_mean": torch.tensor([1.0 * number, -2.0], dtype=torch.bfloat16),
                "norm.num_batches_tracked": torch.tensor(7 + number % 2),
                "mask": torch.tensor([number == 0, True]),
                "queue": torch.tensor([float(number)]),
            }
        )
        for number in range(4)
    ]
    found = merged(SimpleNamespace(lightning_module=Task()), ranks, rank).buffers  # type: ignore[arg-type]
    assert found["norm.running_mean"].tolist() == [1.5, -2.0]
    assert found["norm.running_mean"].dtype == torch.bfloat16
    assert found["norm.num_batches_tracked"] == 8
    assert found["mask"].tolist() == [True, True]
    assert found["queue"].tolist() == [0.0]
