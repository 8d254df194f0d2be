"""Loops around an `Accelerator` on two ranks equal plain torch in one process, at DDP and each ZeRO stage."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from flash_strategies.errors import CheckpointError
from flash_strategies.run_session import EXIT_STOPPED

sys.path.insert(0, str(Path(__file__).parent))

SCRIPT = Path(__file__).with_name("accelerate_loop.py")
# Accelerate's DeepSpeed path imports transformers, which is in the examples' environment only
WITH_TRANSFORMERS = Path(sys.prefix) / "examples/bin/python"
EPOCHS, MICRO_BATCHES, BATCH, CLIP, RATE, STOP_AT = 3, 5, 8, 0.5, 1e-2, 6
# fp32, nine steps of AdamW: the sum over two halves of a batch is rounded in another order than over the whole
TOLERANCE = 3e-6
CASES = ("ddp:freeze_unfreeze", "ddp:milestones", "zero2:freeze_unfreeze", "zero3:milestones")
SLOW_CASES = ("zero1:freeze_unfreeze", "zero1:milestones", "zero2:milestones", "zero3:freeze_unfreeze")
EVERY = [*CASES, *(pytest.param(case, marks=pytest.mark.slow) for case in SLOW_CASES)]
LAYERS = {"freeze_unfreeze": (0, 2, 2), "milestones": (0, 1, 2)}
"""Of the backbone's two linear layers, how many train in each epoch, from the last one; then the norm trains too."""

Epochs = list[dict[str, Any]]
Found = Callable[[str], list[dict[str, Any]]]


@pytest.fixture(scope="module")
def ends(start_ranks: Any, tmp_path_factory: pytest.TempPathFactory) -> Found:
    """What each of the two ranks found, by group of cases that share one start of the ranks."""
    done: dict[tuple[str, ...], list[dict[str, Any]]] = {}

    def result(case: str) -> list[dict[str, Any]]:
        if not case.startswith("ddp") and not WITH_TRANSFORMERS.exists():
            pytest.skip(f"{WITH_TRANSFORMERS} is missing: Accelerate's DeepSpeed path was NOT tested")
        group = tuple(one for one in CASES if one.startswith("ddp") == case.startswith("ddp"))
        group = group if case in group else SLOW_CASES
        if group not in done:
            folder = tmp_path_factory.mktemp("accelerate")
            python = str(WITH_TRANSFORMERS) if not case.startswith("ddp") else sys.executable
            ranks = start_ranks([str(SCRIPT), str(folder), *group], 2, timeout=250, python=python)
            for ended in ranks:
                assert ended.exit_code == 0, ended.output[-4000:]
            found = [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]
            done[group] = [{**one, "folder": str(folder)} for one in found]
        return done[group]

    return result


def reference(strategy: str, *, processes_at_last: int = 2) -> Epochs:
    """The same training by plain torch in one process: whole batches, a param group for each unfreeze.

    Accelerate calls a schedule once for each process at each step: of two, and in the last epoch of as many as given.
    """
    from accelerate_loop import Task, data, decay

    task, inputs_and_labels = Task(), data().tensors
    linears = [task.backbone[0], task.backbone[3]]
    head = [*task.head.parameters(), task.temperature]
    optimizer = torch.optim.AdamW([{"params": head}], lr=RATE)
    task.backbone.requires_grad_(False)
    epochs, calls = [], 0
    for epoch in range(EPOCHS):
        trained = LAYERS[strategy][epoch]
        fresh = [p for layer in linears[len(linears) - trained :] for p in layer.parameters() if not p.requires_grad]
        if trained == 2:
            fresh += [p for p in task.backbone[1].parameters() if not p.requires_grad]
        for parameter in fresh:
            parameter.requires_grad_(True)
        if fresh:
            optimizer.add_param_group({"params": fresh})
        for index in range(MICRO_BATCHES):
            inputs, labels = (t[index * BATCH : (index + 1) * BATCH] for t in inputs_and_labels)
            (nn.functional.cross_entropy(task(inputs), labels) / 2).backward()
            if index % 2 or index == MICRO_BATCHES - 1:
                torch.nn.utils.clip_grad_norm_([p for p in task.parameters() if p.grad is not None], CLIP)
                for group in optimizer.param_groups:
                    group["lr"] = RATE * decay(calls)
                optimizer.step()
                optimizer.zero_grad()
                calls += 2 if epoch < EPOCHS - 1 else processes_at_last
        weights = {name: parameter.detach().clone() for name, parameter in task.named_parameters()}
        trainable = sum(p.requires_grad for p in task.parameters())
        epochs.append({"weights": weights, "trainable": trainable, "rate": RATE * decay(calls)})
    return epochs


