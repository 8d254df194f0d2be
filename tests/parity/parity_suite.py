"""The parity suite on one rank: every case trains through Lightning and notes all that is compared."""

from __future__ import annotations

import hashlib
import logging
import os
from dataclasses import dataclass

import pytorch_lightning as pl
import torch
from parity_cases import BATCHES_PER_EPOCH, BY_NAME, EPOCHS, GLOBAL_BATCH, REFREEZE, Case, Run, Step
from parity_models import NETS, data
from parity_reference import DECAY, EPS, HEAD_DECAY, HEAD_LR, LR, MOMENTUM, factor, steps_per_epoch
from torch import nn

from flash_strategies import Everything, Matching, Phase
from flash_strategies.lightning import (
    FinetuningCallback,
    FinetuningDDPStrategy,
    FinetuningDeepSpeedStrategy,
    FlashBaseFinetuning,
    finetuning_callback,
)

logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
RANK, WORLD_SIZE = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


# As printed in Flash's guide but for the import line, with the epoch at which the parity suite unfreezes.
class FeatureExtractorFreezeUnfreeze(FlashBaseFinetuning):
    def __init__(self, unfreeze_epoch: int = 2, train_bn: bool = True):
        # this will set self.attr_names as ["backbone"]
        super().__init__("backbone", train_bn)
        self._unfreeze_epoch = unfreeze_epoch

    def finetune_function(self, pl_module, current_epoch, optimizer, opt_idx):
        # unfreeze any module you want by overriding this function

        # When ``current_epoch`` is 5, backbone will start to be trained.
        if current_epoch == self._unfreeze_epoch:
            self.unfreeze_and_extend_param_group(
                pl_module.backbone,
                optimizer,
            )


@dataclass(frozen=True)
class Refreeze:
    """One's own strategy: the middle is frozen, all trains, a part freezes again, all trains."""

    net: str
    name: str = "refreeze"

    def phases(self, max_epochs: int | None) -> tuple[Phase, ...]:
        middle_frozen, less = REFREEZE[self.net]
        return (
            Phase("middle frozen", 0, Matching(middle_frozen[0])),
            Phase("unfrozen", 1, Everything()),
            Phase("refrozen", 2, Matching(less[0])),
            Phase("unfrozen again", 3, Everything()),
        )


class Recorder(pl.Callback):
    """Notes what is compared."""

    def __init__(self, callback: FinetuningCallback) -> None:
        self.run = Run()
        self._callback = callback
        self._step = 0
        self._rates: dict[str, float] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.run.weights.append(whole_weights(pl_module))

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        engine = self._callback.transitions.engine
        self._rates = {}
        for cohort, group in zip(engine.cohorts, engine.optimizer.param_groups, strict=True):
            self._rates.update(dict.fromkeys(cohort.names, float(group["lr"])))

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: object) -> None:
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        digests = {name: digest(weight) for name, weight in whole_weights(pl_module).items()}
        holding = [name for name, p in pl_module.named_parameters() if p.grad is not None]
        self.run.steps.append(Step(trainer.current_epoch, self._rates, digests, holding))

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        engine = self._callback.transitions.engine
        self.run.weights.append(whole_weights(pl_module))
        self.run.buffers.append({n: b.clone() for n, b in pl_module.named_buffers() if b.is_floating_point()})
        self.run.chunks.append([(kind, c.name, c.start, c.tensor.clone()) for kind, c in engine.state()])
        self.run.counts.append(engine.steps())


def whole_weights(module: nn.Module) -> dict[str, torch.Tensor]:
    """Copies of the whole parameters, gathered where they are partitioned."""
    import deepspeed

    whole = {}
    for name, parameter in module.named_parameters():
        if hasattr(parameter, "ds_id"):
            with deepspeed.zero.GatheredParameters([parameter]):
                whole[name] = parameter.detach().clone()
        else:
            whole[name] = parameter.detach().clone()
    return whole


def digest(tensor: torch.Tensor) -> str:
    """Of the bytes; not the one under test."""
    return hashlib.blake2b(tensor.reshape(-1).view(torch.uint8).numpy().tobytes(), digest_size=8).hexdigest()


