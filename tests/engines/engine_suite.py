"""The engine suite on one rank: no-op transitions, agreement, proof, leaks, bytes and traffic, one function each."""

from __future__ import annotations

import gc
import random
import time
from collections import Counter
from collections.abc import Callable

import torch
import torch.distributed as dist
from engine_cases import BY_NAME, PHASES, STEPS
from engine_nets import GLOBAL_BATCH, Chain, Deep
from engine_proofs import alarm, buffer_alarm, buffers, calm, linked, scale
from engine_runs import RANK, WORLD_SIZE, Run, config, named, same
from engine_survival import apart, survival
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from flash_launch.setups import ModelNumbers, RunNumbers, load_setup, resolve_setup
from flash_strategies.agreement import ControlGroup
from flash_strategies.digest import slice_digest
from flash_strategies.engines.zero12 import Flat, Span, relocate
from flash_strategies.errors import AgreementError


def template(setup: str, bf16: bool) -> dict[str, object]:
    """What flash-launch makes of one of its templates for this network."""
    whole = sum(p.numel() for p in Chain().parameters())
    precision = "bf16-mixed" if bf16 else "32-true"
    run = RunNumbers(WORLD_SIZE, WORLD_SIZE, GLOBAL_BATCH // WORLD_SIZE, 1, None, precision, cuda=False)
    model = ModelNumbers(trainable=whole, total=whole, hidden_size=13, largest_layer=13 * 11 + 11)
    return {**resolve_setup(load_setup(setup), run, model), "steps_per_print": 10**9}


def noop(setup: str, precision: str) -> list[list[str]]:
    """The same phases with and without transitions that change nothing between them."""
    bf16 = precision == "bf16"
    # the setups are tried with small buckets, the templates as they are
    settings = template(setup.removeprefix("template_"), bf16) if setup.startswith("template_") else None
    ends = []
    for idle in (False, True):
        run = Run(setup.removeprefix("template_"), PHASES[0], bf16=bf16, config=settings)
        found = []
        for number, layers in enumerate(PHASES):
            if number:
                run.move(layers)
            if idle:
                run.move(layers, phase="the same")
            run.step(2)
            if idle:
                run.move(layers, phase="the same")
            run.step()
            found.append(run.everything())
        ends.append(found)
    return [same(left, right) for left, right in zip(*ends, strict=True)]


def reference(setup: str) -> list[dict[str, torch.Tensor]]:
    """Whole weights at each phase's end, for a comparison with torch's AdamW in one process."""
    settings = template(setup.removeprefix("template_"), bf16=False) if setup.startswith("template_") else None
    run = Run(setup.removeprefix("template_"), PHASES[0], config=settings)
    found = []
    for number, layers in enumerate(PHASES):
        if number:
            run.move(layers)
        run.step(STEPS)
        found.append(run.weights())
    return found


def unused(setup: str, precision: str) -> list[dict[str, tuple[torch.Tensor, torch.Tensor]]]:
    """Moments of the branch, which gets no gradient in the step, before and after that step."""
    bf16 = precision == "bf16"
    settings = template(setup.removeprefix("template_"), bf16) if setup.startswith("template_") else None
    run = Run(setup.removeprefix("template_"), "cde", bf16=bf16, config=settings)
    found = []
    for layers in ("cde", "abcde"):
        if layers != "cde":
            run.move(layers)
        run.step()  # an even one
        before = run.state()
        run.step()
        after = run.state()
        found.append({key: (before[key], after[key]) for key in before if "exp_avg" in key and " e." in key})
    return found


# ---- agreement


def disagreement(setup: str, how: str) -> dict[str, object]:
    """The last rank wants something else; then all want the same, and the run goes on."""
    odd = RANK == WORLD_SIZE - 1
    run = Run(setup, "d")
    run.step(2)
    before = run.everything()
    began = time.monotonic()
    told = None
    try:
        match how:
            case "phase":
                run.move("cd", phase="another" if odd else "unfrozen")
            case "names":
                run.move("bd" if odd else "cd", phase="unfrozen")
            case "lr":
                run.move("cd", phase="unfrozen", lr=dict.fromkeys(named(run.task, "c"), 2e-3 if odd else 1e-3))
            case "step":
                run.steps += odd
                run.move("cd", phase="unfrozen")
    except AgreementError as error:
        told = str(error)
    seconds = time.monotonic() - began
    changed = same(before, run.everything())
    run.steps = 2
    return {"told": told, "seconds": seconds, "changed": changed, "later": _goes_on(run, setup)}


def absence(setup: str) -> dict[str, object]:
    """The last rank comes three time-outs late; then all come, and the run goes on."""
    run = Run(setup, "d", timeout=1.0)
    run.step(2)
    before = run.everything()
    if RANK == WORLD_SIZE - 1:
        time.sleep(3.0)
    began = time.monotonic()
    told = None
    try:
        run.move("cd", phase="unfrozen")
    except AgreementError as error:
        told = str(error)
    seconds = time.monotonic() - began
    changed = same(before, run.everything())
    # the control group is broken, as any group is after a time-out; training's own is not
    run.transitions.control = ControlGroup(20)
    return {"told": told, "seconds": seconds, "changed": changed, "later": _goes_on(run, setup)}


def _goes_on(run: Run, setup: str) -> list[str]:
    """What differs at the end from a run in which nothing happened."""
    run.move("cd", phase="unfrozen")
    run.step(2)
    undisturbed = Run(setup, "d")
    undisturbed.step(2)
    undisturbed.move("cd", phase="unfrozen")
    undisturbed.step(2)
    return same(run.everything(), undisturbed.everything())


# ---- leaks


def leaks(setup: str) -> list[dict[str, int]]:
    """Fifty transitions; after each, what is alive."""
    run = Run(setup, "d")
    run.step()
    counts = []
    for number in range(50):
        run.move(("cd", "abcde", "bd", "d")[number % 4])
        run.step()
        if number % 4 == 3:
            counts.append(_alive(run))
    return counts


def _alive(run: Run) -> dict[str, int]:
    gc.collect()
    hooks = (
        "_forward_hooks",
        "_forward_pre_hooks",
        "_backward_hooks",
        "_backward_pre_hooks",
    )
    objects = gc.get_objects()
    watched = ("DeepSpeedEngine", "DeepSpeedZeroOptimizer", "DeepSpeedZeroOptimizer_Stage3", "AveragingDDP")
    counts = Counter(type(item).__name__ for item in objects)
    return {
        "hooks": sum(len(getattr(module, name)) for module in run.task.modules() for name in hooks),
        "parameter_hooks": sum(len(p._backward_hooks or ()) for p in run.task.parameters()),
        **{name: counts[name] for name in watched},
        "tensors": sum(isinstance(item, torch.Tensor) for item in objects),
        "bytes": sum(_storages(objects).values()),
    }


def _storages(objects: list[object]) -> dict[int, int]:
    """Address and bytes of the storage of every live tensor, gradients included."""
    found: dict[int, int] = {}
    for item in objects:
        if issubclass(type(item), torch.Tensor):
            tensors = [item, item.grad] if item.is_leaf and item.grad is not None else [item]
            for tensor in tensors:
                storage = tensor.untyped_storage()
                found[storage.data_ptr()] = storage.nbytes()
    return found


# ---- bytes


class Wire(TorchDispatchMode):
    """Counts what goes through c10d's operators, those of DDP's reducer included."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func.namespace == "c10d":
            tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
            whole = max((t.numel() * t.element_size() for t in tensors), default=0)
            self.bytes[func.name().removeprefix("c10d::")] += whole
        return func(*args, **(kwargs or {}))


def bytes_held(setup: str, precision: str) -> dict[str, dict[str, object]]:
    """What a rank holds and sends with 95 % frozen, with nothing frozen, and when 95 % are frozen again."""
    found = {}
    bf16 = precision == "bf16"
    slice_digest(torch.zeros(1 << 17))  # has tables of its own, made once in a process
    for name, first, then in (("frozen", "t", None), ("all", Deep.names, None), ("refrozen", Deep.names, "t")):
        gc.collect()
        gc.freeze()  # what other cases left behind is not counted
        settings = None
        if setup != "ddp":
            settings = config(int(setup[4]), bf16=bf16, reduce_bucket_size=64 * 64)
        run = Run(setup, first, bf16=bf16, net=Deep, config=settings, find_unused=False)
        run.step(2)
        if then:
            run.move(then)
            run.step(2)
        gc.collect()
        objects = gc.get_objects()
        storages = _storages(objects)
        weights = [p.ds_tensor if hasattr(p, "ds_tensor") else p for p in run.task.parameters()]
        for weight in weights:
            storages.pop(weight.untyped_storage().data_ptr(), None)
        wire = Wire()
        with wire:
            run.step()
        told = run.engine.state_bytes()
        found[name] = {
            "live": sum(storages.values()),
            "masters": told.masters,
            "moments": told.moments,
            "gradients": told.gradients,
            "wire": dict(wire.bytes),
        }
    return found


# ---- relocation


def relocate_slices() -> int:
    """Random layouts: what every rank holds afterwards is what it should hold. Gives the number of layouts tried."""
    random_numbers = random.Random(5)  # the same on all ranks
    group = dist.group.WORLD
    for _ in range(40):
        names = [f"p{i}" for i in range(random_numbers.randint(1, 7))]
        sizes = {name: random_numbers.randint(1, 23) for name in names}
        kept = [name for name in names if random_numbers.random() < 0.7] or names[:1]
        random_numbers.shuffle(kept)
        values = {name: torch.arange(size) + 1000.0 * (i + 1) for i, (name, size) in enumerate(sizes.items())}
        (before, source), (after, expected) = (_laid_out(order, values) for order in (names, kept))
        target = torch.full_like(expected, -1.0)
        relocate(before, after, source, target, group, RANK)
        holds = torch.zeros_like(expected, dtype=torch.bool)
        for span, begin, end in after.pieces(RANK):
            start = span.offset + begin - RANK * after.partition
            holds[start : start + end - begin] = True
        assert torch.equal(target[holds], expected[holds]), (names, sizes, kept)
        assert bool((target[~holds] == -1.0).all()), "padding was written"
    return 40


def _laid_out(order: list[str], values: dict[str, torch.Tensor]) -> tuple[Flat, torch.Tensor]:
    """The layout of parameters in a flat buffer, padded to equal partitions, and this rank's partition of it."""
    spans, offset = [], 0
    for name in order:
        spans.append(Span(name, offset, values[name].numel()))
        offset += values[name].numel()
    partition = -(-offset // WORLD_SIZE)
    whole = torch.zeros(partition * WORLD_SIZE)
    whole[:offset] = torch.cat([values[name] for name in order])
    own = whole[RANK * partition : (RANK + 1) * partition].clone()
    return Flat(tuple(spans), partition, own, {}, {}), own


CASES: dict[str, Callable[..., object]] = {
    "noop": noop,
    "reference": reference,
    "unused": unused,
    "disagreement": disagreement,
    "absence": absence,
    "alarm": alarm,
    "calm": calm,
    "linked": linked,
    "scale": scale,
    "survival": survival,
    "apart": apart,
    "buffers": buffers,
    "buffer_alarm": buffer_alarm,
    "leaks": leaks,
    "bytes": bytes_held,
    "relocate": relocate_slices,
}


def run_case(name: str) -> object:
    """Run one case of `engine_cases`."""
    case = BY_NAME[name]
    return CASES[case.what](*case.arguments)
