"""The Lightning callbacks: freeze before training, make the transitions, and prove them."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import cast

import pytorch_lightning as pl
from pytorch_lightning.callbacks import BaseFinetuning
from pytorch_lightning.strategies import SingleDeviceStrategy
from pytorch_lightning.utilities.types import STEP_OUTPUT
from torch.optim import Optimizer

from flash_strategies.agreement import ControlGroup
from flash_strategies.buffers import equalise
from flash_strategies.checkpoint.engine_state import EngineState, Read, put_back, restore_schedulers
from flash_strategies.engines.base import Engine
from flash_strategies.engines.ddp import DDPEngine
from flash_strategies.errors import CheckpointError, StrategyValueError, TransitionError
from flash_strategies.handover import set_trainable
from flash_strategies.lightning import private
from flash_strategies.lightning.checkpoint import SavedFit, add_fit, taken_from
from flash_strategies.lightning.strategies import FinetuningDDPStrategy, FinetuningDeepSpeedStrategy
from flash_strategies.parameter_checks import check_initialised
from flash_strategies.phase_rates import PhaseRates
from flash_strategies.phases import ResolvedPhase, find_handover, phase_at, resolve_phases
from flash_strategies.plan import GroupRate
from flash_strategies.rate import Rate
from flash_strategies.registry import parse_strategy, with_rate
from flash_strategies.reporting import say, transition_line
from flash_strategies.transition import TransitionReport, Transitions
from flash_strategies.wrappers import refuse_wrapped

Rates = Mapping[str, float | GroupRate]
Listener = Callable[[pl.Trainer, TransitionReport], None]


class FinetuningCallback(pl.Callback):
    """What every finetuning callback does; subclasses say what trains in an epoch."""

    def __init__(self, *, timeout: float | None = None) -> None:
        """Prepare.

        Args:
            timeout: seconds to wait for another rank before it is named in an error; None is the process group's own.
        """
        private.check_version()
        self.timeout = timeout
        self.listeners: list[Listener] = []
        self.users_frozen: frozenset[str] = frozenset()
        """Set by `prepare`: names of what required no gradient when the task was handed over, and stays frozen."""
        self._transitions: Transitions | None = None
        self._steps_seen = 0
        self._unsaid: TransitionReport | None = None
        self._saved: SavedFit | None = None
        self._epoch = 0
        self.resuming = False
        """Set before the fit by who calls `resume` in it: then the start is no event."""

    # ---- what subclasses say

    @abstractmethod
    def prepare(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        """Look at the task, and freeze what does not train at first, before the optimizer is built.

        Args:
            trainer: whose fit begins.
            task: that it trains.
        """

    @abstractmethod
    def wanted(self, task: pl.LightningModule, epoch: int) -> tuple[str, Collection[str], Rates]:
        """(phase name, names of all that trains, rates of what is unfrozen by name, if any) in an epoch that starts.

        Args:
            task: whose parameters are named.
            epoch: from 0.
        """

    def ramp(self, epoch: int) -> None:
        """Change the learning rates of what trains on, after the transition to an epoch."""

    @abstractmethod
    def held_batch_norms(self, task: pl.LightningModule, epoch: int) -> Collection[str]:
        """Names of frozen modules whose own buffers stand still in an epoch; norms among them are in eval mode.

        Args:
            task: whose modules are named.
            epoch: from 0.
        """

    def check_fits(self, saved: SavedFit, left_out: Collection[str]) -> None:
        """Check that a fit that this callback resumes was not another's.

        Args:
            saved: the fit, from the checkpoint.
            left_out: names of parameters that no group of the optimizer holds.

        Raises:
            CheckpointError: it was another's.
        """

    def layers_in(self, phase: str) -> int | None:
        """How many of the backbone's layers train in a phase; None where that is not known."""
        return None

    # ---- Lightning's hooks

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Where a checkpoint was of a fit that is over, nothing was trained: the weights are the checkpoint's."""
        if self._saved is not None and isinstance(trainer.strategy, FinetuningDeepSpeedStrategy):
            trainer.strategy.load_weights()
        self._saved = None

    @property
    def transitions(self) -> Transitions:
        """The transitions of the running fit."""
        if self._transitions is None:
            raise TransitionError("training has not started yet")
        return self._transitions

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Freeze before the optimizer is built.

        Raises:
            StrategyValueError: there is more than one finetuning callback.
            TransitionError: the task holds a wrapper, such as DistributedDataParallel.
            ParameterError: a parameter has no shape yet.
        """
        if stage != "fit":
            return
        refuse_wrapped(pl_module, "give the bare module, and leave the wrapping to the Trainer's strategy")
        others = [c for c in _callbacks(trainer) if isinstance(c, (FinetuningCallback, BaseFinetuning))]
        if len(others) > 1:
            names = ", ".join(type(callback).__name__ for callback in others)
            raise StrategyValueError(f"{len(others)} finetuning callbacks are given ({names}); a run has one strategy")
        self._saved = self._unsaid = None
        check_initialised(pl_module)
        self.prepare(trainer, pl_module)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, object]
    ) -> None:
        """Add the phase and the param groups to Lightning's checkpoint."""
        if self._transitions is not None:
            add_fit(checkpoint, trainer, self._transitions, self._epoch)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, object]
    ) -> None:
        """Take over from Lightning what it cannot restore; see `on_train_start`.

        Raises:
            CheckpointError: the checkpoint cannot be resumed here.
        """
        self._saved = taken_from(checkpoint, trainer)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Agree on the first phase and prove that the ranks begin equal."""
        engine = _engine(trainer, pl_module)
        self._transitions = Transitions(engine, ControlGroup(self.timeout), users_frozen=self.users_frozen)
        self._steps_seen = trainer.global_step
        report = self._transitions.start(self.first_phase)
        saved, self._saved, self._epoch = self._saved, None, trainer.current_epoch
        if saved is not None:
            strategy = trainer.strategy
            load = strategy.load_engine_state if isinstance(strategy, FinetuningDeepSpeedStrategy) else None
            in_epoch = not private.current_epoch_is_new(trainer)
            self._epoch = saved.epoch
            self.check_fits(saved, engine.left_out)
            self.resume(trainer, pl_module, saved.engine, saved.reader(load), saved.schedulers, in_epoch=in_epoch)
            say(f"resumed in epoch {trainer.current_epoch} at step {trainer.global_step}: phase {saved.engine.phase}")
            if trainer.current_epoch != saved.epoch and private.leaves_out_epoch_start(trainer):
                self.on_train_epoch_start(trainer, pl_module)
        elif not self.resuming:
            self._tell(trainer, report)

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
        """Bring the engine to where another fit was; in a callback's `on_train_start` that comes after this one's.

        Args:
            trainer: its counters are already those of the position.
            pl_module: the task.
            state: the small part of the engine's state.
            read: fills slices from the checkpoint.
            schedulers: the `state_dict`s of the learning-rate schedulers.
            in_epoch: the position is in the middle of an epoch, whose start is not called again.

        Raises:
            CheckpointError, ProofError: see put_back.
        """
        put_back(self.transitions, state, read)
        if isinstance(trainer.strategy, FinetuningDeepSpeedStrategy):
            trainer.strategy.adopt_new_wrapper()
        restore_schedulers(self.transitions.engine, schedulers)
        self._steps_seen = trainer.global_step
        if in_epoch:
            self.hold_buffers(trainer, pl_module)

    def hold_buffers(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Hold the buffers of what is frozen in this epoch as they are now; again, where they were loaded since.

        Args:
            trainer: in an epoch of its fit.
            pl_module: that it trains.
        """
        self.transitions.hold(self.held_batch_norms(pl_module, trainer.current_epoch))

    first_phase = "start"

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Make the transition to what this epoch trains, if it is another than now."""
        self._epoch = epoch = trainer.current_epoch
        self.transitions.engine.groups.sync()
        phase, names, rates = self.wanted(pl_module, epoch)
        if not self.transitions.trains(names):
            report = self.transitions.move(phase, names, step=trainer.global_step, lr=rates)
            if isinstance(trainer.strategy, FinetuningDeepSpeedStrategy):
                trainer.strategy.adopt_new_wrapper()
            self._tell(trainer, report)
        self.ramp(epoch)
        self.hold_buffers(trainer, pl_module)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: object, batch_idx: int
    ) -> None:
        """Who reads the optimizer's learning rates sees what schedulers wrote."""
        self.transitions.engine.groups.sync()

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Gradients are ready."""
        self.transitions.before_step()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: STEP_OUTPUT, batch: object, batch_idx: int
    ) -> None:
        """Prove the first step of a phase."""
        if trainer.global_step != self._steps_seen:
            self._steps_seen = trainer.global_step
            self.transitions.after_step()
            self._report(trainer)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """All ranks evaluate with the same statistics."""
        if self._transitions is not None and trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._equalise(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Make buffers equal, and prove that ranks are equal and nothing frozen moved."""
        self._equalise(trainer)
        self.transitions.check()

    def _equalise(self, trainer: pl.Trainer) -> None:
        self.transitions.equalise_buffers()
        for model in private.averaged_models(trainer):
            equalise(model, self.transitions.control)

    def _report(self, trainer: pl.Trainer) -> None:
        """The line about a transition, when its first step is done and proved."""
        if self._unsaid is not None:
            engine = self.transitions.engine
            total = sum(math.prod(engine.shape(name)) for name in engine.parameters)
            layers, held = self.layers_in(self._unsaid.phase), engine.state_bytes()
            say(transition_line(self._unsaid, epoch=trainer.current_epoch, total=total, layers=layers, held=held))
            self._unsaid = None

    def _tell(self, trainer: pl.Trainer, report: TransitionReport) -> None:
        self._unsaid = report
        for listener in self.listeners:
            listener(trainer, report)


