"""Stage 3's gradients of an earlier step are forgotten where no new ones come, and only there."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from flash_strategies.deepspeed_private import forget_gradients


class Wrapper(SimpleNamespace):
    """Keeps gradients as DeepSpeed 0.19.8's stage 3 does: the first of a step overwrites, others are added."""

    def __init__(self) -> None:
        self.buffers = {number: torch.zeros(2) for number in range(3)}
        self.stepped: list[list[float]] = []
        super().__init__(
            micro_step_id=0,
            grad_partitions_flat_buffer=torch.zeros(6),
            _DeepSpeedZeroOptimizer_Stage3__param_id_to_grad_partition=self.buffers,
        )

    def partition_grads(self, parameters: list[SimpleNamespace], partitions: list[torch.Tensor]) -> list[torch.Tensor]:
        for parameter, partition in zip(parameters, partitions, strict=True):
            buffer = self.buffers[parameter.ds_id]
            buffer.copy_(buffer + partition if self.micro_step_id else partition)
        return partitions

    def step(self, closure: object = None) -> None:
        self.stepped.append([float(buffer[0]) for buffer in self.buffers.values()])
        self.micro_step_id = 0


@pytest.fixture
def wrapper() -> Wrapper:
    found = Wrapper()
    forget_gradients(found)  # type: ignore[arg-type]
    return found


def backward(wrapper: Wrapper, gradients: dict[int, float]) -> None:
    for number, value in gradients.items():
        wrapper.partition_grads([SimpleNamespace(ds_id=number)], [torch.full((2,), value)])
    wrapper.micro_step_id += 1


def test_a_gradient_that_does_not_come_is_zero(wrapper: Wrapper) -> None:
    for gradients in ({0: 1.0, 1: 2.0, 2: float("inf")}, {0: 3.0}, {1: 4.0}):
        backward(wrapper, gradients)
        wrapper.step()
    assert wrapper.stepped == [[1, 2, float("inf")], [3, 0, 0], [0, 4, 0]]


def test_one_that_comes_late_in_an_accumulation_is_not_added_to_an_old_one(wrapper: Wrapper) -> None:
    backward(wrapper, {0: 1.0, 1: 2.0, 2: 3.0})
    wrapper.step()
    backward(wrapper, {0: 10.0})
    backward(wrapper, {0: 10.0, 1: 20.0})
    backward(wrapper, {1: 20.0})
    wrapper.step()
    assert wrapper.stepped[1] == [20, 40, 0]


def test_gradients_that_come_are_not_set_to_zero_first(wrapper: Wrapper) -> None:
    """It would cost as much as to write them."""
    for _ in range(2):
        backward(wrapper, {0: 1.0, 1: 2.0, 2: 3.0})
        wrapper.step()
    assert [float(buffer[0]) for buffer in wrapper.buffers.values()] == [1, 2, 3]
