"""RunConfig: all options of one run, checked in one place, read from the command line and YAML files."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from flash_launch.errors import ConfigError
from flash_launch.options import (
    DataOptions,
    OptimizerOptions,
    OutputOptions,
    RankOptions,
    StrategyOptions,
    TaskOptions,
    TrainerOptions,
    TrainingOptions,
    WandbOptions,
    option_name,
)

if TYPE_CHECKING:
    from flash_strategies.rate import Rate
    from flash_strategies.registry import StrategySpec

__all__ = ["RunConfig"]

_DEEPSPEED_SUFFIX = "_deepspeed"

_Check = Callable[[float], bool]
_AT_LEAST_0: tuple[_Check, str] = (lambda value: 0 <= value < math.inf, "0 or more")
_AT_LEAST_1: tuple[_Check, str] = (lambda value: value >= 1, "1 or more")
_POSITIVE: tuple[_Check, str] = (lambda value: 0 < value < math.inf, "a number above 0")
_FRACTION: tuple[_Check, str] = (lambda value: 0 <= value < 1, "from 0 up to, but not including, 1")

_BOUNDS: dict[str, tuple[_Check, str]] = {
    "nodes": _AT_LEAST_1,
    "procs_per_node": _AT_LEAST_1,
    "timeout": _POSITIVE,
    "unfreeze_epoch": _AT_LEAST_0,
    "num_layers": _AT_LEAST_1,
    "backbone_lr": _POSITIVE,
    "backbone_lr_ratio": _POSITIVE,
    "backbone_lr_ramp": _POSITIVE,
    "val_fraction": _FRACTION,
    "image_size": _AT_LEAST_1,
    "num_workers": _AT_LEAST_0,
    "max_epochs": _AT_LEAST_1,
    "batch_size": _AT_LEAST_1,
    "accumulate": _AT_LEAST_1,
    "gradient_clip": _POSITIVE,
    "seed": (lambda value: 0 <= value < 2**32, "from 0 to 4294967295"),
    "limit_train_batches": _AT_LEAST_1,
    "limit_val_batches": _AT_LEAST_0,
    "lr": _POSITIVE,
    "weight_decay": _AT_LEAST_0,
    "momentum": _FRACTION,
    "warmup_steps": _AT_LEAST_0,
    "keep_last": _AT_LEAST_1,
}

_STRATEGY_OF = {
    "unfreeze_epoch": "freeze_unfreeze",
    "milestones": "unfreeze_milestones",
    "num_layers": "unfreeze_milestones",
    "layer_count": "unfreeze_milestones",
}


@dataclass(frozen=True)
class RunConfig(
    WandbOptions,
    OutputOptions,
    OptimizerOptions,
    TrainerOptions,
    TrainingOptions,
    DataOptions,
    TaskOptions,
    StrategyOptions,
    RankOptions,
):
    """Everything one run was asked to do. The fields and their docstrings are those of the parts in options.py.

    Raises:
        ConfigError: a value out of its range, or an option that does not belong to the strategy.
    """

    PARTS: ClassVar[tuple[type, ...]] = (
        RankOptions,
        StrategyOptions,
        TaskOptions,
        DataOptions,
        TrainingOptions,
        TrainerOptions,
        OptimizerOptions,
        OutputOptions,
        WandbOptions,
    )

    def __post_init__(self) -> None:
        for name, (holds, range_) in _BOUNDS.items():
            value = getattr(self, name)
            if value is not None and not holds(value):
                raise ConfigError(f"{option_name(name)} was given {value}: it must be {range_}")
        for name in ("strategy", "backbone", "data", "setup", "task", "weights", "output_dir"):
            if getattr(self, name) is not None and not getattr(self, name).strip():
                raise ConfigError(f"{option_name(name)} was given an empty text: give a value or leave the option out")
        if self.checkpoint_every[0] < 0:
            raise ConfigError(f"--checkpoint-every was given {self.checkpoint_every[0]}: it must be 0 or more")
        if self.resume == "auto" and self.checkpoint_every[0] == 0:
            raise ConfigError("--resume auto needs checkpoints, and --checkpoint-every 0 saves none: leave one out")
        self._check_strategy_options()

    @property
    def name(self) -> str:
        """What the run is called in the names of folders."""
        return self.strategy

    @property
    def user_code(self) -> bool:
        """Whether Python files in the current folder take part in the run."""
        return self.task is not None or ":" in f"{self.data}"

    def placed(self, nodes: int, procs_per_node: int, accelerator: str) -> "RunConfig":
        """A copy that says where it runs, and on which setup."""
        where = {"nodes": nodes, "procs_per_node": procs_per_node, "accelerator": accelerator}
        return self.replace(**where, setup=self.setup_name)

    @property
    def own_strategy(self) -> bool:
        """Whether the strategy is one of the user's own, module:Class; it has no `_deepspeed` name."""
        return ":" in self.strategy

    @property
    def deepspeed(self) -> bool:
        """Whether the strategy's `_deepspeed` name was asked for."""
        return self.strategy.endswith(_DEEPSPEED_SUFFIX) and not self.own_strategy

    @property
    def setup_name(self) -> str:
        """The setup that is used: the one named, else `zero2` for a `_deepspeed` strategy and `ddp` for the others."""
        return self.setup or ("zero2" if self.deepspeed else "ddp")

    def strategy_spec(self) -> "StrategySpec":
        """The strategy with its options, as `flash_strategies` takes it; not for one of the user's own.

        Raises:
            StrategyNameError, StrategyTypeError, StrategyValueError: see flash_strategies.registry.
        """
        assert not self.own_strategy, self.strategy
        from flash_strategies.registry import with_rate

        spec, rate = self._spec_without_rate(), self.backbone_rate()
        return spec if rate is None else with_rate(spec, rate)

    def backbone_rate(self) -> "Rate | None":
        """The rate of what is unfrozen, where an option gives one."""
        from flash_strategies.rate import Rate

        if self.backbone_lr is None and self.backbone_lr_ratio is None:
            return None
        return Rate(self.backbone_lr, self.backbone_lr_ratio, self.backbone_lr_ramp, self.backbone_lr_align)

    def _spec_without_rate(self) -> "StrategySpec":
        from flash_strategies.freeze_unfreeze import FreezeUnfreeze
        from flash_strategies.registry import StrategySpec, parse_strategy
        from flash_strategies.unfreeze_milestones import UnfreezeMilestones

        # A bare name may lack what its options fill in (freeze_unfreeze needs an epoch), so these two are built here.
        match self.strategy.removesuffix(_DEEPSPEED_SUFFIX):
            case "freeze_unfreeze":
                return StrategySpec(self.strategy, FreezeUnfreeze(self.unfreeze_epoch), self.deepspeed)
            case "unfreeze_milestones":
                milestones = UnfreezeMilestones(self.milestones, self.num_layers, self.layer_count)
                return StrategySpec(self.strategy, milestones, self.deepspeed)
            case _:
                # the metadata of one that another package registered; Flash's take none
                return parse_strategy(
                    (self.strategy, dict(self.strategy_args)) if self.strategy_args else self.strategy
                )

    def check(self) -> None:
        """Check what needs the strategies and the setups: names, epochs and contradictions. Does not import torch.

        Raises:
            FlashLaunchError: StrategyNameError, StrategyValueError, SetupError or ConfigError.
        """
        from flash_launch.contradictions import check_options

        check_options(self)

    def replace(self, **changes: object) -> "RunConfig":
        """A copy with other values in some fields."""
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]

    def to_yaml(self) -> str:
        """This configuration as YAML, a key per option; `from_yaml` gives an equal one."""
        import yaml

        values = {
            field.name: list(value) if isinstance(value := getattr(self, field.name), tuple) else value
            for part in self.PARTS
            for field in dataclasses.fields(part)
        }
        return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)

    @classmethod
    def from_yaml(cls, text: str, source: str = "the configuration") -> "RunConfig":
        """The configuration that a YAML text gives; what it leaves out has its default.

        Raises:
            ConfigError: no YAML, an unknown or repeated key, a value of the wrong type. `source` begins the message.
        """
        from flash_launch.option_parser import read_yaml, values_from_mapping

        return cls.from_values(values_from_mapping(read_yaml(text, source), source))

    @classmethod
    def from_values(cls, values: Mapping[str, object]) -> "RunConfig":
        """From values whose names and types were checked by option_parser."""
        trainer = values.get("trainer")
        if isinstance(trainer, Mapping):  # typed with dashes or underscores, as options are
            values = {**values, "trainer": {str(name).replace("-", "_"): value for name, value in trainer.items()}}
        return cls(**values)  # type: ignore[arg-type]

    def default(self, name: str) -> object:
        """What an option has where it is not given; for options with a plain default."""
        return next(field.default for field in dataclasses.fields(self) if field.name == name)

    def _check_strategy_options(self) -> None:
        base = self.strategy.removesuffix(_DEEPSPEED_SUFFIX)
        for name, owner in _STRATEGY_OF.items():
            if getattr(self, name) != self.default(name) and base != owner:
                suffix = _DEEPSPEED_SUFFIX if self.deepspeed else ""
                raise ConfigError(
                    f"{option_name(name)} belongs to --strategy {owner}, but the strategy is {self.strategy}: "
                    f"leave it out, or give --strategy {owner}{suffix}"
                )
        self._check_backbone_rate()
        if self.milestones is not None and not 0 <= self.milestones[0] < self.milestones[1]:
            first, second = self.milestones
            raise ConfigError(
                f"--milestones was given {first} {second}: it must be two epochs, counted from 0, of which the second "
                f"is later, for example --milestones 2 5"
            )

    def _check_backbone_rate(self) -> None:
        if self.backbone_lr is not None and self.backbone_lr_ratio is not None:
            raise ConfigError(
                f"--backbone-lr {self.backbone_lr:g} and --backbone-lr-ratio {self.backbone_lr_ratio:g} both say what "
                "the rate at the unfreeze is: give one of them"
            )
        given = self.backbone_lr is not None or self.backbone_lr_ratio is not None
        if self.backbone_lr_ramp is not None and not given:
            raise ConfigError(
                f"--backbone-lr-ramp {self.backbone_lr_ramp:g} has no rate to begin with: give --backbone-lr or "
                "--backbone-lr-ratio, too"
            )
        if not self.backbone_lr_align and self.backbone_lr_ramp is None:
            raise ConfigError("--backbone-lr-align false is about a ramp: give --backbone-lr-ramp, or leave it out")
        option = "--backbone-lr" if self.backbone_lr is not None else "--backbone-lr-ratio"
        if given and self.unfreeze_epoch == 0:
            raise ConfigError(
                f"{option} is for what a strategy unfreezes, and --unfreeze-epoch 0 freezes nothing at first: give a "
                "later epoch, or leave it out"
            )
        if given and self.strategy.removesuffix(_DEEPSPEED_SUFFIX) in ("no_freeze", "freeze"):
            raise ConfigError(
                f"{option} is for what a strategy unfreezes, and --strategy {self.strategy} unfreezes nothing: leave "
                "it out, or give --strategy freeze_unfreeze"
            )