class ScheduledFinetuning(FinetuningCallback):
    """Runs a strategy: a name, a pair (name, metadata) or a strategy object."""

    def __init__(
        self,
        strategy: object = "no_freeze",
        *,
        train_bn: bool = True,
        rate: Rate | None = None,
        timeout: float | None = None,
    ) -> None:
        """Parse the strategy.

        Args:
            strategy: `"freeze"`, `("freeze_unfreeze", 7)`, ..., or an object with `name` and `phases(max_epochs)`.
            train_bn: keep the batch norms of the frozen part trainable.
            rate: the learning rate of what the strategy unfreezes, beside the head's; see Rate.
            timeout: seconds to wait for another rank; None is the process group's own time-out.

        Raises:
            StrategyNameError, StrategyTypeError, StrategyValueError: it is no strategy.
        """
        super().__init__(timeout=timeout)
        self.spec = parse_strategy(strategy if rate is None else with_rate(strategy, rate))
        self.train_bn = train_bn
        self.phases: tuple[ResolvedPhase, ...] = ()

    def prepare(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        """Resolve all phases and freeze what the first does not train."""
        known = (
            trainer.max_epochs is not None and trainer.max_epochs > 0 and not getattr(trainer, "fast_dev_run", False)
        )
        epochs = trainer.max_epochs if known else None
        strategy = self.spec.strategy
        handover = find_handover(task, strategy, max_epochs=epochs, train_bn=self.train_bn)
        self.users_frozen = frozenset(handover.kept)
        self.phases = resolve_phases(task, strategy, max_epochs=epochs, train_bn=self.train_bn)
        self._rates = PhaseRates(task, self.phases)
        for message in handover.messages:
            say(message)
        first = phase_at(self.phases, trainer.current_epoch)
        self.first_phase = first.phase.name
        set_trainable(task, first.selection.trainable)

    def wanted(self, task: pl.LightningModule, epoch: int) -> tuple[str, Collection[str], Rates]:
        """As the phase of the epoch says."""
        resolved = phase_at(self.phases, epoch)
        return resolved.phase.name, resolved.selection.trainable, self._rates.at_unfreeze(self.transitions, epoch)

    def ramp(self, epoch: int) -> None:
        """As the phases say that unfroze it."""
        self._rates.begin_epoch(self.transitions, epoch)

    def check_fits(self, saved: SavedFit, left_out: Collection[str]) -> None:
        """The phase of the epoch trained what it trains here.

        Raises:
            CheckpointError: it did not.
        """
        phase = phase_at(self.phases, saved.epoch)
        then, now = set(saved.engine.trainable), set(phase.selection.trainable) - set(left_out)
        if other := sorted(then ^ now):
            raise CheckpointError(
                f"the checkpoint's fit trained {len(then)} parameters in epoch {saved.epoch} (phase "
                f"{saved.engine.phase}), and the strategy {self.spec.name!r} trains {len(now)} in it (phase "
                f"{phase.phase.name}); {other[0]} is among one of the two only: resume with the strategy that the "
                "checkpoint was made with, and write out its epochs if the number of epochs is another now, as in "
                "('freeze_unfreeze', 7)"
            )

    def layers_in(self, phase: str) -> int | None:
        """As the phase's selection says."""
        return next((len(one.selection.layers) for one in self.phases if one.phase.name == phase), None)

    def held_batch_norms(self, task: pl.LightningModule, epoch: int) -> Collection[str]:
        """As the phase of the epoch says."""
        return phase_at(self.phases, epoch).selection.held


def finetuning_callback(strategy: object, *, train_bn: bool = True, timeout: float | None = None) -> FinetuningCallback:
    """The callback for what a user gives as a strategy: one's own callback as it is, all else parsed.

    Args:
        strategy: a name, a pair `(name, metadata)`, a strategy object or a FinetuningCallback.
        train_bn: keep the batch norms of the frozen part trainable.
        timeout: seconds to wait for another rank at a transition; None is the process group's own time-out.

    Raises:
        StrategyNameError, StrategyTypeError, StrategyValueError: it is no strategy.
    """
    if isinstance(strategy, FinetuningCallback):
        return strategy
    return ScheduledFinetuning(strategy, train_bn=train_bn, timeout=timeout)


def _callbacks(trainer: pl.Trainer) -> list[pl.Callback]:
    return cast(list[pl.Callback], trainer.callbacks)  # type: ignore[attr-defined]


def _engine(trainer: pl.Trainer, task: pl.LightningModule) -> Engine:
    strategy = trainer.strategy
    if isinstance(strategy, (FinetuningDDPStrategy, FinetuningDeepSpeedStrategy)):
        if strategy.transition_engine is None:
            raise TransitionError(
                f"transitions need one optimizer; this task's configure_optimizers makes {len(strategy.optimizers)}. "
                "Put the parameters into param groups of one optimizer"
            )
        return strategy.transition_engine
    if isinstance(strategy, SingleDeviceStrategy) and len(strategy.optimizers) == 1:
        schedulers = [config.scheduler for config in strategy.lr_scheduler_configs]
        return DDPEngine(task, private.torch_optimizer(strategy.optimizers[0]), schedulers)
    raise TransitionError(
        f"Trainer(strategy={type(strategy).__name__}) cannot rebuild its engine when parameters unfreeze: ranks "
        "would drift apart. Use flash_strategies.lightning's FinetuningDDPStrategy or FinetuningDeepSpeedStrategy, or "
        "one device"
    )
