"""The front door for loops written by hand: plain torch DDP and DeepSpeed engines.

finetuner = Finetuner(task, ("freeze_unfreeze", 2), max_epochs=4)    # freezes
optimizer = torch.optim.AdamW(task.parameters(), lr=1e-3)
model = finetuner.ddp(optimizer, [scheduler])                        # or .deepspeed(optimizer, config)
for epoch in range(4):
    model = finetuner.begin_epoch(epoch)                             # makes the transition, gives the rebuilt model
    for images, labels in loader:
        loss = loss_of(model(images), labels)
        loss.backward()
        finetuner.before_step()
        optimizer.step()
        optimizer.zero_grad()
        finetuner.after_step()                                       # proves the first step of a phase
    finetuner.end_epoch()                                            # equal statistics, equal ranks
    finetuner.save(f"checkpoints/{epoch}")                           # load() takes it on any setup and number of ranks
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.optim import Optimizer

from flash_strategies import deepspeed_private
from flash_strategies.agreement import ControlGroup
from flash_strategies.batch_norms import match_statistics_to_weights
from flash_strategies.buffers import kept_types
from flash_strategies.checkpoint.chunks import read_chunks, staged, write_chunks
from flash_strategies.checkpoint.engine_state import (
    EngineState,
    frozen_slices,
    put_back,
    restore_schedulers,
    take_out,
    trainable_slices,
)
from flash_strategies.engines.averaging import AveragingDDP
from flash_strategies.engines.base import Engine
from flash_strategies.engines.ddp import DDPEngine
from flash_strategies.engines.zero3 import Zero3Engine
from flash_strategies.engines.zero12 import Zero12Engine
from flash_strategies.errors import CheckpointError, StrategyValueError, TransitionError
from flash_strategies.handover import set_trainable
from flash_strategies.parameter_checks import Holding, averaged_copy, check_copies, check_initialised, check_parameters
from flash_strategies.phase_rates import PhaseRates
from flash_strategies.phases import find_handover, phase_at, resolve_phases
from flash_strategies.rate import Rate
from flash_strategies.registry import parse_strategy, with_rate
from flash_strategies.reporting import say, transition_line
from flash_strategies.resumption import Resumption, skipped
from flash_strategies.run_session import current_session
from flash_strategies.schedulers import Scheduler
from flash_strategies.transition import TransitionReport, Transitions
from flash_strategies.wrappers import OURS, refuse_second_ddp, refuse_wrapped

_SMALL = "finetuner.pt"

_T = TypeVar("_T")


class Finetuner:
    """Runs a strategy in a loop of one's own; every rank has one and calls it at the same points."""

    _builders = "ddp() or deepspeed()"

    def __init__(
        self,
        task: nn.Module,
        strategy: object = "no_freeze",
        *,
        max_epochs: int | None = None,
        train_bn: bool = True,
        rate: Rate | None = None,
        timeout: float | None = None,
    ) -> None:
        """Resolve the phases and freeze what the first does not train; build the optimizer afterwards.

        Args:
            task: with `modules_to_freeze()` or a `backbone`.
            strategy: a name, a pair `(name, metadata)` or a strategy object.
            max_epochs: epochs of the run, where they are known.
            train_bn: keep the batch norms of the frozen part trainable.
            rate: the learning rate of what the strategy unfreezes, beside the head's; see Rate.
            timeout: seconds to wait for another rank at a transition; None is the process group's own time-out.

        Raises:
            FlashLaunchError: the strategy is none, or does not fit the task or the run; the task is wrapped already.
        """
        refuse_wrapped(task, "give the module inside of it (its `.module`), and leave the wrapping to ddp()")
        check_initialised(task)
        self.task = task
        self._copy = averaged_copy(task)
        parsed = parse_strategy(strategy if rate is None else with_rate(strategy, rate)).strategy
        handover = find_handover(task, parsed, max_epochs=max_epochs, train_bn=train_bn)
        self.phases = resolve_phases(task, parsed, max_epochs=max_epochs, train_bn=train_bn)
        self._rates = PhaseRates(task, self.phases)
        for message in handover.messages:
            say(message)
        set_trainable(task, self.phases[0].selection.trainable)
        self._users_frozen = handover.kept
        self._timeout = timeout
        self._model: nn.Module = task
        self._in_ddp = False
        self._transitions: Transitions | None = None
        self._steps = 0
        self._unsaid: tuple[TransitionReport, int, int] | None = None
        self._max_epochs = max_epochs
        self._resumption: Resumption | None = None

    @property
    def model(self) -> nn.Module:
        """What to call in the loop: as `begin_epoch` gives it."""
        return self._model

    @property
    def steps(self) -> int:
        """Optimizer steps so far."""
        return self._steps

    @property
    def transitions(self) -> Transitions:
        """The transitions, once an engine was chosen.

        Raises:
            TransitionError: neither `ddp` nor `deepspeed` was called yet.
        """
        if self._transitions is None:
            raise TransitionError(f"call {self._builders} before the loop")
        return self._transitions

    # ---- how the ranks hold the model

    def ddp(self, optimizer: Optimizer, schedulers: Sequence[Scheduler] = (), **ddp_options: object) -> nn.Module:
        """DistributedDataParallel around the task; on one process without a process group, the task itself.

        Args:
            optimizer: over the task's parameters.
            schedulers: that drive the optimizer.
            ddp_options: for DistributedDataParallel; unused parameters are looked for unless they say otherwise.

        Raises:
            TransitionError: there is a DistributedDataParallel around the task already.
        """
        check_parameters(self.task, Holding(cuda=torch.cuda.is_available()))
        options: dict[str, object] = {"find_unused_parameters": True, "broadcast_buffers": False, **ddp_options}

        def wrap() -> None:
            self._model = wrapped = AveragingDDP(self.task, **options)
            OURS.add(wrapped)
            options["init_sync"] = False  # from the second time on: the ranks are proved equal

        many = dist.is_available() and dist.is_initialized()
        rewrap = wrap if many else None
        engine = DDPEngine(self.task, optimizer, schedulers, rewrap=rewrap, wrapped=lambda: self._model)
        if many:
            refuse_second_ddp(self.task)
            self._in_ddp = True
            wrap()
        return self._begin(engine)

    def deepspeed(
        self, optimizer: Optimizer, config: Mapping[str, object], schedulers: Sequence[Scheduler] = ()
    ) -> nn.Module:
        """A DeepSpeed engine around the task, at ZeRO stage 1, 2 or 3.

        Args:
            optimizer: over the task's parameters.
            config: DeepSpeed's configuration.
            schedulers: that drive the optimizer; step them yourself.

        Raises:
            ParameterError: the stage cannot hold a parameter of the task.
            TransitionError: there is a DistributedDataParallel around the task.
        """
        refuse_second_ddp(self.task)
        zero = config.get("zero_optimization")
        stage = zero.get("stage") if isinstance(zero, Mapping) else None
        if stage not in (1, 2, 3):
            raise TransitionError(f"zero_optimization.stage is {stage!r}; give 1, 2 or 3, or use ddp()")
        holding = Holding.of_deepspeed(config, cuda=torch.cuda.is_available())
        check_copies(self._copy, holding)
        check_parameters(self.task, holding)
        kind = Zero3Engine if stage == 3 else Zero12Engine
        holder = kind(self.task, optimizer, schedulers)
        deepspeed_private.without_shm_op()
        with kept_types(self.task, holding.dtype):
            engine, _ = deepspeed_private.initialize(self.task, optimizer, config)
        holder.attach(cast(deepspeed_private.DeepSpeedEngine, engine))
        self._model = engine
        if not torch.cuda.is_available():
            match_statistics_to_weights(self.task)
        return self._begin(holder)

    def _begin(self, engine: Engine) -> nn.Module:
        self._transitions = Transitions(engine, ControlGroup(self._timeout), users_frozen=self._users_frozen)
        self._transitions.start(self.phases[0].phase.name)
        return self._model

    # ---- the loop

    def begin_epoch(self, epoch: int) -> nn.Module:
        """Make the epoch's transition, if it begins a phase.

        Returns:
            The model to call from now on: DDP is wrapped anew at a transition, a DeepSpeed engine stays itself.

        Raises:
            AgreementError, ProofError: the ranks differ.
            TransitionError: the task or the model was wrapped in another DistributedDataParallel.
        """
        if self._in_ddp:
            refuse_second_ddp(self.task)
        resolved = phase_at(self.phases, epoch)
        if not self.transitions.trains(resolved.selection.trainable):
            rates = self._rates.at_unfreeze(self.transitions, epoch)
            report = self.transitions.move(
                resolved.phase.name, resolved.selection.trainable, step=self._steps, lr=rates
            )
            self._unsaid = (report, epoch, len(resolved.selection.layers))
        self._rates.begin_epoch(self.transitions, epoch)
        self.transitions.hold(resolved.selection.held)
        return self._model

    def move(self, phase: str, trainable: Sequence[str], lr: Mapping[str, float] | None = None) -> TransitionReport:
        """A transition of one's own, to any set of parameter names; at an optimizer-step boundary.

        Args:
            phase: what it is called.
            trainable: names of all parameters that train from now on.
            lr: learning rates of newly unfrozen parameters, by name; else they take their group's.

        Returns:
            What changed, and what it took.

        Raises:
            AgreementError, ProofError: the ranks differ.
            TransitionError: it cannot be made; nothing was changed.
        """
        return self.transitions.move(phase, trainable, step=self._steps, lr=lr)

    def before_step(self) -> None:
        """Between backward and the optimizer's step."""
        self.transitions.before_step()

    def after_step(self) -> None:
        """After each optimizer step (not after each micro batch).

        Raises:
            ProofError: see Transitions.after_step.
        """
        self._steps += 1
        self.transitions.after_step()
        if self._unsaid is not None:
            (report, epoch, layers), self._unsaid = self._unsaid, None
            engine = self.transitions.engine
            total = sum(math.prod(engine.shape(name)) for name in engine.parameters)
            say(transition_line(report, epoch=epoch, total=total, layers=layers, held=engine.state_bytes()))

    def end_epoch(self) -> str:
        """Make buffers equal over the ranks (statistics are averaged) and prove the ranks equal; the digest, in hex.

        Raises:
            ProofError: the ranks differ, or a frozen parameter moved.
        """
        self.transitions.equalise_buffers()
        return self.transitions.check()

    # ---- the loop, where it is to stop and resume

    def epochs(self, checkpoints: str | Path | None = None) -> Iterator[int]:
        """The epochs that are left, in place of `range(max_epochs)`; each is begun and ended.

        A checkpoint is written after each, and read at the start. Under flash-launch they lie in the run folder, and a
        stop that is asked for is heeded between two of `batches`, or else at an epoch's end.

        Args:
            checkpoints: folder for them; None is flash-launch's, and without flash-launch nothing is saved.

        Raises:
            StrategyValueError: max_epochs is not known.
            CheckpointError: what is there cannot be read, or does not fit.
            SystemExit: with run_session.EXIT_STOPPED, where a stop was asked for; all is saved then.
        """
        if self._max_epochs is None:
            raise StrategyValueError(f"epochs() counts to max_epochs: give it to {type(self).__name__}(...)")
        folder = Path(checkpoints) if checkpoints is not None else None
        self._resumption = Resumption(self, current_session(), folder)
        yield from self._resumption.epochs(self._max_epochs)

    def batches(self, loader: Iterable[_T]) -> Iterator[_T]:
        """The epoch's batches that are left of the training loader; between two of them a stop is heeded.

        Raises:
            TransitionError: outside of a loop over `epochs`.
            SystemExit: with run_session.EXIT_STOPPED, where a stop was asked for; all is saved then.
        """
        if self._resumption is None:
            raise TransitionError("batches() counts the batches of an epoch: loop over epochs() around it")
        yield from self._resumption.batches(loader)

    def without_first(self, loader: Iterable[_T], batches: int) -> Iterable[_T]:
        """The loader without its first so many `batches`."""
        return skipped(loader, batches)

    # ---- checkpoints

    def save(self, folder: str | Path) -> None:
        """Store weights, optimizer state, schedules and the phase; after `end_epoch`, on every rank.

        Each rank writes its part. The `folder`, which must not be there yet, appears when all is in it. The loop's own
        state (epoch, random numbers, position in the data) is the loop's to keep.

        Raises:
            CheckpointError: it is there already, or cannot be written.
        """
        path, control, engine = Path(folder), self.transitions.control, self.transitions.engine
        temporary = path.with_name(f".{path.name}.tmp")
        there = control.gather(path.exists(), f"saving {path}")
        if any(there):
            raise CheckpointError(f"{path} is there already: save into a new folder")
        left = control.gather(_cleared(temporary) if control.rank == 0 else "", f"saving {path}")
        if left[0]:
            raise CheckpointError(f"{temporary} is left over from a save that was cut off, and stays: {left[0]}")
        rank, world_size = control.rank, control.world_size
        frozen = [name for name in engine.parameters if name not in set(self.transitions.trainable)]
        slices = [
            *trainable_slices(engine, rank, world_size),
            *frozen_slices(engine, frozen, rank, world_size),
        ]
        write_chunks(temporary, staged(slices), control.process_group)
        if rank == 0:
            buffers = {name: buffer.detach().cpu() for name, buffer in self.task.named_buffers()}
            schedulers = [dict(scheduler.state_dict()) for scheduler in engine.schedulers]
            state = take_out(self.transitions).to_json()
            small = {"engine": state, "steps": self._steps, "schedulers": schedulers, "buffers": buffers}
            torch.save(small, temporary / _SMALL)
            temporary.rename(path)
        control.meet(f"saving {path}")

    def load(self, folder: str | Path) -> nn.Module:
        """Go on from what `save` stored, on this setup and these ranks; after `ddp` or `deepspeed`, before the loop.

        Args:
            folder: that `save` made, on any setup and number of ranks.

        Returns:
            The model to call from now on.

        Raises:
            CheckpointError: it is damaged, or of another model, optimizer or strategy.
        """
        path, control = Path(folder), self.transitions.control
        try:
            small = torch.load(path / _SMALL, weights_only=True)
        except Exception as error:  # torch's unpickler raises many kinds
            raise CheckpointError(f"{path / _SMALL} cannot be read: {error}") from error
        state = EngineState.from_json(small["engine"])
        put_back(self.transitions, state, lambda slices: read_chunks(path, slices, control.process_group))
        restore_schedulers(self.transitions.engine, small["schedulers"])
        buffers = dict(self.task.named_buffers())
        for name, value in small["buffers"].items():
            buffers[name].copy_(value)
        self._steps = int(small["steps"])
        return self._model


def _cleared(folder: Path) -> str:
    """Remove the folder, if it is there; why it cannot be removed, or nothing."""
    try:
        shutil.rmtree(folder)
    except FileNotFoundError:
        return ""
    except OSError as error:
        return str(error)
    return ""
