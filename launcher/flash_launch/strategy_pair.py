"""A strategy as Flash's pair, [name, metadata], in a YAML file: the options that say the same."""

from collections.abc import Mapping

from flash_launch.errors import ConfigError

__all__ = ["taken_apart"]

_FORMS = "[freeze_unfreeze, 7], [unfreeze_milestones, [[5, 10], 2]], or [NAME, {argument: value}] for a registered one"


def taken_apart(values: Mapping[str, object], source: str) -> dict[str, object]:
    """Values of a YAML file with options in place of a pair.

    Raises:
        ConfigError: no pair of these forms, or an option that the pair gives, too.
    """
    pair = values.get("strategy")
    if not isinstance(pair, list):
        return dict(values)
    options: dict[str, object]
    match pair:
        case [str(name), int(epoch)] if _base(name) == "freeze_unfreeze":
            options = {"unfreeze_epoch": epoch}
        case [str(name), [[int(first), int(second)], int(layers)]] if _base(name) == "unfreeze_milestones":
            options = {"milestones": [first, second], "num_layers": layers}
        case [str(name), dict(arguments)]:
            options = {"strategy_args": arguments}
        case [str(name), None]:
            options = {}
        case _:
            raise ConfigError(f"{source}: strategy is {pair}: give a name, or a pair: {_FORMS}")
    if twice := [option for option in options if values.get(option) is not None]:
        raise ConfigError(f"{source}: strategy is {pair}, and {twice[0]} is given beside it: give one of them")
    return {**values, "strategy": name, **options}


def _base(name: str) -> str:
    return name.removesuffix("_deepspeed")
