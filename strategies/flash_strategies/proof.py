"""The proof that ranks are equal: what they hold in common, by whatever engine, is compared by digests.

Where parameters are replicated, every rank holds them all. Where they are partitioned, the digests of slices add up to
the whole's, and what a rank holds of the whole beside its slice (small parameters that stay gathered) must be equal to
it. Options of the param groups, step counts and the loss scale are common to the ranks at every setup.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import torch

from flash_strategies.agreement import ControlGroup
from flash_strategies.engines.base import Engine
from flash_strategies.errors import CheckpointError, ProofError


def prove_equal(engine: Engine, control: ControlGroup, names: Sequence[str] | None = None) -> dict[str, int]:
    """Digest of each whole parameter, proved equal on all ranks, as are the optimizer's numbers.

    Args:
        engine: how the ranks hold the model.
        control: the ranks.
        names: the parameters; all of them where it is left out.

    Raises:
        ProofError: names what differs and the ranks.
    """
    names = list(engine.parameters) if names is None else list(names)
    local = engine.digests(names)
    whole = torch.tensor([local.get(name, 0) for name in names], dtype=torch.int64)
    held = dict(zip(names, whole.tolist(), strict=True))
    if not engine.replicated:
        whole = control.sum(whole)
        held = {**dict(zip(names, whole.tolist(), strict=True)), **engine.copies(names)}
    numbers = _numbers(engine)
    low, high = control.min_max(torch.tensor([*held.values(), _hashed(numbers)], dtype=torch.int64))
    if engine.replicated:
        whole = low[:-1]
    odd = ((low[:-1] != whole) | (high[:-1] != whole)).nonzero().flatten().tolist()
    if odd:
        raise ProofError(_differing(engine, control, names, held, odd, int(whole[odd[0]])))
    if low[-1] != high[-1]:
        raise ProofError(_differing_number(control, numbers))
    return dict(zip(names, whole.tolist(), strict=True))


def named(names: Sequence[str], what: str = "parameter") -> str:
    """The first three names, and how many more."""
    shown = ", ".join(names[:3])
    return f"{what}{'s' if len(names) > 1 else ''} {shown}" + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _differing(
    engine: Engine, control: ControlGroup, names: Sequence[str], held: dict[str, int], odd: Sequence[int], whole: int
) -> str:
    name = names[odd[0]]
    digests = control.gather(held[name], "the proof that ranks are equal")
    more = f" (and {len(odd) - 1} more)" if len(odd) > 1 else ""
    right = digests[0] if engine.replicated else whole
    ranks = [rank for rank, digest in enumerate(digests) if digest != right]
    where = f"parameter {name}{more} on rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))} differs from"
    if engine.replicated:
        return f"the ranks are not equal: {where} rank 0's; stopped"
    return f"the ranks are not equal: the whole copy of {where} the slices that the ranks hold of it; stopped"


def _numbers(engine: Engine) -> dict[str, object]:
    """What the optimizer keeps per group, and the loss scale: the same on every rank."""
    found: dict[str, object] = {}
    for index in range(len(engine.cohorts)):
        found |= {f"{key} of param group {index}": value for key, value in sorted(engine.groups.options(index).items())}
    try:
        for index, memory in enumerate(engine.memory()):
            found |= {f"{key} count of param group {index}": value for key, value in sorted(memory.scalars.items())}
    except CheckpointError:  # an optimizer whose memory has no common form: its weights are compared all the same
        pass
    return found | {f"loss scaler's {key}": value for key, value in sorted(engine.loss_scale().items())}


def _hashed(numbers: dict[str, object]) -> int:
    text = json.dumps(numbers, sort_keys=True)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big", signed=True)


def _differing_number(control: ControlGroup, numbers: dict[str, object]) -> str:
    by_rank = [dict(one) for one in control.gather(numbers, "the proof that ranks are equal") if isinstance(one, dict)]
    first = by_rank[0]
    for rank, other in enumerate(by_rank):
        for key in sorted(set(first) | set(other)):
            if (here := first.get(key)) != (there := other.get(key)) and not (here != here and there != there):
                return (
                    f"the ranks are not equal: {key} is {here} on rank 0 and {there} on rank {rank}; stopped. Look for "
                    "a schedule or code that depends on the rank, such as one that follows a metric of one rank only"
                )
    return "the ranks are not equal: their optimizers' options differ; stopped"
