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


def seed_all(seed: int) -> None:
    random.seed(seed)
    numpy.random.seed(seed)
    torch.manual_seed(seed)


@pytest.mark.parametrize("kind", DRAWS)
def test_each_random_state_is_restored(kind: str) -> None:
    draw = DRAWS[kind]
    seed_all(2)  # another one than below, also where a test before has left it
    draw()  # an odd number of normal draws: the second one of a pair is kept
    file = io.BytesIO()
    torch.save(random_states(), file)
    expected = [draw(), draw()]
    seed_all(1)
    assert draw() != expected[0]
    file.seek(0)
    restore_random(torch.load(file, weights_only=True))
    assert [draw(), draw()] == expected
