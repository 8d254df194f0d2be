"""How far apart ranks are after an unfreeze under DDP: ours, Lightning's BackboneFinetuning, finetuning-scheduler.

    python benchmarks/rank_equality.py [--finetuning-scheduler FOLDER] [--epochs 6] [--unfreeze 3] [--output FILE]

Two ranks on this machine (gloo) train the head, unfreeze the backbone in the middle, and train both. Given for each is
the greatest difference between the ranks' weights at the end, and from plain torch: one process, the whole batch, the
backbone added as a param group. finetuning-scheduler is no dependency of this project; it is measured from a folder:

    pip install --no-deps --target FOLDER finetuning-scheduler
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

import torch
from rank_equality_task import LEARNING_RATE, build_net, loss_of, whole_batches

HERE = Path(__file__).parent
RANKS = 2
SECONDS = 300
"""After which a variant is given up."""
GET_SCHEDULER = "pip install --no-deps --target FOLDER finetuning-scheduler"


@dataclass(frozen=True)
class Variant:
    """One way to unfreeze under DDP."""

    name: str
    """As the table has it."""
    kind: str
    """As rank_equality_rank.py has it."""
    package: str
    """The distribution whose version the table gives."""
    strategy: str
    """Lightning's `strategy=`; "": ours."""


VARIANTS = (
    Variant("flash_strategies", "ours", "flash-launch", ""),
    Variant("Lightning's BackboneFinetuning", "lightning", "pytorch-lightning", "ddp"),
    Variant("Lightning's BackboneFinetuning", "lightning", "pytorch-lightning", "ddp_find_unused_parameters_true"),
    Variant("finetuning-scheduler", "scheduler", "finetuning-scheduler", "ddp"),
    Variant("finetuning-scheduler", "scheduler", "finetuning-scheduler", "ddp_find_unused_parameters_true"),
)


@dataclass(frozen=True)
class Case:
    """What came of a variant."""

    name: str
    version: str
    strategy: str
    between_ranks: float | None
    """The greatest difference of a weight, over all pairs of ranks; None: it was not measured."""
    from_plain_torch: float | None
    """The greatest difference of a weight of any rank from plain torch's."""
    note: str = ""
    """Why it was not measured."""


Weights = Mapping[str, torch.Tensor]


def train_plainly(epochs: int, unfreeze: int) -> Weights:
    """The weights of plain torch: one process, the whole batch; the backbone trains from the epoch `unfreeze` on."""
    net = build_net()
    net.backbone.requires_grad_(False)
    optimizer = torch.optim.SGD(net.head.parameters(), lr=LEARNING_RATE, momentum=0.9)
    for epoch in range(epochs):
        if epoch == unfreeze:
            net.backbone.requires_grad_(True)
            optimizer.add_param_group({"params": list(net.backbone.parameters())})
        for inputs, targets in whole_batches():
            optimizer.zero_grad()
            loss_of(net, inputs, targets).backward()
            optimizer.step()
    return net.state_dict()


def greatest_difference(one: Weights, other: Weights) -> float:
    """Over all elements of all tensors.

    Raises:
        ValueError: they are not of the same network, or a weight is not finite.
    """
    if one.keys() != other.keys():
        raise ValueError(f"weights of different names: {sorted(one.keys() ^ other.keys())}")
    if not all(bool(value.isfinite().all()) for weights in (one, other) for value in weights.values()):
        raise ValueError("a weight is not finite")
    return max(float((one[name].double() - other[name].double()).abs().max()) for name in one)


