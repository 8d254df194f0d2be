"""Random states: each generator draws on as if nothing had happened."""

from __future__ import annotations

import io
import random
from collections.abc import Callable

import numpy
import pytest
import torch

from flash_launch.checkpoint.rank_state import random_states, restore_random

DRAWS: dict[str, Callable[[], list[float]]] = {
    "python": lambda: [random.random(), random.gauss(0, 1)],
    "numpy": lambda: [*numpy.random.rand(3).tolist(), numpy.random.normal()],
    "torch": lambda: [*torch.rand(3).tolist(), float(torch.randn(()))],
}


@pytest.mark.parametrize("kind", DRAWS)
def test_each_random_state_is_restored(kind: str) -> None:
    draw = DRAWS[kind]
    draw()  # an odd number of normal draws: the second one of a pair is kept
    file = io.BytesIO()
    torch.save(random_states(), file)
    expected = [draw(), draw()]
    random.seed(1)
    numpy.random.seed(1)
    torch.manual_seed(1)
    assert draw() != expected[0]
    file.seek(0)
    restore_random(torch.load(file, weights_only=True))
    assert [draw(), draw()] == expected
