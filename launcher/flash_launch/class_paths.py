"""Tasks and data in a YAML file as LightningCLI has them, class_path and init_args: the options that say the same."""

from collections.abc import Mapping

from flash_launch.errors import ConfigError

__all__ = ["MODEL", "SEED", "with_options"]

MODEL, SEED = "model", "seed_everything"
"""What LightningCLI calls the task and the seed."""
_OTHER_NAMES = {MODEL: "task", SEED: "seed"}
_KEYS = ("class_path", "init_args")


def with_options(values: Mapping[str, object], source: str) -> dict[str, object]:
    """Values of a YAML file with module:Class and arguments in place of class_path and init_args.

    Raises:
        ConfigError: a mapping of another form, or something that is given twice.
    """
    found = dict(values)
    for theirs, ours in _OTHER_NAMES.items():
        if theirs in found:
            if found.get(ours) is not None:
                raise ConfigError(f"{source}: {theirs} and {ours} are the same: give one of them")
            found[ours] = found.pop(theirs)
    for name in ("task", "data", "strategy"):
        given = found.get(name)
        if not isinstance(given, Mapping):
            continue
        path = str(given.get("class_path") or "").replace(":", ".")
        if "." not in path or set(given) - set(_KEYS):
            raise ConfigError(
                f"{source}: {name} is {dict(given)}: give module:Class, or class_path and init_args, as in "
                f"{name}: {{class_path: my_module.MyClass, init_args: {{width: 8}}}}"
            )
        arguments = f"{name}_args"
        if given.get("init_args"):
            if found.get(arguments):
                raise ConfigError(f"{source}: {name} has init_args, and {arguments} is given beside it: give one")
            found[arguments] = given["init_args"]
        module, _, cls = path.rpartition(".")
        found[name] = f"{module}:{cls}"
    return found
