"""Tasks and data of a YAML file with class_path and init_args, as LightningCLI has them."""

import pytest

from flash_launch.config import RunConfig
from flash_launch.errors import ConfigError

CASES = [
    ("task: {class_path: my.task.Mine, init_args: {width: 8}}", {"task": "my.task:Mine", "task_args": {"width": 8}}),
    ("model: {class_path: my_task.Mine}\nseed_everything: 7", {"task": "my_task:Mine", "task_args": {}, "seed": 7}),
    ("data: {class_path: 'my_data:Mine', init_args: null}", {"data": "my_data:Mine", "data_args": {}}),
    (
        "strategy: {class_path: my.Finetune, init_args: {every: 2}}",
        {"strategy": "my:Finetune", "strategy_args": {"every": 2}},
    ),
    ("task: my_task:Mine\ntask_args: {width: 3}", {"task": "my_task:Mine", "task_args": {"width": 3}}),
]


@pytest.mark.parametrize(("text", "expected"), CASES)
def test_they_are_the_options_that_say_the_same(text: str, expected: dict[str, object]) -> None:
    found = RunConfig.from_yaml(text)
    assert {name: getattr(found, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("task: {class_path: Mine}", r"task is \{'class_path': 'Mine'\}: give module:Class, or class_path"),
        ("task: {class_path: my.Mine, args: {}}", "class_path and init_args, as in task:"),
        ("task: {init_args: {}}", "give module:Class"),
        ("task: my:Mine\nmodel: {class_path: my.Mine}", "model and task are the same: give one of them"),
        ("data: {class_path: my.Data, init_args: {a: 1}}\ndata_args: {b: 1}", "data_args is given beside it"),
        ("seed_everything: true", "seed was given True: it must be a whole number"),
    ],
)
def test_other_forms_are_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RunConfig.from_yaml(text)
