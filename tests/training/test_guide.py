"""The guide as it is printed, on one rank and on two at DDP and ZeRO-2: what each block trains, and plain torch."""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING

import pytest
from guide_suite import BLOCKS, GUIDE, Case

if TYPE_CHECKING:
    from conftest import Suites

CASES = [
    pytest.param(Case(1, "auto"), id="1-auto", marks=pytest.mark.slow),
    pytest.param(Case(2, "ddp"), id="2-ddp"),
    pytest.param(Case(2, "zero2"), id="2-zero2"),
]
ALL, FROZEN = ("backbone", "head", "norms"), ("head", "norms")
MOVED = {"no_freeze": ALL, "freeze": FROZEN, "freeze_unfreeze": FROZEN, "unfreeze_milestones": FROZEN, "custom": FROZEN}
WARNED = {"freeze_unfreeze": ["epoch 7"], "unfreeze_milestones": ["epoch 3", "epoch 8"]}


@pytest.mark.parametrize("case", CASES)
def test_the_guide_as_it_is_printed(case: Case, suites: Suites) -> None:
    ranks = suites.result(case.suite, case.world_size, case.name)
    for blocks in zip(*ranks, strict=True):  # type: ignore[call-overload]
        assert len({block.digest for block in blocks}) == 1, "ranks differ"
    for name, block in zip(BLOCKS, ranks[0], strict=True):  # type: ignore[call-overload]
        assert (block.epochs, block.steps) == (1, 1), name  # each call trains again
        assert block.moved == MOVED[name], name
        assert block.error < 1e-3, name
        words = WARNED.get(name, [])
        assert len(block.warned) == len(words), name
        assert all(word in line for word, line in zip(words, block.warned, strict=True)), name


def test_only_import_lines_differ_from_the_print() -> None:
    """The statements of the guide's five blocks, in their order."""
    tree = ast.parse(GUIDE.read_text(encoding="utf-8"))
    imports = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    flashs = [re.sub(r"flash_launch( as flash)?", "flash", ast.unparse(node)) for node in imports]
    assert flashs == [
        "import flash",
        "from flash.core.data.utils import download_data",
        "from flash.image import ImageClassificationData, ImageClassifier",
        "from flash.core.finetuning import FlashBaseFinetuning",
    ]
    calls = [ast.unparse(node) for node in tree.body if isinstance(node, ast.Expr)][1:]
    assert calls == [
        "download_data('https://pl-flash-data.s3.amazonaws.com/hymenoptera_data.zip', 'data/')",
        "trainer.finetune(model, datamodule, strategy='no_freeze')",
        "trainer.finetune(model, datamodule, strategy='freeze')",
        "trainer.finetune(model, datamodule, strategy=('freeze_unfreeze', 7))",
        "trainer.finetune(model, datamodule, strategy=('unfreeze_milestones', ((3, 8), 2)))",
        "trainer.finetune(model, datamodule, strategy=FeatureExtractorFreezeUnfreeze(unfreeze_epoch=5))",
    ]
