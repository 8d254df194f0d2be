"""ImageClassificationData on two ranks: all samples are trained on, each counts once in what is measured."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).with_name("flash_data_ranks.py")
SIZE = 11

Found = dict[str, dict[str, object]]


def flat(batches: list[list[int]]) -> list[int]:
    return [number for batch in batches for number in batch]


@pytest.fixture(scope="module")
def ranks(start_ranks: Callable[..., list[object]], tmp_path_factory: pytest.TempPathFactory) -> list[Found]:
    folder = tmp_path_factory.mktemp("found")
    ended = start_ranks([str(SCRIPT), str(folder)], 2, timeout=240)
    assert [rank.exit_code for rank in ended] == [0, 0], ended  # type: ignore[attr-defined]
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("trainer", ["lightning", "flash"])
def test_training_misses_no_sample_and_evaluation_counts_each_once(ranks: list[Found], trainer: str) -> None:
    seen: list[dict[str, list[list[int]]]] = [rank[trainer]["seen"] for rank in ranks]  # type: ignore[misc]
    assert len(seen[0]["train"]) == len(seen[1]["train"]) == 2 * 3
    for epoch in (slice(0, 3), slice(3, 6)):
        of_epoch = [number for rank in seen for batch in rank["train"][epoch] for number in batch]
        assert len(of_epoch) == SIZE + 1
        assert set(of_epoch) == set(range(SIZE))
    first, second = (flat(seen[0]["train"][epoch]) for epoch in (slice(0, 3), slice(3, 6)))
    assert first != second
    for stage, times in (("val", 2), ("test", 1)):
        assert len(seen[0][stage]) == len(seen[1][stage])
        assert sorted(number for rank in seen for batch in rank[stage] for number in batch) == sorted(
            [*range(SIZE)] * times
        )


@pytest.mark.parametrize("trainer", ["lightning", "flash"])
def test_values_are_those_of_one_process_on_all_samples(ranks: list[Found], trainer: str) -> None:
    shades = torch.arange(SIZE) / 20
    logits = torch.outer((shades * 255).round() / 255, torch.tensor([0.0, 40.0, 80.0])) + torch.tensor([0.0, -7, -22])
    targets = torch.arange(SIZE) % 3
    loss = float(torch.nn.functional.cross_entropy(logits, targets))
    accuracy = float((logits.argmax(1) == targets).float().mean())
    for rank in ranks:
        values = rank[trainer]["values"]
        for stage in ("val", "test"):
            assert values[f"{stage}_cross_entropy"] == pytest.approx(loss, rel=1e-4)  # type: ignore[index]
            assert values[f"{stage}_accuracy"] == pytest.approx(accuracy)  # type: ignore[index]
    assert ranks[0][trainer]["values"] == ranks[1][trainer]["values"]


def test_predictions_are_in_the_order_of_the_data(ranks: list[Found]) -> None:
    expected = ["abc"[number // 4] for number in range(SIZE)]
    for rank in ranks:
        labels: list[list[str]] = rank["flash"]["labels"]  # type: ignore[assignment]
        assert [label for batch in labels for label in batch] == expected
    parts: list[list[torch.Tensor]] = [rank["lightning"]["predicted"] for rank in ranks]  # type: ignore[misc]
    in_turn = [batch for pair in zip(*parts, strict=True) for batch in pair]  # as eval_loader says
    assert ["abc"[place] for place in torch.cat(in_turn).argmax(1).tolist()] == expected


def test_a_sampler_is_shared_out_in_turn(ranks: list[Found]) -> None:
    seen: list[dict[str, list[list[int]]]] = [rank["ordered"] for rank in ranks]  # type: ignore[misc]
    assert [flat(rank["train"][:3]) for rank in seen] == [[0, 2, 4, 6, 8, 10], [1, 3, 5, 7, 9, 0]]


def test_the_command_leaves_loaders_that_are_dealt_out_as_they_are(ranks: list[Found]) -> None:
    assert [rank["dealt"] for rank in ranks] == [{"same": True, "anywhere": True}] * 2
