"""The end of a run: ranks whose digests differ make it a failed one."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from flash_launch import worker
from flash_launch.run_folder import RunFolder, read_json
from flash_strategies.engines.ddp import DDPEngine
from flash_strategies.errors import ProofError
from flash_strategies.transition import Transitions


class Ranks:
    """The control group of two ranks, of which the other one ends with other weights."""

    rank, world_size, process_group = 0, 2, None

    def __init__(self, others: str | None) -> None:
        self.others = others

    def gather(self, value: object, where: str) -> list[object]:
        return [value, self.others or value]

    def min_max(self, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return values, values

    def meet(self, where: str) -> None:
        pass


@pytest.mark.parametrize("others", [None, "another digest"])
def test_digests_that_differ_make_a_failed_run(
    others: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: None)
    task = nn.Linear(2, 2)
    transitions = Transitions(DDPEngine(task, torch.optim.SGD(task.parameters())), Ranks(others))  # type: ignore[arg-type]
    folder = RunFolder(tmp_path)
    arguments = (
        SimpleNamespace(task=task, finetuning=SimpleNamespace(transitions=transitions)),
        SimpleNamespace(is_global_zero=True, world_size=2, global_step=7, current_epoch=1, lightning_module=task),
        SimpleNamespace(metrics={}, phases=[]),
        SimpleNamespace(folder=folder, stopped_early=None),
    )
    if others is None:
        worker._finish(*arguments)  # type: ignore[arg-type]
    else:
        with pytest.raises(ProofError, match="digests differ"):
            worker._finish(*arguments)  # type: ignore[arg-type]
    summary = read_json(folder.summary_json)
    assert isinstance(summary, dict)
    assert summary["status"] == ("finished" if others is None else "failed")
    digests = summary["parameter_digest"]
    assert (digests["0"] == digests["1"]) == (others is None)
    assert folder.weights.exists() == (others is None)
