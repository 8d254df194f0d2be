"""What callbacks and the task put into a checkpoint in `on_save_checkpoint` comes back, without copies of weights."""

from __future__ import annotations

import copy
from typing import cast

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EMAWeightAveraging
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from flash_launch.checkpoint import hook_states
from flash_launch.checkpoint.hook_states import load_callbacks, of_rank_0, own_values, replaced_weights, saved_by_hooks
from flash_strategies.agreement import ControlGroup

Values = dict[str, object]


class Task(pl.LightningModule):
    """Its hook leaves a tensor of its own, and a weight under another name."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        return self.layer(batch[0]).square().mean()

    def on_save_checkpoint(self, checkpoint: Values) -> None:
        checkpoint["mine"] = [torch.tensor([7.0]), {"again": self.layer.weight}]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.5)


class Save(pl.Callback):
    """Saves as of the end of training, before averages are put in place."""

    values: Values

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.values = saved_by_hooks(trainer, ControlGroup())
        self.weights = {name: one.clone() for name, one in pl_module.state_dict().items()}


def fitted(seed: int) -> tuple[pl.Trainer, Save, EMAWeightAveraging]:
    torch.manual_seed(seed)
    save, average = Save(), EMAWeightAveraging(decay=0.5)
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = pl.Trainer(max_epochs=1, accelerator="cpu", devices=1, callbacks=[save, average], **quiet)  # type: ignore[arg-type]
    trainer.fit(Task(), DataLoader(TensorDataset(torch.randn(8, 4)), batch_size=2))
    return trainer, save, average


def averages(average: EMAWeightAveraging) -> dict[str, Tensor]:
    assert average._average_model is not None
    return {name: one.detach().clone() for name, one in average._average_model.state_dict().items()}


def test_averages_come_back_and_weights_are_stored_by_name() -> None:
    _, save, average = fitted(1)
    kept = averages(average)
    stored = hook_states._tensors(save.values)
    assert sorted(tuple(one.shape) for one in stored) == [(), (1,), (2,), (2, 4)]  # n_averaged, mine, and two averages
    replaced = replaced_weights(save.values)
    assert torch.equal(replaced["layer.weight"], kept["module.layer.weight"])
    assert not torch.equal(replaced["layer.weight"], save.weights["layer.weight"])
    trainer, _, other = fitted(2)
    task = trainer.lightning_module
    task.load_state_dict(save.weights)  # what the engine does
    load_callbacks(trainer, save.values)
    assert all(torch.equal(averages(other)[name], one) for name, one in kept.items())
    assert all(torch.equal(one, save.weights[name]) for name, one in task.state_dict().items())
    given = hook_states.with_weights(save.values, task)
    mine = cast("list[dict[str, Tensor]]", given["mine"])
    assert torch.equal(mine[1]["again"], save.weights["layer.weight"])


def test_an_exported_file_has_no_marks() -> None:
    _, save, _ = fitted(1)
    assert "current_model_state" not in own_values(save.values)
    assert set(own_values(save.values)) >= {"averaging_state", "epoch", "global_step"}


class SecondRank:
    """Sees what rank 0 gave."""

    rank = 1

    def __init__(self, first: object) -> None:
        self._first = first

    def gather(self, value: object, where: str) -> list[object]:
        return [self._first if self._first is not None else value, value]


@pytest.mark.parametrize("differs", [False, True])
def test_ranks_store_what_differs_from_rank_0_only(differs: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, save, average = fitted(1)
    assert average._average_model is not None
    trainer.state.stage = None
    first = copy.deepcopy(save.values)
    if differs:
        with torch.no_grad():
            average._average_model.module.layer.bias += 1  # type: ignore[union-attr, operator]
    digests = [
        (str(one.dtype), tuple(one.shape), int(hook_states.slice_digest(one))) for one in hook_states._tensors(first)
    ]
    own = saved_by_hooks(trainer, cast("ControlGroup", SecondRank(digests)))
    assert len(hook_states._tensors(own)) == int(differs)
    whole = of_rank_0(own, lambda: first)
    expected = averages(average)
    assert torch.equal(replaced_weights(whole)["layer.bias"], expected["module.layer.bias"])
    assert torch.equal(replaced_weights(whole)["layer.weight"], expected["module.layer.weight"])
