"""Selection: what a layer is, which parameters each phase trains, batch norms, shared parameters, refusals."""

from collections.abc import Callable
from fractions import Fraction

import pytest
import torch
import torchvision
from pytorch_lightning.callbacks import BaseFinetuning
from torch import nn

from flash_strategies.errors import ModulesToFreezeError, StrategyTypeError, StrategyValueError
from flash_strategies.schedule import Everything, LastLayers, Matching, Nothing, What
from flash_strategies.selection import (
    Selection,
    freezable_layers,
    freezable_modules,
    frozen_by_user,
    resolve,
)


class Task(nn.Module):
    """A backbone and a head, as most tasks are."""

    def __init__(self, backbone: nn.Module, head: nn.Module | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(4, 2) if head is None else head


class Naming(nn.Module):
    """A task that says itself what to freeze."""

    def __init__(self, choose: Callable[["Naming"], object]) -> None:
        super().__init__()
        self.body = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4)})
        self.neck = nn.Linear(4, 4)
        self.head = nn.Linear(4, 2)
        self.choose = choose

    def modules_to_freeze(self) -> object:
        return self.choose(self)


def small() -> Task:
    """Conv, batch norm, ReLU, conv, batch norm, pool; then the head."""
    layers = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.MaxPool2d(2)]
    return Task(nn.Sequential(*layers))


def torchvision_task(name: str) -> Task:
    with torch.device("meta"):
        model = torchvision.models.get_model(name, weights=None)
        head = {"resnet18": "fc", "vit_b_16": "heads", "swin_t": "head"}[name]
        setattr(model, head, nn.Identity())
        return Task(model)


def of(task: nn.Module, what: What, *, train_bn: bool = True, always_frozen: frozenset[str] = frozenset()) -> Selection:
    selection = resolve(task, freezable_modules(task), what, train_bn=train_bn, always_frozen=always_frozen)
    names = [name for name, _ in task.named_parameters()]
    assert [name for name in names if name in selection.trainable] == [*selection.trainable]
    assert [name for name in names if name in selection.frozen] == [*selection.frozen]
    assert sorted(selection.trainable + selection.frozen) == sorted(names)
    return selection


HEAD = ("head.weight", "head.bias")
NORMS = tuple(f"backbone.{i}.{kind}" for i in (1, 4) for kind in ("weight", "bias"))


@pytest.mark.parametrize(
    ("what", "train_bn", "trainable", "layers", "eval_batch_norms"),
    [
        (Nothing(), False, HEAD, (), ("backbone.1", "backbone.4")),
        (Nothing(), True, NORMS + HEAD, ("backbone.1", "backbone.4"), ()),
        (LastLayers(1), False, NORMS[2:] + HEAD, ("backbone.4",), ("backbone.1",)),
        (LastLayers(1), True, NORMS + HEAD, ("backbone.1", "backbone.4"), ()),
        (
            LastLayers(2),
            False,
            ("backbone.3.weight", "backbone.3.bias", *NORMS[2:], *HEAD),
            ("backbone.3", "backbone.4"),
            ("backbone.1",),
        ),
        (LastLayers(Fraction(1, 4)), False, NORMS[2:] + HEAD, ("backbone.4",), ("backbone.1",)),
        (LastLayers(2, "flash"), False, NORMS[2:] + HEAD, ("backbone.4",), ("backbone.1",)),
        # a middle that trains while the end is frozen again, and half of a layer
        (
            Matching(("backbone.0.*",)),
            False,
            ("backbone.0.weight", "backbone.0.bias", *HEAD),
            ("backbone.0",),
            ("backbone.1", "backbone.4"),
        ),
        (
            Matching(("*.3.bias", "backbone.4.*", "head.*")),
            False,
            ("backbone.3.bias", *NORMS[2:], *HEAD),
            ("backbone.3", "backbone.4"),
            ("backbone.1",),
        ),
    ],
)
def test_what_trains(
    what: What, train_bn: bool, trainable: tuple[str, ...], layers: tuple[str, ...], eval_batch_norms: tuple[str, ...]
) -> None:
    selection = of(small(), what, train_bn=train_bn)
    assert selection.trainable == trainable
    assert selection.layers == layers
    assert selection.eval_batch_norms == eval_batch_norms


@pytest.mark.parametrize("train_bn", [True, False])
@pytest.mark.parametrize("what", [Everything(), LastLayers(4), LastLayers(Fraction(1)), Matching(("*",))])
def test_everything_trains(what: What, train_bn: bool) -> None:
    selection = of(small(), what, train_bn=train_bn)
    assert selection.frozen == ()
    assert selection.layers == ("backbone.0", "backbone.1", "backbone.3", "backbone.4")
    assert selection.eval_batch_norms == ()


