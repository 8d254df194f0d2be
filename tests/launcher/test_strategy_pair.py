"""Flash's pair in YAML, where lists are pairs."""

import pytest

from flash_launch.config import RunConfig
from flash_launch.errors import ConfigError
from flash_strategies.registry import parse_strategy


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("[freeze_unfreeze, 7]", {"strategy": "freeze_unfreeze", "unfreeze_epoch": 7}),
        ("[freeze_unfreeze_deepspeed, 0]", {"strategy": "freeze_unfreeze_deepspeed", "unfreeze_epoch": 0}),
        (
            "[unfreeze_milestones, [[5, 10], 2]]",
            {"strategy": "unfreeze_milestones", "milestones": (5, 10), "num_layers": 2},
        ),
        ("[mine, {every: 2}]", {"strategy": "mine", "strategy_args": {"every": 2}}),
    ],
)
def test_pairs(text: str, options: dict[str, object]) -> None:
    assert RunConfig.from_yaml(f"strategy: {text}") == RunConfig(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text", ["[freeze_unfreeze]", "[freeze_unfreeze, seven]", "[1, 2]", "[unfreeze_milestones, 5]"]
)
def test_other_lists_are_refused_with_the_forms(text: str) -> None:
    with pytest.raises(ConfigError, match=r"give a name, or a pair: \[freeze_unfreeze, 7\]"):
        RunConfig.from_yaml(f"strategy: {text}")


def test_the_same_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="unfreeze_epoch is given beside it"):
        RunConfig.from_yaml("strategy: [freeze_unfreeze, 7]\nunfreeze_epoch: 7")


def test_lists_are_pairs_for_the_strategies_too() -> None:
    assert parse_strategy(["freeze_unfreeze", 7]) == parse_strategy(("freeze_unfreeze", 7))
    milestones = ("unfreeze_milestones", ((5, 10), 2))
    assert parse_strategy(["unfreeze_milestones", [[5, 10], 2]]) == parse_strategy(milestones)
