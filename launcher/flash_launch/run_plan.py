"""What plan.json holds: the phases of a run on its task, with what each costs in memory."""

from __future__ import annotations

from collections.abc import Collection

from flash_launch.assembly import Assembly
from flash_launch.finetuning import first_trainable

__all__ = ["estimated_bytes", "plan_json"]

_BYTES = {"32": 4, "bf16": 2, "fp16": 2}


def plan_json(assembly: Assembly) -> dict[str, object]:
    """The phases as plan.json has them: names, counts, and an estimate of bytes per rank.

    Of a callback of the user's own only what it freezes before training is known: "phases_known" is false then.

    Raises:
        FlashLaunchError: such a callback does not fit the task. It has frozen the task afterwards.
    """
    sizes = {name: parameter.numel() for name, parameter in assembly.task.named_parameters()}

    def phase(name: str, first_epoch: int, names: Collection[str]) -> dict[str, object]:
        trainable = sum(sizes[name] for name in names)
        total = sum(sizes.values())
        return {
            "name": name,
            "first_epoch": first_epoch,
            "trainable": trainable,
            "frozen": total - trainable,
            "estimated_bytes_per_rank": estimated_bytes(assembly, trainable, total),
            "trainable_names": [name for name in sizes if name in names],
        }

    phases = [
        phase(resolved.phase.name, resolved.phase.first_epoch, set(resolved.selection.trainable))
        | {"layers": list(resolved.selection.layers)}
        | ({"rate": str(resolved.phase.rate)} if resolved.phase.rate is not None else {})
        for resolved in assembly.phases
    ]
    if not phases:
        names = first_trainable(assembly.finetuning, assembly.config, assembly.task)
        phases = [phase(assembly.finetuning.first_phase, 0, names)]
    return {
        "strategy": assembly.config.strategy,
        "setup": assembly.setup.name,
        "world_size": assembly.world_size,
        "task": type(assembly.task).__name__,
        "data": assembly.data.description,
        "phases_known": bool(assembly.phases),
        "phases": phases,
        "trainer": assembly.config.trainer,
        "no_decay": list(assembly.no_decay) if assembly.no_decay is not None else None,
    }


def estimated_bytes(assembly: Assembly, trainable: int, total: int) -> dict[str, int]:
    """Bytes per rank of weights, gradients, masters and moments, before activations and buffers.

    ZeRO (Rajbhandari et al., https://arxiv.org/abs/1910.02054, section 5), with only what trains counted as trained.
    """
    ranks, stage = assembly.world_size, assembly.setup.stage
    mixed = assembly.config.precision != "32" and assembly.setup.engine == "deepspeed"
    element = _BYTES[assembly.config.precision] if mixed else 4
    moments = 2 if assembly.config.optimizer == "adamw" else 1
    shared = trainable / ranks if stage else trainable
    # at stages 1 and 2 masters are kept apart from the weights in fp32 too
    masters = 4 * shared if mixed or stage in (1, 2) else 0
    return {
        "weights": int(element * (total / ranks if stage == 3 else total)),
        "gradients": int(element * (trainable / ranks if stage >= 2 else trainable)),
        "masters": int(masters),
        "moments": int(4 * moments * shared),
    }
