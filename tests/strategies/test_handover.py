"""What is frozen when a task is handed over: what the user froze stays so, what an earlier fit froze does not."""

from __future__ import annotations

import copy
import io
import logging
from collections.abc import Callable

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn.utils import parametrizations, weight_norm

from flash_strategies import Everything, Finetuner, FlashBaseFinetuning, LastLayers, Matching, Nothing, Phase
from flash_strategies.errors import StrategyValueError
from flash_strategies.handover import handed_over, set_trainable
from flash_strategies.lightning import ScheduledFinetuning
from flash_strategies.phases import find_handover, resolve_phases
from flash_strategies.selection import freezable_layers, freezable_modules, resolve


class Task(pl.LightningModule):
    """Three layers, a batch norm among them, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2), nn.Linear(2, 2))
        self.head = nn.Linear(2, 1)

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        return self.head(self.backbone(batch[0])).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Listed:
    """A strategy that trains these, one an epoch."""

    name = "listed"

    def __init__(self, *given: object) -> None:
        self._given = given

    def phases(self, max_epochs: int | None) -> tuple[Phase, ...]:
        return tuple(Phase(str(i), i, what) for i, what in enumerate(self._given))  # type: ignore[arg-type]


def names(*prefixes: str) -> set[str]:
    return {name for name, _ in Task().named_parameters() if name.startswith(prefixes)}


def frozen(*prefixes: str) -> Task:
    """A task in which the user froze what begins so."""
    task = Task()
    for name, parameter in task.named_parameters():
        parameter.requires_grad_(not name.startswith(prefixes))
    return task


def trained(task: nn.Module, *given: object, train_bn: bool = False) -> list[set[str]]:
    phases = resolve_phases(task, Listed(*given), max_epochs=None, train_bn=train_bn)
    return [set(phase.selection.trainable) for phase in phases]


ALL, BACKBONE, HEAD = names(""), names("backbone."), names("head.")
FIRST, NORM, LAST = names("backbone.0."), names("backbone.1."), names("backbone.3.")


@pytest.mark.parametrize(
    ("users", "schedule", "expected"),
    [
        # a chosen part stays frozen, in every phase
        (["backbone.0.", "head.bias"], [Nothing(), Everything()], [HEAD, ALL - FIRST]),
        (["backbone.0."], [Everything(), Nothing()], [ALL - FIRST, HEAD]),
        (["backbone.0."], [Everything()], [ALL - FIRST]),  # nothing is ever frozen
        (["backbone."], [Everything()], [HEAD]),
        (["backbone."], [Nothing()], [HEAD]),
        # a pattern that can mean nothing else names it; one that matches more does not
        (["backbone.0."], [Nothing(), Matching(("backbone.0.*",))], [HEAD, HEAD | FIRST]),
        (["backbone.0."], [Nothing(), Matching(("backbone.0.bias",))], [HEAD, HEAD | {"backbone.0.bias"}]),
        (["backbone.0."], [Nothing(), Matching(("backbone.*",))], [HEAD, ALL - FIRST]),
        # all of it frozen: an unfreezing cannot mean anything else
        (["backbone."], [Nothing(), Everything()], [HEAD, ALL]),
        (["backbone."], [Nothing(), LastLayers(1)], [HEAD, HEAD | LAST]),
        # layers are counted among those that can train
        (["backbone.3."], [Nothing(), LastLayers(1)], [HEAD, HEAD | names("backbone.2.")]),
    ],
)
def test_what_the_user_froze_stays_frozen_unless_the_schedule_names_it(
    users: list[str], schedule: list[object], expected: list[set[str]]
) -> None:
    task = frozen(*users)
    kept = {"head.bias"} if "head.bias" in users else set()
    assert trained(task, *schedule) == [one - kept for one in expected]
    found = find_handover(task, Listed(*schedule), max_epochs=None, train_bn=False)
    assert set(found.kept) | set(found.named) == names(*users)
    assert found.left == ()
    assert len(found.messages) == bool(found.kept) + bool(found.named)
    assert all(str(len(group)) in " ".join(found.messages) for group in (found.kept, found.named) if group)


def test_batch_norms_of_a_backbone_that_the_user_froze() -> None:
    # frozen as Lightning's BackboneFinetuning does it: all but the batch norms
    task = frozen("backbone.0", "backbone.2", "backbone.3")
    assert trained(task, Nothing(), Everything(), train_bn=True) == [HEAD | NORM, ALL]
    assert trained(task, Nothing(), Everything(), train_bn=False) == [HEAD, HEAD | NORM]
    # chosen ones
    assert trained(frozen("backbone.1"), Nothing(), Everything(), train_bn=True) == [HEAD, ALL - NORM]


def test_last_layers_among_which_none_can_train_are_refused() -> None:
    task = frozen("backbone.2", "backbone.3")
    with pytest.raises(StrategyValueError, match="besides those that required no gradient before"):
        trained(task, Nothing(), LastLayers(2, "flash"))
    with pytest.raises(StrategyValueError, match="have 2 besides"):
        trained(task, Nothing(), LastLayers(3))


def pickled(module: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    loaded: nn.Module = torch.load(file, weights_only=False)
    return loaded


def moved(module: nn.Module) -> nn.Module:
    other = Task()
    other.backbone, other.head = module.backbone, module.head
    return other


@pytest.mark.parametrize("later", [lambda task: task, copy.deepcopy, pickled, moved])
def test_what_a_fit_left_frozen_trains_again(later: Callable[[nn.Module], nn.Module]) -> None:
    task = frozen("backbone.0.")
    Finetuner(task, "freeze", train_bn=False)
    task = later(task)  # type: ignore[assignment]
    assert {name for name, p in task.named_parameters() if p.requires_grad} == HEAD
    found = find_handover(task, Listed(Everything()), max_epochs=None)
    assert (set(found.kept), set(found.left)) == (FIRST, BACKBONE - FIRST)
    assert f"{len(found.left)} parameters (" in found.messages[1]
    assert "earlier fit" in found.messages[1]
    Finetuner(task, "no_freeze")
    assert {name for name, p in task.named_parameters() if p.requires_grad} == ALL - FIRST
    # and what is frozen by hand from now on is the user's again
    task.get_parameter("backbone.3.bias").requires_grad_(False)
    assert set(handed_over(task, ()).kept) == FIRST | {"backbone.3.bias"}


def test_tied_parameters_are_noted_once_and_integers_never() -> None:
    task = Task()
    task.backbone[3].weight = task.backbone[2].weight
    task.backbone.register_parameter("scale", nn.Parameter(torch.ones(2, dtype=torch.int8), requires_grad=False))
    assert handed_over(task, freezable_modules(task)).messages == ()
    set_trainable(task, HEAD)
    left = handed_over(task, freezable_modules(task)).left
    assert "backbone.2.weight" in left
    assert "backbone.3.weight" not in left
    assert "backbone.scale" not in left


def normed(kind: str) -> nn.Module:
    layer = nn.Linear(2, 2)
    if kind == "old weight norm":
        return weight_norm(layer)
    return {"weight norm": parametrizations.weight_norm, "spectral norm": parametrizations.spectral_norm}[kind](layer)


@pytest.mark.parametrize("counting", ["parameters", "flash"])
@pytest.mark.parametrize("kind", ["old weight norm", "weight norm", "spectral norm"])
@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated")
def test_a_normed_layer_is_one_layer(kind: str, counting: str) -> None:
    task = Task()
    task.backbone = nn.Sequential(normed(kind), normed(kind))
    modules = freezable_modules(task)
    layers = freezable_layers(task, modules, counting)  # type: ignore[arg-type]
    assert [layer.name for layer in layers] == ["backbone.0", "backbone.1"]
    last = {name for name, _ in task.named_parameters() if name.startswith("backbone.1.")}
    assert set(layers[1].parameters) == last
    assert len(last) == (2 if kind == "spectral norm" else 3)
    selection = resolve(task, modules, LastLayers(1, counting), train_bn=False)  # type: ignore[arg-type]
    assert set(selection.trainable) == last | {"head.weight", "head.bias"}
    assert selection.layers == ("backbone.1",)
    assert set(resolve(task, modules, Nothing(), train_bn=False).trainable) == {"head.weight", "head.bias"}


class Unfreezes(FlashBaseFinetuning):
    """Of the user's own: all of the backbone at epoch 1, its first layer alone at epoch 2."""

    def finetune_function(self, pl_module: pl.LightningModule, epoch: int, optimizer: object) -> None:
        backbone = pl_module.backbone
        if epoch:
            self.unfreeze_and_extend_param_group(backbone if epoch == 1 else backbone[0], optimizer)