def start(variant: Variant, options: argparse.Namespace, folder: Path) -> list[Weights]:
    """Run the ranks; each one's weights at the end.

    Raises:
        RuntimeError: a rank failed.
    """
    folder.mkdir(parents=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    overlay = [str(options.finetuning_scheduler.absolute())] if variant.kind == "scheduler" else []
    common = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(RANKS),
        "LOCAL_WORLD_SIZE": str(RANKS),
        "GROUP_RANK": "0",
        "TORCHELASTIC_RUN_ID": "rank_equality",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": os.pathsep.join([*overlay, *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    argv = [sys.executable, str(HERE / "rank_equality_rank.py"), variant.kind, variant.strategy, str(folder)]
    argv += [str(options.epochs), str(options.unfreeze)]
    ranks: list[subprocess.Popen[bytes]] = []
    logs = [folder / f"rank{rank}.log" for rank in range(RANKS)]
    try:
        for rank, log in enumerate(logs):
            environment = {**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            with log.open("wb") as sink:
                ranks.append(subprocess.Popen(argv, stdout=sink, stderr=subprocess.STDOUT, cwd=folder, env=environment))
        codes = [rank.wait(SECONDS) for rank in ranks]
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"did not end within {SECONDS} s") from error
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    if any(codes):
        lines = [line for log in logs for line in log.read_text(errors="replace").splitlines() if line.strip()]
        raise RuntimeError(lines[-1] if lines else f"ended with {codes}, without a word")
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(RANKS)]


def version_of(variant: Variant, options: argparse.Namespace) -> str | None:
    """Of the variant's distribution; None: it is not there."""
    if variant.kind != "scheduler":
        return metadata.version(variant.package)
    folder: Path | None = options.finetuning_scheduler
    found = metadata.distributions(name=variant.package, path=[str(folder)]) if folder is not None else ()
    return next((one.version for one in found), None)


def measure(variant: Variant, plain: Weights, options: argparse.Namespace, folder: Path) -> Case:
    """One variant; a peer that cannot be measured says why, ours raises.

    Raises:
        RuntimeError: ours failed.
    """
    version = version_of(variant, options)
    if version is None:
        where = options.finetuning_scheduler
        why = f"not in {where}" if where is not None else "not given"
        return Case(
            variant.name, "", variant.strategy, None, None, f"{why}: --finetuning-scheduler FOLDER, {GET_SCHEDULER}"
        )
    try:
        ranks = start(variant, options, folder)
        between = max(greatest_difference(ranks[0], other) for other in ranks[1:])
        apart = max(greatest_difference(plain, weights) for weights in ranks)
    except (RuntimeError, ValueError) as error:
        if variant.kind == "ours":
            raise
        here = f"pytorch-lightning {metadata.version('pytorch-lightning')}"
        return Case(variant.name, version, variant.strategy, None, None, f"failed with {here}: {error}")
    return Case(variant.name, version, variant.strategy, between, apart)


def table(cases: list[Case]) -> str:
    """The cases as Markdown."""
    lines = [
        "| callback | version | DDP | between ranks | from plain torch |",
        "| --- | --- | --- | --- | --- |",
    ]
    for case in cases:
        figures = (
            [case.note, ""]
            if case.between_ranks is None or case.from_plain_torch is None
            else [f"{value:.1e}" if value else "0" for value in (case.between_ranks, case.from_plain_torch)]
        )
        lines.append("| " + " | ".join([case.name, case.version, case.strategy or "ours", *figures]) + " |")
    return "\n".join(lines)


def main() -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--finetuning-scheduler", type=Path, metavar="FOLDER", help=f"made by {GET_SCHEDULER}")
    parser.add_argument("--only", choices=sorted({one.kind for one in VARIANTS}), help="measure these variants alone")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--unfreeze", type=int, default=3, help="the first epoch that trains the backbone")
    parser.add_argument("--output", type=Path, default=Path("rank_equality.json"))
    options = parser.parse_args()
    if not 0 < options.unfreeze < options.epochs:
        parser.error(f"--unfreeze {options.unfreeze} is not in the middle of {options.epochs} epochs")
    plain = train_plainly(options.epochs, options.unfreeze)
    variants = [one for one in VARIANTS if options.only in (None, one.kind)]
    with tempfile.TemporaryDirectory() as folder:
        cases = [measure(one, plain, options, Path(folder) / str(index)) for index, one in enumerate(variants)]
    written = {
        "benchmark": "rank_equality",
        "ranks": RANKS,
        "epochs": options.epochs,
        "unfreeze": options.unfreeze,
        "versions": {name: metadata.version(name) for name in ("torch", "pytorch-lightning", "flash-launch")},
        "cases": [asdict(case) for case in cases],
    }
    options.output.write_text(json.dumps(written, indent=2) + "\n")
    print(table(cases))
    for case in cases:
        if case.note:
            print(f"left out: {case.name} ({case.strategy}): {case.note}", file=sys.stderr)
    print(f"written to {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