def test_nothing_is_changed_and_requires_grad_is_not_asked() -> None:
    task = small()
    task.backbone.requires_grad_(False)
    task.eval()
    assert of(task, Everything()).frozen == ()
    assert not any(p.requires_grad for p in task.backbone.parameters())


@pytest.mark.parametrize(
    ("name", "count", "first", "last", "flash_count"),
    [
        ("resnet18", 40, ("conv1", ("weight",)), ("layer4.1.bn2", ("weight", "bias")), 52),
        ("vit_b_16", 76, ("", ("class_token",)), ("encoder.ln", ("weight", "bias")), None),
        ("swin_t", 93, ("features.0.0", ("weight", "bias")), ("norm", ("weight", "bias")), None),
    ],
)
def test_layers_of_torchvisions_backbones(
    name: str,
    count: int,
    first: tuple[str, tuple[str, ...]],
    last: tuple[str, tuple[str, ...]],
    flash_count: int | None,
) -> None:
    task = torchvision_task(name)
    layers = freezable_layers(task, freezable_modules(task))
    assert len(layers) == count
    for layer, (module, parameters) in ((layers[0], first), (layers[-1], last)):
        path = f"backbone.{module}".rstrip(".")
        assert (layer.name, layer.parameters) == (path, tuple(f"{path}.{p}" for p in parameters))
    # every parameter of the backbone is in one layer, in the order of the task
    assert [p for layer in layers for p in layer.parameters] == [
        f"backbone.{n}" for n, _ in task.backbone.named_parameters()
    ]
    by_flash = freezable_layers(task, freezable_modules(task), "flash")
    assert len(by_flash) == (len(BaseFinetuning.flatten_modules(task.backbone)) if flash_count is None else flash_count)


def test_flash_counts_51_layers_of_resnet18_and_the_last_trains_nothing() -> None:
    with torch.device("meta"):
        children = [*torchvision.models.resnet18(weights=None).children()][:-1]
        task = Task(nn.Sequential(*children))
    layers = freezable_layers(task, freezable_modules(task), "flash")
    assert len(layers) == 51
    assert (layers[-1].name, layers[-1].parameters) == ("backbone.8", ())
    with pytest.raises(StrategyValueError, match=r"hold no parameter.*AdaptiveAvgPool2d.*give 2 or more"):
        of(task, LastLayers(1, "flash"))
    assert of(task, LastLayers(2, "flash"), train_bn=False).layers == ("backbone.7.1.bn2",)
    assert of(task, LastLayers(1), train_bn=False).layers == ("backbone.7.1.bn2",)


@pytest.mark.parametrize(
    "build",
    [
        lambda relu: nn.Sequential(nn.Linear(4, 4), relu, nn.Linear(4, 4), relu, nn.Linear(4, 4), relu),
        lambda relu: nn.Sequential(
            nn.Sequential(nn.Linear(4, 4), relu), nn.ModuleDict({"a": nn.Linear(4, 4), "b": relu})
        ),
        lambda relu: nn.ModuleDict(
            {"a": nn.ModuleList([relu, nn.Linear(4, 4)]), "b": nn.TransformerEncoderLayer(4, 2)}
        ),
        lambda relu: nn.MultiheadAttention(4, 2),
    ],
)
def test_flash_counting_is_flashs_own(build: Callable[[nn.Module], nn.Module]) -> None:
    task = Task(build(nn.ReLU()))
    theirs = BaseFinetuning.flatten_modules(task.backbone)
    ours = freezable_layers(task, freezable_modules(task), "flash")
    names = {module: name for name, module in task.named_modules()}
    assert [layer.name for layer in ours] == [names[module] for module in theirs]


def test_vit_tokens_and_swin_tables_are_layers_of_their_own() -> None:
    task = torchvision_task("vit_b_16")
    layers = {layer.name: layer.parameters for layer in freezable_layers(task, freezable_modules(task))}
    assert layers["backbone"] == ("backbone.class_token",)
    assert layers["backbone.encoder"] == ("backbone.encoder.pos_embedding",)
    attention = "backbone.encoder.layers.encoder_layer_0.self_attention"
    assert layers[attention] == (f"{attention}.in_proj_weight", f"{attention}.in_proj_bias")
    # the class token is the first thing the network reads, so it is the last to unfreeze
    assert of(task, LastLayers(75)).frozen == ("backbone.class_token",)
    swin = torchvision_task("swin_t")
    layers = {layer.name: layer.parameters for layer in freezable_layers(swin, freezable_modules(swin))}
    assert layers["backbone.features.1.0.attn"] == ("backbone.features.1.0.attn.relative_position_bias_table",)


def test_a_quarter_is_rounded_up() -> None:
    task = torchvision_task("swin_t")  # 93 layers
    assert len(of(task, LastLayers(Fraction(1, 4))).layers) == 24