def bits(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> list[str]:
    return [name for name in left if not torch.equal(left[name], right[name])]


@pytest.mark.parametrize("case", EVERY)
def test_ranks_are_equal_and_are_as_plain_torch(ends: Found, case: str) -> None:
    first, second = (end[case] for end in ends(case))
    expected = reference(case.partition(":")[2])
    assert len(first) == EPOCHS
    assert len({epoch["digest"] for epoch in first}) == EPOCHS
    for here, there, plain in zip(first, second, expected, strict=True):
        assert here["digest"] == there["digest"]
        assert not bits(here["weights"], there["weights"])
        assert here["steps"] == 3  # of five micro batches: 2, 2, and the loader's last
        assert here["trainable"] == plain["trainable"]
        assert here["rate"] == pytest.approx(plain["rate"])
        for name, value in plain["weights"].items():
            assert torch.allclose(here["weights"][name], value, rtol=0, atol=TOLERANCE), name


@pytest.mark.parametrize("case", EVERY)
def test_nothing_frozen_moves_and_what_is_unfrozen_does(ends: Found, case: str) -> None:
    from accelerate_loop import Task

    start = {name: parameter.detach() for name, parameter in Task().named_parameters()}
    epochs = ends(case)[0][case]
    backbone = {name for name in start if name.startswith("backbone")}
    assert set(bits(start, epochs[0]["weights"])) == set(start) - backbone
    moved = set(bits(epochs[0]["weights"], epochs[1]["weights"])) & backbone
    last = {name for name in backbone if name.startswith("backbone.3")}
    assert moved == (last if case.endswith("milestones") else backbone)
    assert set(bits(epochs[1]["weights"], epochs[2]["weights"])) == set(start)


@pytest.mark.parametrize("by", ["load_state 0", "load_state 1", "load 0"])
@pytest.mark.parametrize("case", EVERY)
def test_resumes_as_if_it_had_not_stopped(ends: Found, case: str, by: str) -> None:
    for end in ends(case):
        after = end[case][int(by[-1]) + 1 :]
        resumed = end[f"{case} {by}"]
        assert [epoch["digest"] for epoch in resumed] == [epoch["digest"] for epoch in after]
        for one, whole in zip(resumed, after, strict=True):
            assert one["rate"] == whole["rate"]
            assert not bits(one["weights"], whole["weights"])


# each start of the ranks has one, at the setup of its first case
@pytest.mark.parametrize("case", [CASES[0], CASES[2], pytest.param(SLOW_CASES[0], marks=pytest.mark.slow)])
def test_stopped_and_resumed_equals_the_unstopped_run(ends: Found, case: str) -> None:
    runs = [end["stopping"] for end in ends(case)]
    for whole, stopped, resumed in runs:
        assert (whole["code"], stopped["code"], resumed["code"]) == (0, EXIT_STOPPED, 0)
        assert whole["steps"] == resumed["steps"] == 15
        assert STOP_AT <= stopped["steps"] < 10  # in the second epoch, which unfroze the backbone
        assert len(whole["seen"]) == 30  # two micro batches to a step
        assert stopped["seen"] == whole["seen"][: 2 * stopped["steps"]]
        assert resumed["seen"] == whole["seen"][2 * stopped["steps"] :]
        assert not bits(resumed["weights"], whole["weights"])
    assert not bits(runs[0][0]["weights"], runs[1][0]["weights"])


@pytest.mark.parametrize("by", ["load_state", "load"])
@pytest.mark.parametrize("case", ["ddp:milestones", "zero3:milestones"])
def test_one_process_resumes_what_two_ranks_saved(ends: Found, case: str, by: str, caplog: Any) -> None:
    from accelerate_loop import Run

    first = ends(case)[0]
    run = Run("ddp", "milestones")
    folder = Path(str(first["folder"])) / case
    if by == "load":
        run.finetuner.load(folder / "saved1")
    elif case.startswith("ddp"):
        run.accelerator.load_state(str(folder / "state1"))
        assert "was saved by 2 processes and is read by 1" in caplog.text
    else:
        with pytest.raises(CheckpointError, match=r"ZeRO stage 3 and this is DDP.*finetuner\.load"):
            run.accelerator.load_state(str(folder / "state1"))
        return
    for name, value in first[case][1]["weights"].items():
        assert torch.equal(run.weights()[name], value), name
    run.train(2)
    plain = reference("milestones", processes_at_last=1)[2]
    for name, value in run.epochs[0]["weights"].items():  # type: ignore[attr-defined]
        assert torch.allclose(value, plain["weights"][name], rtol=0, atol=TOLERANCE), name


def test_a_ddp_user_imports_neither_deepspeed_nor_lightning_nor_wandb(ends: Found) -> None:
    assert [end["imported"] for end in ends("ddp:freeze_unfreeze")] == [[], []]