class Task(pl.LightningModule):
    """A network of the suite as a task."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        net = NETS[case.net]()
        self.backbone, self.head = net.backbone, net.head
        self.case = case
        self.net_forward = type(net).forward

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        inputs, classes = batch
        if self.case.bf16 and inputs.is_floating_point():
            inputs = inputs.bfloat16()
        return nn.functional.cross_entropy(self.net_forward(self, inputs, self.current_epoch).float(), classes)

    def configure_optimizers(self) -> dict[str, object]:
        case = self.case
        groups = [{"params": list(self.parameters()), "lr": LR, "weight_decay": DECAY}]
        if case.groups:
            named = list(self.named_parameters())
            backbone = [p for name, p in named if not name.startswith("head.")]
            head = [p for name, p in named if name.startswith("head.")]
            groups = [
                {"params": backbone, "lr": LR, "weight_decay": DECAY},
                {"params": head, "lr": HEAD_LR, "weight_decay": HEAD_DECAY},
            ]
        if case.optimizer == "sgd":
            optimizer: torch.optim.Optimizer = torch.optim.SGD(groups, lr=LR, momentum=MOMENTUM)
        else:
            optimizer = torch.optim.AdamW(groups, lr=LR, eps=EPS)
        if case.schedule == "lambda":
            schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, [lambda s: factor(case, s)] * len(groups))
        else:
            schedule = torch.optim.lr_scheduler.OneCycleLR(
                optimizer,
                [group["lr"] for group in groups],
                total_steps=EPOCHS * steps_per_epoch(case),
                cycle_momentum=False,
            )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def strategy_of(case: Case) -> object:
    """What a user would give as the strategy."""
    suffix = "" if case.setup == "ddp" else "_deepspeed"
    match case.strategy:
        case "guide":
            return FeatureExtractorFreezeUnfreeze(train_bn=case.train_bn)
        case "refreeze":
            return Refreeze(case.net)
        case "freeze_unfreeze":
            return "freeze_unfreeze" + suffix, 2
        case "unfreeze_milestones":
            return "unfreeze_milestones" + suffix, ((1, 2), 2)
    return case.strategy + suffix


def trainer_strategy(case: Case) -> FinetuningDDPStrategy | FinetuningDeepSpeedStrategy:
    """Lightning's strategy for the setup."""
    if case.setup == "ddp":
        return FinetuningDDPStrategy(find_unused_parameters=True, broadcast_buffers=False, gradient_as_bucket_view=True)
    config: dict[str, object] = {
        "train_micro_batch_size_per_gpu": GLOBAL_BATCH // WORLD_SIZE,
        "gradient_clipping": case.clip,
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
        "zero_optimization": {
            "stage": int(case.setup[-1]),
            "reduce_bucket_size": 1000,
            "stage3_param_persistence_threshold": 0,
            "stage3_prefetch_bucket_size": 100,
        },
    }
    return FinetuningDeepSpeedStrategy({**config, "bf16": {"enabled": True}} if case.bf16 else config)


def run_case(name: str) -> Run:
    """Train."""
    case = BY_NAME[name]
    callback = finetuning_callback(strategy_of(case), train_bn=case.train_bn)
    recorder = Recorder(callback)
    trainer = pl.Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        devices=WORLD_SIZE,
        strategy=trainer_strategy(case),
        callbacks=[callback, recorder],
        precision="bf16-mixed" if case.bf16 else "32-true",
        gradient_clip_val=case.clip or None,
        accumulate_grad_batches=case.accumulate,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
    )
    inputs, classes = data(case.net)
    own = torch.utils.data.TensorDataset(inputs[RANK::WORLD_SIZE], classes[RANK::WORLD_SIZE])
    loader = torch.utils.data.DataLoader(own, batch_size=GLOBAL_BATCH // WORLD_SIZE)
    assert len(loader) == BATCHES_PER_EPOCH
    trainer.fit(Task(case), loader)
    return recorder.run