@pytest.mark.parametrize(
    ("what", "said"),
    [
        (LastLayers(5), r"the last 5 layers.*have 4 \(counting='parameters'\): give 1 to 4"),
        (LastLayers(7, "flash"), r"the last 7 layers.*have 6 \(counting='flash'\)"),
        (LastLayers(1, "flash"), "a MaxPool2d.*give 2 or more"),
        (Matching(("backbone.5.*",)), r"'backbone.5.\*' matches no parameter of Task.*backbone\.\d\.\*"),
        (Matching(("backbone.0.*", "backbone.3.wieght")), r"'backbone.3.wieght' matches no.*backbone.3.weight"),
        (Matching(("backbone.3",)), r"backbone\.3\.\*"),
    ],
)
def test_what_the_backbone_does_not_have_is_refused(what: What, said: str) -> None:
    with pytest.raises(StrategyValueError, match=said):
        of(small(), what)


def test_a_selection_in_which_nothing_trains_is_refused() -> None:
    task = Task(nn.Linear(4, 4), nn.Identity())
    with pytest.raises(StrategyValueError, match="nothing of Task would train, all its parameters are frozen"):
        of(task, Nothing())
    assert of(task, LastLayers(1)).frozen == ()
    with pytest.raises(StrategyValueError, match="nothing of Task would train"):
        of(small(), Nothing(), train_bn=False, always_frozen=frozenset(HEAD))


def test_what_the_user_froze_outside_of_the_backbone_stays_frozen() -> None:
    task = small()
    task.head.bias.requires_grad_(False)
    task.backbone.requires_grad_(False)
    kept = frozen_by_user(task, freezable_modules(task))
    assert kept == {"head.bias"}
    assert of(task, Everything(), always_frozen=kept).frozen == ("head.bias",)
    with pytest.raises(StrategyValueError, match=r"'head\.bais', the nearest names are head\.bias"):
        of(task, Everything(), always_frozen=frozenset({"head.bais"}))


@pytest.mark.parametrize(
    "norm",
    [nn.BatchNorm1d(4), nn.BatchNorm3d(4), nn.SyncBatchNorm(4), nn.LazyBatchNorm2d(), nn.BatchNorm2d(4, affine=False)],
)
def test_every_kind_of_batch_norm_is_held_in_eval_mode(norm: nn.Module) -> None:
    task = Task(nn.Sequential(nn.Linear(4, 4), norm, nn.Linear(4, 4)))
    assert of(task, Nothing(), train_bn=False).eval_batch_norms == ("backbone.1",)
    assert of(task, LastLayers(1), train_bn=False).eval_batch_norms == ("backbone.1",)
    assert of(task, Matching(("backbone.0.*",)), train_bn=False).eval_batch_norms == ("backbone.1",)
    assert of(task, Matching(("backbone.[01].*", "head.*")), train_bn=False).eval_batch_norms == ()
    assert of(task, LastLayers(Fraction(1)), train_bn=False).eval_batch_norms == ()
    assert of(task, Nothing(), train_bn=True).eval_batch_norms == ()


def test_other_norms_freeze_like_any_layer() -> None:
    task = Task(
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.InstanceNorm2d(4, affine=True), nn.LayerNorm(4))
    )
    selection = of(task, Nothing(), train_bn=True)
    assert (selection.trainable, selection.eval_batch_norms) == (HEAD, ())


def test_a_batch_norm_without_parameters_goes_with_the_layers_around_it() -> None:
    task = Task(
        nn.Sequential(
            nn.Linear(4, 4), nn.BatchNorm1d(4, affine=False), nn.Linear(4, 4), nn.BatchNorm1d(4, affine=False)
        )
    )
    assert of(task, LastLayers(1), train_bn=False).eval_batch_norms == ("backbone.1",)


def test_batch_norms_outside_of_the_backbone_are_not_touched() -> None:
    task = Task(nn.Linear(4, 4), nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 2)))
    assert of(task, Nothing(), train_bn=False).eval_batch_norms == ()


def test_a_parameter_shared_with_the_head_trains() -> None:
    task = Task(nn.Sequential(nn.Embedding(2, 4), nn.Linear(4, 4)), nn.Linear(4, 2))
    task.head.weight = task.backbone[0].weight  # type: ignore[index]
    for what in (Nothing(), Matching(("backbone.1.bias",))):
        selection = of(task, what)
        assert selection.trainable[0] == "backbone.0.weight"
        assert "head.weight" not in selection.trainable + selection.frozen
    # it is not the user's to have frozen outside: the backbone owns it too
    task.backbone.requires_grad_(False)
    assert frozen_by_user(task, freezable_modules(task)) == frozenset()


