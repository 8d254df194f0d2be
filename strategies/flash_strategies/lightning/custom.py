"""One's own finetuning callback, written as Lightning Flash's guide shows it."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

import pytorch_lightning as pl
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from flash_strategies.checkpoint.engine_state import EngineState, Read
from flash_strategies.errors import ModulesToFreezeError
from flash_strategies.handover import Handover, handed_over, set_trainable
from flash_strategies.lightning.callback import FinetuningCallback
from flash_strategies.reporting import NOTES, say
from flash_strategies.selection import may_train

Modules = nn.Module | Iterable["Modules"]


class FlashBaseFinetuning(FinetuningCallback):
    """Base of custom strategies: override `finetune_function`, and `freeze_before_training` if need be.

    Calls of `unfreeze_and_extend_param_group` and its like are noted while `finetune_function` runs; what they add up
    to is then agreed over all ranks and made in one transition.
    """

    def __init__(
        self, attr_names: str | Iterable[str] = "backbone", train_bn: bool = True, *, timeout: float | None = None
    ) -> None:
        """Name what is frozen at first.

        Args:
            attr_names: attributes of the task whose modules are frozen before training.
            train_bn: keep their batch norms trainable.
            timeout: seconds to wait for another rank; None is the process group's own time-out.
        """
        super().__init__(timeout=timeout)
        self.attr_names = [attr_names] if isinstance(attr_names, str) else list(attr_names)
        self.train_bn = train_bn
        self._task: pl.LightningModule | None = None
        self._optimizer: Optimizer | None = None
        self._trainable: set[str] = set()
        self._asleep: set[str] = set()
        self._rates: dict[str, float] = {}

    # ---- to override

    def freeze_before_training(self, pl_module: pl.LightningModule) -> None:
        """Freeze the modules of `pl_module` that `attr_names` names; called before the optimizer is built."""
        self.freeze_using_attr_names(pl_module, self.attr_names, train_bn=self.train_bn)

    def finetune_function(self, pl_module: pl.LightningModule, epoch: int, optimizer: Optimizer) -> None:
        """Called at the start of each epoch: unfreeze what trains from then on.

        Args:
            pl_module: the task.
            epoch: that starts, from 0.
            optimizer: the torch optimizer, for `unfreeze_and_add_param_group` and its like. Those who take a fourth
                argument, as Flash's `opt_idx`, are given 0.

        Raises:
            NotImplementedError: it is not overridden.
        """
        raise NotImplementedError(f"{type(self).__name__} must override finetune_function")

    # ---- to call

    def freeze_using_attr_names(
        self, pl_module: pl.LightningModule, attr_names: Iterable[str], train_bn: bool = True
    ) -> None:
        """Freeze the modules under these attributes.

        Args:
            pl_module: the task.
            attr_names: its attributes.
            train_bn: keep their batch norms trainable.

        Raises:
            ModulesToFreezeError: the task has no such attribute.
        """
        for name in attr_names:
            module = getattr(pl_module, name, None)
            if not isinstance(module, nn.Module):
                have = ", ".join(child for child, _ in pl_module.named_children())
                raise ModulesToFreezeError(
                    f"{type(self).__name__} freezes the attribute {name!r}, and {type(pl_module).__name__} has no "
                    f"module of that name; it has {have or 'none'}"
                )
            self.freeze(module, train_bn=train_bn)

    def freeze(self, modules: Modules, train_bn: bool = True) -> None:
        """Freeze modules; with `train_bn`, all but their batch norms."""
        for module in _leaves_first(modules):
            norm = isinstance(module, _BatchNorm)
            if norm and train_bn:
                continue
            names = self._names(module)
            self._trainable.difference_update(names)
            if norm or module._buffers:
                self._asleep.add(self._module_name(module))

    def make_trainable(self, modules: Modules, train_bn: bool = True) -> set[str]:
        """Unfreeze modules; without `train_bn`, all but their batch norms. Gives the names newly unfrozen.

        What the user froze before training stays so, unless these modules have nothing else.
        """
        meant: set[str] = set()
        for module in _leaves_first(modules):
            norm = isinstance(module, _BatchNorm)
            if norm and not train_bn:
                continue
            meant |= self._names(module)
            self._asleep.discard(self._module_name(module))
        if meant and meant <= self.users_frozen:
            say(Handover(named=tuple(sorted(meant))).messages[0], NOTES)
            self.users_frozen -= meant
        fresh = meant - self.users_frozen - self._trainable
        self._trainable |= fresh
        return fresh

    def unfreeze_and_extend_param_group(self, modules: Modules, optimizer: Optimizer, train_bn: bool = True) -> None:
        """Unfreeze modules, with the learning rate of the group they belong to.

        Args:
            modules: modules, or nested lists of them.
            optimizer: as `finetune_function` got it.
            train_bn: their batch norms, too.
        """
        self.make_trainable(modules, train_bn)

    def unfreeze_and_add_param_group(
        self,
        modules: Modules,
        optimizer: Optimizer,
        lr: float | None = None,
        initial_denom_lr: float = 10.0,
        train_bn: bool = True,
    ) -> None:
        """Unfreeze modules with a learning rate of their own.

        Args:
            modules: modules, or nested lists of them.
            optimizer: as `finetune_function` got it.
            lr: the learning rate; None: that of the optimizer's first group, divided by `initial_denom_lr`.
            initial_denom_lr: see `lr`.
            train_bn: their batch norms, too.
        """
        rate = lr if lr is not None else float(optimizer.param_groups[0]["lr"]) / initial_denom_lr
        self._rates.update(dict.fromkeys(self.make_trainable(modules, train_bn), rate))

    # ---- FinetuningCallback

    def prepare(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        """Freeze before the optimizer is built."""
        self._task = task
        handover = handed_over(task, ())
        for message in handover.messages:
            say(message)
        self.users_frozen = frozenset(handover.kept)
        self._trainable = {name for name, p in task.named_parameters() if may_train(p)} - self.users_frozen
        self._asleep, self._rates = set(), {}
        self.freeze_before_training(task)
        set_trainable(task, self._trainable)

    def resume(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        state: EngineState,
        read: Read,
        schedulers: Sequence[Mapping[str, object]],
        *,
        in_epoch: bool,
    ) -> None:
        """As FinetuningCallback; what trains is known from the state."""
        self._trainable = set(state.trainable) | self.transitions.engine.left_out
        super().resume(trainer, pl_module, state, read, schedulers, in_epoch=in_epoch)

    def state_dict(self) -> dict[str, object]:
        """The modules whose buffers stand still."""
        return {"asleep": sorted(self._asleep)}

    def load_state_dict(self, state_dict: dict[str, object]) -> None:
        """What `state_dict` gave."""
        asleep = state_dict["asleep"]
        assert isinstance(asleep, list)
        self._asleep = set(asleep)

    def wanted(self, task: pl.LightningModule, epoch: int) -> tuple[str, Collection[str], dict[str, float]]:
        """What the user's function asks for."""
        self._rates = {}
        optimizer = self.transitions.engine.optimizer
        arguments: list[object] = [task, epoch, optimizer]
        # Flash (Lightning 1) calls it with opt_idx, Lightning 2 without
        parameters = inspect.signature(self.finetune_function).parameters.values()
        positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        takes_index = len(positional) > 3 or any(p.kind == p.VAR_POSITIONAL for p in parameters)
        self.finetune_function(*([*arguments, 0] if takes_index else arguments))  # type: ignore[arg-type]
        return f"{type(self).__name__} at epoch {epoch}", frozenset(self._trainable), dict(self._rates)

    def held_batch_norms(self, task: pl.LightningModule, epoch: int) -> Collection[str]:
        """Those frozen, but for batch norms with `train_bn`."""
        return frozenset(self._asleep)

    def _names(self, module: nn.Module) -> set[str]:
        own = {id(parameter) for parameter in module.parameters(recurse=False)}
        return {name for name, p in self._owner.named_parameters() if id(p) in own and may_train(p)}

    def _module_name(self, module: nn.Module) -> str:
        return next((name for name, found in self._owner.named_modules() if found is module), "")

    @property
    def _owner(self) -> pl.LightningModule:
        if self._task is None:
            raise AssertionError("prepare() comes first")
        return self._task


def _leaves_first(modules: Modules) -> Iterator[nn.Module]:
    """Every module that may hold parameters, in the given modules and below."""
    if isinstance(modules, nn.Module):
        yield from modules.modules()
    else:
        for module in modules:
            yield from _leaves_first(module)
