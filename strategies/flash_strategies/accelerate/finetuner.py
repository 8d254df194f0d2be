"""The front door for Accelerate: `prepare` in its place, and the optimizer's steps are watched by themselves.

accelerator = Accelerator()                                               # DDP, or a DeepSpeedPlugin at ZeRO-1, 2 or 3
finetuner = AccelerateFinetuner(accelerator, model, ("freeze_unfreeze", 2), max_epochs=4)       # freezes
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
model, optimizer, loader = finetuner.prepare(model, optimizer, loader)    # instead of accelerator.prepare
for epoch in finetuner.epochs():                                          # makes transitions; the objects stay
    for images, labels in finetuner.batches(loader):                      # stops, saves and resumes under flash-launch
        with accelerator.accumulate(model):
            loss = loss_of(model(images), labels)
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar, TypeVarTuple, cast, overload

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from flash_strategies import deepspeed_private
from flash_strategies.accelerate import private
from flash_strategies.accelerate.saved_state import SavedState
from flash_strategies.batch_norms import match_statistics_to_weights
from flash_strategies.buffers import kept_types
from flash_strategies.engines.averaging import AveragingDDP
from flash_strategies.engines.ddp import DDPEngine
from flash_strategies.engines.zero3 import Zero3Engine
from flash_strategies.engines.zero12 import Zero12Engine
from flash_strategies.errors import TransitionError
from flash_strategies.parameter_checks import Holding, check_copies, check_parameters
from flash_strategies.phases import phase_at
from flash_strategies.plain import Finetuner
from flash_strategies.rate import Rate
from flash_strategies.reporting import NOTES, say
from flash_strategies.schedulers import Scheduler
from flash_strategies.transition import TransitionReport
from flash_strategies.wrappers import OURS, refuse_second_ddp

_T = TypeVar("_T")
_U = TypeVar("_U")
_Ts = TypeVarTuple("_Ts")


class AccelerateFinetuner(Finetuner):
    """Runs a strategy in a loop around an `Accelerator`; every process has one and calls it at the same points."""

    _builders = "prepare()"

    def __init__(
        self,
        accelerator: object,
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
            accelerator: an `accelerate.Accelerator`: one process, DDP, or DeepSpeed at ZeRO stage 1, 2 or 3.
            task: the bare model, not prepared; with `modules_to_freeze()` or a `backbone`.
            strategy: a name, a pair `(name, metadata)` or a strategy object.
            max_epochs: epochs of the run, where they are known.
            train_bn: keep the batch norms of the frozen part trainable.
            rate: the learning rate of what the strategy unfreezes, beside the head's; see Rate.
            timeout: seconds to wait for another rank at a transition; None is the process group's time-out.

        Raises:
            FlashLaunchError: the strategy is none, or does not fit the task or the run; the task is prepared or
                wrapped already; the accelerator holds models in a way that transitions cannot rebuild.
        """
        self.accelerator = cast(private.Accelerator, accelerator)
        private.check_accelerator(self.accelerator)
        self.stage = private.zero_stage(self.accelerator)
        if private.is_prepared(task):
            raise TransitionError(
                "the model is prepared already: give the finetuner the bare model, and leave preparing it, its "
                "optimizer and its schedule to finetuner.prepare(...)"
            )
        _refuse_partitioned(task)
        super().__init__(task, strategy, max_epochs=max_epochs, train_bn=train_bn, rate=rate, timeout=timeout)
        self._optimizer: private.PreparedOptimizer | None = None
        self._loaders: list[object] = []
        self._ended = True

    def set_steps(self, steps: int) -> None:
        """How many optimizer steps there were before this process."""
        self._steps = steps

    # ---- prepare

    @overload
    def prepare(self, thing: _T, /) -> _T: ...

    @overload
    def prepare(self, first: _T, second: _U, /, *rest: *_Ts) -> tuple[_T, _U, *_Ts]: ...

    def prepare(self, *objects: object) -> object:
        """`accelerator.prepare`, with an engine that follows transitions; the same objects in the same order.

        The first call takes the model, its optimizer, and what goes with them; later ones only loaders.

        Args:
            objects: the model, its one optimizer, its learning-rate schedules, loaders.

        Returns:
            What to use from now on. The objects stay the same through all transitions.

        Raises:
            TransitionError: something is missing, prepared already, or left to DeepSpeed's JSON.
            ParameterError: the setup cannot hold a parameter of the model.
        """
        if self._transitions is None:
            optimizer, schedulers = self._sorted(objects)
            prepare = self._prepare_zero if self.stage else self._prepare_whole
            prepared = prepare(objects, optimizer, schedulers)
        else:
            if wrong := [one for one in objects if isinstance(one, (nn.Module, Optimizer, LRScheduler))]:
                raise TransitionError(
                    f"prepare() was called before, and now with a {type(wrong[0]).__name__}: give the model, its "
                    "optimizer and its schedule in the first call, in one, and only loaders later; what is not "
                    "trained goes to accelerator.prepare or to the device"
                )
            prepared = _as_tuple(self.accelerator.prepare(*objects))
        self._loaders += [one for one in prepared if hasattr(one, "set_epoch") and hasattr(one, "dataset")]
        return prepared if len(prepared) != 1 else prepared[0]

    def _sorted(self, objects: Sequence[object]) -> tuple[Optimizer, list[LRScheduler]]:
        """The optimizer and the schedules among what is to be prepared."""
        for one in objects:
            if private.is_placeholder(one):
                raise TransitionError(
                    f"{type(one).__name__} leaves the optimizer or its schedule to DeepSpeed's JSON, where transitions "
                    "do not reach: build torch's in the script, and take 'optimizer' and 'scheduler' out of the JSON"
                )
            if private.is_prepared(one) and not hasattr(one, "dataset"):
                raise TransitionError(
                    f"the {type(one).__name__} is prepared already: give finetuner.prepare() the bare one"
                )
        models = [one for one in objects if isinstance(one, nn.Module)]
        optimizers = [one for one in objects if isinstance(one, Optimizer)]
        if len(models) != 1 or models[0] is not self.task or len(optimizers) != 1:
            raise TransitionError(
                f"prepare() was given {len(models)} models and {len(optimizers)} optimizers: give the model that the "
                "finetuner was made with and its one optimizer, in one call; what is not trained goes to "
                "accelerator.prepare or to the device"
            )
        schedulers = [one for one in objects if isinstance(one, LRScheduler)]
        if self.stage and len(schedulers) > 1:
            raise TransitionError(
                f"{len(schedulers)} learning-rate schedules, of which Accelerate keeps one with DeepSpeed: chain them, "
                "with torch.optim.lr_scheduler.ChainedScheduler or SequentialLR"
            )
        return optimizers[0], schedulers

    def ddp(self, optimizer: Optimizer, schedulers: Sequence[Scheduler] = (), **ddp_options: object) -> nn.Module:
        """Refused: `prepare` does this.

        Raises:
            TransitionError: always.
        """
        raise TransitionError("Accelerate chooses between DDP and DeepSpeed: call prepare(model, optimizer, ...)")

    def deepspeed(
        self, optimizer: Optimizer, config: Mapping[str, object], schedulers: Sequence[Scheduler] = ()
    ) -> nn.Module:
        """Refused: `prepare` does this.

        Raises:
            TransitionError: always.
        """
        return self.ddp(optimizer, schedulers)

    def _prepare_whole(
        self, objects: Sequence[object], optimizer: Optimizer, schedulers: list[LRScheduler]
    ) -> tuple[object, ...]:
        """One process, or DistributedDataParallel."""
        accelerator = self.accelerator
        check_parameters(self.task, Holding(cuda=accelerator.device.type == "cuda"))
        self._in_ddp = private.is_ddp(accelerator)
        if self._in_ddp:
            refuse_second_ddp(self.task)
        model = accelerator.prepare_model(self.task, evaluation_mode=True)
        others = [one for one in objects if one is not self.task and not isinstance(one, LRScheduler)]
        made = dict(zip(map(id, others), _as_tuple(accelerator.prepare(*others)), strict=True))
        engine = DDPEngine(
            self.task,
            optimizer,
            schedulers,
            rewrap=self._wrap if self._in_ddp else None,
            wrapped=lambda: self._model,
        )
        self._model = model
        if self._in_ddp:
            self._wrap()
            vars(self._model)["_is_accelerate_prepared"] = True
        for scheduler in schedulers:
            made[id(scheduler)] = accelerator.prepare(scheduler)
        made[id(self.task)] = self._model
        self._optimizer = cast(private.PreparedOptimizer, made[id(optimizer)])
        private.around_optimizer_step(accelerator, self._optimizer, self.before_step, self.after_step)
        self._begin(engine)
        SavedState(self).register()
        return tuple(made[id(one)] for one in objects)

    def _wrap(self) -> None:
        """DistributedDataParallel around the model: a new one, then the same one again, in place."""
        options = {"find_unused_parameters": True, "broadcast_buffers": False, **private.ddp_options(self.accelerator)}
        if isinstance(self._model, AveragingDDP):
            self._model.wrap_again(**options, init_sync=False)  # the ranks are proved equal
        else:
            self._model = wrapped = AveragingDDP(self._model, **options)
            OURS.add(wrapped)
        private.add_comm_hook(self.accelerator, self._model)

    def _prepare_zero(
        self, objects: Sequence[object], optimizer: Optimizer, schedulers: list[LRScheduler]
    ) -> tuple[object, ...]:
        """A DeepSpeed engine."""
        refuse_second_ddp(self.task)
        accelerator, config = self.accelerator, private.deepspeed_config(self.accelerator)
        holding = Holding.of_deepspeed(config, cuda=accelerator.device.type == "cuda")
        check_copies(self._copy, holding)
        check_parameters(self.task, holding)
        private.keep_optimizer(config)
        deepspeed_private.refuse_unreduced(config)
        kind = Zero3Engine if self.stage == 3 else Zero12Engine
        holder = kind(self.task, optimizer, schedulers)
        deepspeed_private.without_shm_op()
        with kept_types(self.task, holding.dtype), deepspeed_private.taking_scalars(self.task):
            prepared = _as_tuple(accelerator.prepare(*objects))
        made = dict(zip(map(id, objects), prepared, strict=True))
        engine = private.engine_of(accelerator)
        holder.attach(engine)
        if accelerator.device.type == "cpu":
            match_statistics_to_weights(self.task)
        self._model = cast(nn.Module, engine)
        self._optimizer = cast(private.PreparedOptimizer, made[id(optimizer)])
        private.around_engine_step(engine, self.before_step, self.after_step)
        self._begin(holder)
        SavedState(self).register()
        if clipping := private.clipping(config):
            say(
                f"DeepSpeed clips gradients at {clipping:g}, the DeepSpeedPlugin's gradient_clipping: with DeepSpeed, "
                "accelerator.clip_grad_norm_ only reports the norm",
                NOTES,
            )
        return prepared

    # ---- the loop

    def begin_epoch(self, epoch: int) -> nn.Module:
        """Make the epoch's transition, if it begins a phase; ends the epoch before where `end_epoch` was not called.

        Returns:
            The model, the same object as before.

        Raises:
            AgreementError, ProofError: the ranks differ.
            TransitionError: micro batches were accumulated that no step has taken yet, or the model was wrapped in
                another DistributedDataParallel.
        """
        if not self._ended:
            self.end_epoch()
        if not self.transitions.trains(phase_at(self.phases, epoch).selection.trainable):
            self._refuse_open()
        super().begin_epoch(epoch)
        self._follow()
        self._ended = False
        for loader in self._loaders:
            loader.set_epoch(epoch)  # type: ignore[attr-defined]
        return self._model

    def move(self, phase: str, trainable: Sequence[str], lr: Mapping[str, float] | None = None) -> TransitionReport:
        """A transition to any set of parameter names; at an optimizer-step boundary.

        Raises:
            TransitionError: micro batches were accumulated that no step has taken yet.
        """
        self._refuse_open()
        report = super().move(phase, trainable, lr)
        self._follow()
        return report

    def end_epoch(self) -> str:
        """Make buffers equal over the ranks (statistics are averaged) and prove the ranks equal; the digest, in hex."""
        self._ended = True
        return super().end_epoch()

    def without_first(self, loader: Iterable[_T], batches: int) -> Iterable[_T]:
        """The loader without its first so many `batches`; what is skipped is not loaded."""
        return cast(Iterable[_T], self.accelerator.skip_first_batches(loader, batches))

    def _refuse_open(self) -> None:
        if private.is_open(self.accelerator):
            raise TransitionError(
                f"{self.accelerator.step} micro batches were accumulated that no optimizer step has taken yet, and a "
                "transition would lose their gradients: let the epoch end with a step (leave "
                "sync_with_dataloader=True; where a loop is left early, leave it where accelerator.sync_gradients)"
            )

    def _follow(self) -> None:
        """Let what Accelerate holds refer to what a rebuild made."""
        if self.stage and self._optimizer is not None:
            private.follow_engine(self._optimizer, private.engine_of(self.accelerator))

    # ---- checkpoints

    def save(self, folder: str | Path) -> None:
        """Store weights, optimizer state, schedules and the phase, on every process; see `Finetuner.save`.

        Buffers are made equal over the ranks first. Any setup and number of processes can `load` it.

        Raises:
            CheckpointError: it is there already, or cannot be written.
        """
        self.transitions.equalise_buffers()
        super().save(folder)

    def load(self, folder: str | Path) -> nn.Module:
        """Resume from what `save` stored, on this setup and these processes; after `prepare`, before the loop.

        Raises:
            CheckpointError: it is damaged, or of another model, optimizer or strategy.
        """
        super().load(folder)
        self._follow()
        return self._model


def _as_tuple(prepared: object) -> tuple[object, ...]:
    """Accelerate gives one object bare."""
    return prepared if isinstance(prepared, tuple) else (prepared,)


def _refuse_partitioned(task: nn.Module) -> None:
    name = next((name for name, parameter in task.named_parameters() if hasattr(parameter, "ds_id")), None)
    if name is not None:
        raise TransitionError(
            f"{name} was partitioned when it was made (zero.Init), so that the strategy cannot look at it: build the "
            "model whole, with DeepSpeedPlugin(zero3_init_flag=False)"
        )