def test_a_parameter_shared_with_an_unfrozen_layer_trains() -> None:
    backbone = nn.Sequential(nn.Embedding(4, 4), nn.Linear(4, 4), nn.Linear(4, 4, bias=False))
    backbone[2].weight = backbone[0].weight
    selection = of(Task(backbone), LastLayers(1))
    assert selection.trainable == ("backbone.0.weight", *HEAD)
    assert selection.layers == ("backbone.0", "backbone.2")
    assert of(Task(backbone), Matching(("backbone.2.weight",))).trainable == ("backbone.0.weight", *HEAD)


def test_equal_values_are_not_taken_for_one_parameter() -> None:
    task = Task(nn.Sequential(nn.LayerNorm(4), nn.LayerNorm(4)))
    assert of(task, LastLayers(1)).frozen == ("backbone.0.weight", "backbone.0.bias")


def test_a_shared_module_is_one_layer() -> None:
    block = nn.Linear(4, 4)
    task = Task(nn.Sequential(block, nn.ReLU(), block, nn.Linear(4, 4)))
    layers = freezable_layers(task, freezable_modules(task))
    assert [layer.name for layer in layers] == ["backbone.0", "backbone.3"]


def test_only_what_can_have_a_gradient_trains() -> None:
    backbone = nn.Linear(4, 4)
    backbone.weight = nn.Parameter(torch.zeros(4, 4, dtype=torch.int8), requires_grad=False)
    assert of(Task(backbone), Everything()).frozen == ("backbone.weight",)


@pytest.mark.parametrize(
    ("choose", "frozen"),
    [
        (lambda task: task.neck, ("neck",)),
        (lambda task: task.body, ("body.a", "body.b")),
        (lambda task: [task.body, [(task.neck,)], task.neck], ("body.a", "body.b", "neck")),
        (lambda task: (module for module in (task.neck, task.body["a"])), ("body.a", "neck")),
        (lambda task: task.body.values(), ("body.a", "body.b")),
        (lambda task: nn.Sequential(task.body["b"], nn.ReLU(), task.neck), ("body.b", "neck")),
        (lambda task: None, ()),
        (lambda task: [], ()),
    ],
)
def test_modules_to_freeze_gives_a_module_a_nest_or_none(
    choose: Callable[[Naming], object], frozen: tuple[str, ...]
) -> None:
    task = Naming(choose)
    assert of(task, Nothing()).frozen == tuple(f"{name}.{kind}" for name in frozen for kind in ("weight", "bias"))


def test_nothing_to_freeze_needs_nothing_to_unfreeze() -> None:
    assert of(Naming(lambda task: None), LastLayers(3)).frozen == ()


def test_layers_are_in_the_order_in_which_the_modules_are_given() -> None:
    task = Naming(lambda task: [task.neck, task.body])
    assert [layer.name for layer in freezable_layers(task, freezable_modules(task))] == ["neck", "body.a", "body.b"]
    assert of(task, LastLayers(1)).layers == ("body.b",)


@pytest.mark.parametrize(
    ("choose", "said"),
    [
        (lambda task: "body", "a str, 'body'"),
        (lambda task: ["body"], "a str, 'body'"),
        (lambda task: 3, "a int, 3"),
        (lambda task: {"a": task.neck}, "a dict"),
        (lambda task: [task.neck, None], "a NoneType, None"),
        (lambda task: task.neck.parameters(), r"a Parameter.*Matching\(patterns\)"),
    ],
)
def test_modules_to_freeze_giving_something_else_is_refused(choose: Callable[[Naming], object], said: str) -> None:
    with pytest.raises(StrategyTypeError, match=rf"(?s)Naming.modules_to_freeze\(\) gave {said}"):
        freezable_modules(Naming(choose))


@pytest.mark.parametrize(
    "choose",
    [
        lambda task: nn.Linear(4, 4),
        lambda task: [task.neck, nn.BatchNorm1d(4, affine=False)],
        lambda task: nn.ParameterList(task.body.parameters()),
    ],
)
def test_modules_that_are_not_the_tasks_are_refused(choose: Callable[[Naming], object]) -> None:
    task = Naming(choose)
    with pytest.raises(StrategyValueError, match="is not a module of Naming"):
        freezable_modules(task)
    with pytest.raises(StrategyValueError, match="is not a module of Naming"):
        resolve(task, [nn.Linear(4, 4)], Nothing(), train_bn=True)


def test_a_task_without_a_backbone_is_told_what_to_do() -> None:
    with pytest.raises(ModulesToFreezeError, match=r"Sequential does not say.*it has 0, 1.*self\.backbone") as caught:
        freezable_modules(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)))
    assert isinstance(caught.value, AttributeError)


def test_a_module_called_modules_to_freeze_is_not_called() -> None:
    task = nn.Module()
    task.modules_to_freeze = nn.Linear(4, 4)
    with pytest.raises(StrategyTypeError, match="must be a method"):
        freezable_modules(task)
