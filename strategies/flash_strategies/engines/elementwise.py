"""Whether an optimizer treats each element by itself, as ZeRO's flat partitions need; found by a trial."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Sequence
from inspect import signature

import torch
from torch import nn
from torch.optim import Optimizer

from flash_strategies.errors import TransitionError

_SHAPE = (160, 136)  # those that keep factors of the second moment do so from 32 or 128 rows and columns on
_PARTS = (9_999, 11_761)


def require_elementwise(optimizer: Optimizer) -> None:
    """Refuse an optimizer whose updates depend on a parameter's shape, or on more than the element.

    ZeRO gives the optimizer slices of flattened parameters, on which Adafactor, Muon, LAMB and their like compute
    something else than on the parameters, without a word.

    Raises:
        TransitionError: it is such an optimizer.
    """
    kind = type(optimizer)
    closure = signature(kind.step).parameters.get("closure")
    if closure is not None and closure.default is closure.empty:
        raise TransitionError(
            f"{kind.__module__}.{kind.__qualname__} must be given a closure at each step, which DeepSpeed cannot do: "
            "use ddp, or another optimizer"
        )
    # DeepSpeed's own need their compiled operators, and one inside of another would step the other's parameters
    if kind.__module__.startswith("deepspeed") or any(isinstance(v, Optimizer) for v in vars(optimizer).values()):
        return
    generator = torch.Generator().manual_seed(0)
    weights, *gradients = torch.randn(4, *_SHAPE, generator=generator)
    try:
        whole = _stepped(optimizer, [weights], [[gradient] for gradient in gradients])
    except Exception:
        return  # cannot be tried here (a closure, a GPU); what it says then is its own
    try:
        flat = _stepped(optimizer, _cut(weights), [_cut(gradient) for gradient in gradients])
        same = torch.allclose(whole, flat, rtol=1e-4, atol=1e-7)
    except Exception:
        same = False
    if not same:
        raise TransitionError(
            f"{kind.__module__}.{kind.__qualname__} does not treat each element of a parameter by itself, and ZeRO "
            "gives an optimizer slices of flattened parameters, on which it would compute something else: use ddp, or "
            "an optimizer like AdamW or SGD"
        )


def _cut(tensor: torch.Tensor) -> Sequence[torch.Tensor]:
    return torch.split(tensor.flatten(), list(_PARTS))


def _stepped(
    optimizer: Optimizer, weights: Sequence[torch.Tensor], gradients: Sequence[Sequence[torch.Tensor]]
) -> torch.Tensor:
    """The weights, flattened, after steps of a copy of the optimizer that has them as its only group."""
    parameters = [nn.Parameter(weight.clone()) for weight in weights]
    group = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in optimizer.param_groups[0].items()}
    rate = torch.full_like(group["lr"], 0.01) if isinstance(group.get("lr"), torch.Tensor) else 0.01
    group |= {"params": parameters, **({"lr": rate} if group.get("lr") is not None else {})}
    group.pop("param_names", None)
    copy = object.__new__(type(optimizer))
    hooks = {name: OrderedDict[int, object]() for name in vars(optimizer) if name.endswith("_hooks")}
    vars(copy).update({**vars(optimizer), **hooks, "param_groups": [group], "state": defaultdict(dict)})
    vars(copy).pop("step", None)  # a scheduler's, which would step the optimizer itself
    with torch.random.fork_rng(devices=[]):
        for each in gradients:
            for parameter, gradient in zip(parameters, each, strict=True):
                parameter.grad = gradient.clone()
            copy.step()
    return torch.cat([parameter.detach().flatten() for parameter in parameters])
