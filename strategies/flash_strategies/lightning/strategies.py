"""Two Lightning strategies whose engines can be rebuilt at a transition: one for DDP, one for DeepSpeed.

The DeepSpeed one also runs on a CPU with gloo, and leaves gradient accumulation to Lightning, so that an epoch whose
last accumulation is not full ends with an optimizer step, as it does under DDP: transitions need that boundary.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from lightning_fabric.utilities.types import _PATH
from pytorch_lightning.strategies import DDPStrategy, DeepSpeedStrategy
from pytorch_lightning.utilities.types import STEP_OUTPUT, LRSchedulerConfig
from torch import nn
from torch.optim import Optimizer

from flash_strategies import deepspeed_private
from flash_strategies.batch_norms import match_statistics_to_weights
from flash_strategies.buffers import kept_types
from flash_strategies.engines.averaging import AveragingDDP
from flash_strategies.engines.base import Engine
from flash_strategies.engines.ddp import DDPEngine
from flash_strategies.engines.zero3 import Zero3Engine
from flash_strategies.engines.zero12 import Zero12Engine
from flash_strategies.errors import CheckpointError, TransitionError
from flash_strategies.lightning import private
from flash_strategies.lightning.checkpoint import check_kind, client_state
from flash_strategies.parameter_checks import (
    Holding,
    averaged_copy,
    check_callbacks,
    check_copies,
    check_parameters,
)

if TYPE_CHECKING:
    import deepspeed


Complete = Callable[[pl.LightningModule], Mapping[str, object]]
"""Makes a complete DeepSpeed configuration for a task."""


class FinetuningDDPStrategy(DDPStrategy):
    """DDP that is wrapped anew at each transition."""

    transition_engine: Engine | None = None

    @classmethod
    def of(cls, strategy: DDPStrategy, **options: object) -> FinetuningDDPStrategy:
        """Lightning's strategy, configured as it is, made one that transitions can rebuild.

        Args:
            strategy: of Lightning's own class, or already one of these; not to be used any more.
            options: of DistributedDataParallel, for those that it was not given.

        Raises:
            TransitionError: a subclass, whose changes would be lost; or one that lets ranks differ between averages.
        """
        if isinstance(strategy, cls):
            return strategy
        if type(strategy) is not DDPStrategy:
            raise TransitionError(
                f"{type(strategy).__name__} cannot be rebuilt when parameters unfreeze: give strategy='ddp', or derive "
                "it from flash_strategies.lightning.FinetuningDDPStrategy"
            )
        ours = cls()
        vars(ours).update(vars(strategy))
        if ours._model_averaging_period is not None:
            raise TransitionError(
                "model_averaging_period lets the ranks' weights differ between averages, and a finetuning run proves "
                "that they are equal: leave it out"
            )
        ours._ddp_kwargs = {**options, **ours._ddp_kwargs}
        return ours

    def _setup_model(self, model: nn.Module) -> AveragingDDP:
        device_ids = self.determine_ddp_device_ids()
        # as Lightning does, see https://pytorch.org/docs/stable/notes/cuda.html#id5
        stream = torch.cuda.Stream() if device_ids is not None else None  # type: ignore[no-untyped-call]
        with torch.cuda.stream(stream):
            return AveragingDDP(model, device_ids=device_ids, **self._ddp_kwargs)

    def setup_optimizers(self, trainer: pl.Trainer) -> None:
        """Make the optimizer, and the engine over it that transitions rebuild."""
        super().setup_optimizers(trainer)
        task = self.lightning_module
        self.transition_engine = None
        if task is None or len(self.optimizers) != 1:
            return  # a finetuning callback refuses it; a fit without one may have any number
        check_parameters(task, Holding(cuda=self.root_device.type == "cuda"))
        schedulers = [config.scheduler for config in self.lr_scheduler_configs]
        optimizer = private.torch_optimizer(self.optimizers[0])
        self.transition_engine = DDPEngine(
            task, optimizer, schedulers, rewrap=lambda: private.wrap_ddp_anew(self, task), wrapped=lambda: self.model
        )

    def load_checkpoint(self, checkpoint_path: _PATH, weights_only: bool | None = None) -> dict[str, Any]:
        """Read Lightning's file.

        Raises:
            CheckpointError: it is a folder of DeepSpeed's.
        """
        check_kind(checkpoint_path, folder=False)
        return private.read_checkpoint(super().load_checkpoint, self.checkpoint_io, checkpoint_path, weights_only)


class FinetuningDeepSpeedStrategy(DeepSpeedStrategy):
    """DeepSpeed whose ZeRO wrapper is rebuilt at each transition; on CUDA, or on a CPU with gloo."""

    transition_engine: Zero12Engine | None = None
    _resumed_from: _PATH = ""
    _evaluated: deepspeed_private.DeepSpeedEngine | None = None
    _passes_missing = 0
    _last_pass: tuple[tuple[object, ...], dict[str, object]] = ((), {})

    def __init__(self, config: Mapping[str, object], *, complete: Complete | None = None, **kwargs: object) -> None:
        """Take a DeepSpeed configuration.

        Args:
            config: no "auto" left in it, but where `complete` is given; `gradient_accumulation_steps` is taken from the
                Trainer.
            complete: makes the complete configuration for a task, which its Trainer is set on; called for each fit.
            kwargs: as for DeepSpeedStrategy.
        """
        private.check_version()
        deepspeed_private.check_version()
        super().__init__(config=_without_accumulation(config), **kwargs)  # type: ignore[arg-type]
        self._given, self.complete = dict(config), complete

    @classmethod
    def of(cls, strategy: DeepSpeedStrategy) -> FinetuningDeepSpeedStrategy:
        """Lightning's strategy, configured as it is, made one that transitions can rebuild.

        Args:
            strategy: of Lightning's own class, or already one of these; not to be used any more.

        Raises:
            TransitionError: a subclass, whose changes would be lost.
        """
        if isinstance(strategy, cls):
            return strategy
        if type(strategy) is not DeepSpeedStrategy or not isinstance(strategy.config, dict):
            raise TransitionError(
                f"{type(strategy).__name__} cannot be rebuilt when parameters unfreeze: give "
                "strategy='deepspeed_stage_2', or derive it from "
                "flash_strategies.lightning.FinetuningDeepSpeedStrategy"
            )
        ours = cls(strategy.config)
        vars(ours).update({name: value for name, value in vars(strategy).items() if name != "config"})
        return ours

    def setup_environment(self) -> None:
        """Start DeepSpeed's process group on the devices there are."""
        if self.root_device.type == "cuda":
            super().setup_environment()
            return
        deepspeed_private.without_shm_op()
        private.start_deepspeed_on_cpu(self)

    def connect(self, model: pl.LightningModule) -> None:
        """Take the task, which nothing has frozen yet.

        Raises:
            ParameterError: it holds a copy to be averaged into, and stage 3 partitions weights.
        """
        if private.fits(model.trainer):
            self._take_down(model)
        self.config = _without_accumulation(self._given if self.complete is None else self.complete(model))
        self._config_initialized = False  # Lightning adds the numbers of the Trainer and the task in `setup`
        super().connect(model)
        check_copies(averaged_copy(model), self._holding())

    def _holding(self) -> Holding:
        assert isinstance(self.config, dict), "Lightning reads the configuration when the strategy is built"
        return Holding.of_deepspeed(self.config, cuda=self.root_device.type == "cuda")

    def setup(self, trainer: pl.Trainer) -> None:
        """Look at the task's parameters before Lightning and DeepSpeed cast them, and build the engine.

        Raises:
            ParameterError: the stage cannot hold one of them.
        """
        task = self.lightning_module
        assert task is not None, "Lightning connects the task first"
        self._init_config_if_needed()
        holding = self._holding()
        check_parameters(task, holding)
        with kept_types(task, holding.dtype):
            super().setup(trainer)

    def _take_down(self, task: pl.LightningModule) -> None:
        """Undo what the run before left in the task: hooks, closures, and weights in its buffers or partitions."""
        evaluated, self._evaluated = self._evaluated, None
        if evaluated is not None and self.zero_stage_3:
            deepspeed_private.take_down_evaluation(evaluated)
        if self.transition_engine is not None:
            self.transition_engine.take_down()
            self.transition_engine, self.optimizers = None, []
        if evaluated is not None and self.zero_stage_3:
            deepspeed_private.make_whole(task)

    def _init_optimizers(self) -> tuple[Optimizer, LRSchedulerConfig | None]:
        optimizer, scheduler = super()._init_optimizers()
        task = self.lightning_module
        if task is None or not isinstance(self.config, dict):
            raise AssertionError("Lightning sets the module and reads the configuration before the optimizer")
        holding = self._holding()
        check_callbacks(task.trainer.callbacks, holding)  # type: ignore[attr-defined]
        kind = Zero3Engine if holding.stage == 3 else Zero12Engine
        schedulers = [scheduler.scheduler] if scheduler is not None else []
        self.transition_engine = kind(task, optimizer, schedulers)
        return optimizer, scheduler

    def _setup_model_and_optimizer(
        self, model: nn.Module, optimizer: Optimizer | None, lr_scheduler: object = None
    ) -> tuple[deepspeed.DeepSpeedEngine, Optimizer]:
        assert isinstance(self.config, dict)
        engine, wrapper = deepspeed_private.initialize(
            model, optimizer, self.config, args=self._device(), lr_scheduler=lr_scheduler
        )
        if self.transition_engine is not None:
            self.transition_engine.attach(cast(deepspeed_private.DeepSpeedEngine, engine))
            engine.set_gradient_accumulation_boundary(True)
        if self.root_device.type == "cpu":
            match_statistics_to_weights(model)
        return engine, wrapper

    def _initialize_deepspeed_inference(self, model: nn.Module) -> None:
        self._initialize_inference(model)
        self._evaluated = cast(deepspeed_private.DeepSpeedEngine, self.model)

    def _initialize_inference(self, model: nn.Module) -> None:
        if self.root_device.type == "cuda":
            super()._initialize_deepspeed_inference(model)
            return
        import deepspeed

        # as Lightning's own, but for the device
        keys = ("fp16", "bf16", *(("zero_allow_untested_optimizer", "zero_optimization") if self.zero_stage_3 else ()))
        given = self.config if isinstance(self.config, dict) else {}
        config = {"train_micro_batch_size_per_gpu": 1, **{key: given[key] for key in keys if key in given}}
        private.remove_module_hooks(model)
        self.model, _, _, _ = deepspeed.initialize(
            args=self._device(), config=config, model=model, model_parameters=[], dist_init_required=False
        )

    def _device(self) -> argparse.Namespace:
        # Lightning's own passes the device's index as its rank, which a CPU does not have
        cuda = self.root_device.type == "cuda"
        return argparse.Namespace(**({"device_rank": self.root_device.index} if cuda else {}))

    def load_checkpoint(self, checkpoint_path: _PATH, weights_only: bool | None = None) -> dict[str, Any]:
        """Read what Lightning put into DeepSpeed's folder; where a fit resumes, `load_engine_state` reads the rest.

        Raises:
            CheckpointError: it is a single file, and not read as one (`load_full_weights`).
        """
        single = self.load_full_weights and self.zero_stage_3
        if not single:
            check_kind(checkpoint_path, folder=True)
        task = self.lightning_module
        fitting = task is not None and private.fits(task.trainer)
        if single or not Path(checkpoint_path).is_dir() or not (fitting or self.zero_stage_3):
            plugin = self.checkpoint_io if single else None
            return private.read_checkpoint(super().load_checkpoint, plugin, checkpoint_path, weights_only)
        self._resumed_from = checkpoint_path
        if not fitting:
            self._load_partitioned(checkpoint_path)
        return client_state(checkpoint_path, self.global_rank)

    def _load_partitioned(self, folder: _PATH) -> None:
        # an engine without an optimizer, as for validation, fails in DeepSpeed's own loading at stage 3
        state = deepspeed_private.whole_weights(str(folder)) if self.is_global_zero else {}
        task = self.lightning_module
        self._restore_zero_state({"state_dict": state}, strict=task is None or task.strict_loading)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: _PATH, storage_options: object = None) -> None:
        """As Lightning's: DeepSpeed's folder, which the engine writes.

        Raises:
            CheckpointError: at stage 3, the engine is not that of a fit, and cannot write one.
        """
        fitted = self.transition_engine.engine if self.transition_engine is not None else None
        if self.zero_stage_3 and cast(object, self.deepspeed_engine) is not fitted:
            raise CheckpointError(
                f"{filepath} is not written: at ZeRO-3 the engine of a fit writes checkpoints, and validate, test or "
                "predict has built another one since. Call save_checkpoint() before them, after finetune() or fit()"
            )
        super().save_checkpoint(checkpoint, filepath, storage_options)

    def load_weights(self) -> None:
        """Read the weights alone, and buffers, from where the fit resumes."""
        if self.zero_stage_3:
            self._load_partitioned(self._resumed_from)
        else:
            task = self.lightning_module
            assert task is not None
            task.load_state_dict(deepspeed_private.whole_weights(str(self._resumed_from)), task.strict_loading)

    def load_engine_state(self) -> None:
        """Read weights, masters and moments into an engine whose groups are those of the checkpoint."""
        super().load_checkpoint(self._resumed_from)

    def on_predict_start(self) -> None:
        """Agree on the number of forward passes: at stage 3 each of them gathers weights from all ranks."""
        super().on_predict_start()
        self._passes_missing = 0
        task = self.lightning_module
        if not self.zero_stage_3 or task is None or self.world_size == 1:
            return
        batches = sum(task.trainer.num_predict_batches)
        counts = [batches] * self.world_size
        dist.all_gather_object(counts, batches)
        if max(counts) != float("inf"):
            self._passes_missing = int(max(counts) - batches)

    def predict_step(self, *args: object, **kwargs: object) -> STEP_OUTPUT:
        """One batch."""
        self._last_pass = (args, kwargs)
        output: STEP_OUTPUT = super().predict_step(*args, **kwargs)
        return output

    def on_predict_end(self) -> None:
        """Take part in what ranks with more batches gather; the results are of no use."""
        for _ in range(self._passes_missing):
            args, kwargs = self._last_pass
            super().predict_step(*args, **kwargs)
        self._passes_missing, self._last_pass = 0, ((), {})
        super().on_predict_end()

    def adopt_new_wrapper(self) -> None:
        """Tell Lightning of the ZeRO wrapper that a transition built."""
        if self.transition_engine is not None:
            self.optimizers = [cast(Optimizer, self.transition_engine.engine.optimizer)]

    @property
    def handles_gradient_accumulation(self) -> bool:
        """False: Lightning decides which batch ends an accumulation, and says so by `block_backward_sync`."""
        return False

    @contextmanager
    def block_backward_sync(self) -> Generator[None, None, None]:
        """Backward without an optimizer step to follow."""
        engine = self.deepspeed_engine
        engine.set_gradient_accumulation_boundary(False)
        try:
            yield
        finally:
            engine.set_gradient_accumulation_boundary(True)

    def backward(
        self, closure_loss: torch.Tensor, optimizer: Optimizer | None, *args: object, **kwargs: object
    ) -> torch.Tensor:
        """Backward; Lightning has divided the loss by the accumulated batches already."""
        return super().backward(closure_loss, optimizer, *args, **{**kwargs, "scale_wrt_gas": False})


def _without_accumulation(config: Mapping[str, object]) -> dict[str, object]:
    return {key: copy.deepcopy(value) for key, value in config.items() if key != "gradient_accumulation_steps"}