def fit(task: Task, callback: pl.Callback, epochs: int) -> list[set[str]]:
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    seen: list[set[str]] = []

    class See(pl.Callback):
        def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, *_: object) -> None:
            seen.append({name for name, p in module.named_parameters() if p.requires_grad})

    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        devices=1,
        callbacks=[callback, See()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data = torch.utils.data.TensorDataset(torch.randn(4, 2, generator=torch.Generator().manual_seed(0)))
    trainer.fit(task, torch.utils.data.DataLoader(data, batch_size=4))
    return seen


def test_a_callback_of_the_users_own() -> None:
    assert fit(frozen("backbone.0."), Unfreezes(), 3) == [HEAD | NORM, ALL - FIRST, ALL]


def test_a_second_fit_and_what_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    task = frozen("backbone.0.")
    with caplog.at_level(logging.INFO, "flash_strategies"):
        assert fit(task, ScheduledFinetuning("freeze"), 1) == [HEAD | NORM]
        first = [record.getMessage() for record in caplog.records]
        caplog.clear()
        assert fit(task, ScheduledFinetuning(("freeze_unfreeze", 1)), 2) == [HEAD | NORM, ALL - FIRST]
    second = [record.getMessage() for record in caplog.records]
    assert [line.partition(" required")[0] for line in first[:1]] == [
        "2 parameters (backbone.0.weight, backbone.0.bias)"
    ]
    assert first[1].startswith("epoch 0: phase freeze") or first[1].startswith("epoch 0: phase frozen")
    assert "7 trainable parameters of 25, 1 layers," in first[1]
    assert second[1].startswith("4 parameters (backbone.2.weight, backbone.2.bias, backbone.3.weight, ...) left frozen")
    expected = "epoch 1: phase unfrozen, 7 -> 19 trainable parameters of 25, unfrozen at learning rate 0.1, 3 layers,"
    assert second[3].startswith(expected)
    assert second[3].endswith("of optimizer state per rank; ranks equal")
    assert len(second) == 4


def test_what_is_reported_is_seen_without_logging_set_up(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from flash_strategies import reporting

    for rank, seen in (("0", "once\n"), ("1", "")):
        monkeypatch.setenv("RANK", rank)
        with monkeypatch.context() as bare:
            bare.setattr(logging.Logger, "hasHandlers", lambda self: False)
            reporting.say("once")
        assert capsys.readouterr().err == seen


def test_what_another_reports_is_silenced_but_no_note(caplog: pytest.LogCaptureFixture) -> None:
    from flash_strategies import reporting

    with caplog.at_level(logging.INFO, "flash_strategies"):
        with reporting.silenced():
            reporting.say("a transition")
            reporting.say("a buffer differed", reporting.NOTES)
        reporting.say("another transition")
    assert caplog.messages == ["a buffer differed", "another transition"]
