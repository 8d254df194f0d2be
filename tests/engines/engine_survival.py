"""Cases of the engine suite on what outlives a transition: masters and moments bit for bit, and no old flat buffer."""

from __future__ import annotations

import torch
from engine_runs import Run, over_ranks, same

SHRINKING = ("bcde", "bd", "cd")
"""From all layers on: groups lose members, in the middle too, and one comes back."""


def survival(setup: str) -> list[dict[str, list[str]]]:
    """Per transition, what trains before and after it: what was compared of its bf16 training's state, and differs."""
    run = Run(setup, "abcde", bf16=True)
    found = []
    for layers in SHRINKING:
        run.step(2)
        before = _whole(run)
        run.move(layers)
        after = {key: value for key, value in _whole(run).items() if key in before}
        found.append({"compared": sorted(after), "differ": same({key: before[key] for key in after}, after)})
    return found


def _whole(run: Run) -> dict[str, torch.Tensor]:
    """Masters and moments of all ranks together, by kind and name."""
    slices: dict[str, list[tuple[int, torch.Tensor]]] = {}
    own = [(f"{kind} {chunk.name}", chunk.start, chunk.tensor.clone()) for kind, chunk in run.engine.state()]
    for held in over_ranks(own):
        for key, start, values in held:
            slices.setdefault(key, []).append((start, values))
    return {
        key: torch.cat([values for _, values in sorted(parts, key=lambda p: p[0])]) for key, parts in slices.items()
    }


def apart(setup: str) -> list[str]:
    """Frozen parameters whose memory is more than their own, once groups have lost members."""
    run = Run(setup, "abcde")
    run.step()
    run.move("bd")
    trainable = set(run.transitions.trainable)
    return [
        chunk.name
        for chunk in run.engine.weights([name for name in run.engine.parameters if name not in trainable])
        if chunk.tensor.untyped_storage().nbytes() > chunk.tensor.numel() * chunk.tensor.element_size() + 64
    ]
