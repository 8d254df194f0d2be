"""Reads options from the command line and from YAML by jsonargparse, and says in one sentence what is wrong."""

import contextlib
import dataclasses
import difflib
import re
import types
import typing
from argparse import ArgumentError, HelpFormatter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import yaml
from jsonargparse import ArgumentParser

from flash_launch.class_paths import MODEL, SEED, with_options
from flash_launch.config import RunConfig
from flash_launch.errors import ConfigError
from flash_launch.options import field_docstrings, option_name
from flash_launch.strategy_pair import taken_apart

__all__ = [
    "given_options",
    "nearest",
    "option_names",
    "parse_run_options",
    "read_yaml",
    "slurm_sections",
    "values_from_mapping",
]

_TYPES: dict[str, type] = {name: hint for part in RunConfig.PARTS for name, hint in typing.get_type_hints(part).items()}

SLURM = "slurm"
"""The key of a YAML file that holds what is asked of a cluster."""

_PAIRS = ("--milestones", "--checkpoint-every")
"""Options with two values."""

_OTHER_WORDS = {
    "learning-rate": "lr",
    "gpus": "procs-per-node",
    "nproc-per-node": "procs-per-node",
    "ngpus": "procs-per-node",
    "nnodes": "nodes",
    "workers": "num-workers",
    "model": "backbone",
    "clip": "gradient-clip",
    "grad-clip": "gradient-clip",
    "scheduler": "lr-schedule",
    "dataset": "data",
    "device": "accelerator",
    "amp": "precision",
    "name": "strategy",
}
"""What others call an option, for the answer to an unknown one."""


class _UniqueKeys(yaml.SafeLoader):
    """YAML whose mappings must not name a key twice, and whose numbers are those of YAML 1.2.

    YAML 1.1, which PyYAML reads, takes 4:00:00 for 14400, 010 for 8 and 1e-3 for a text.
    """

    yaml_implicit_resolvers = {  # noqa: RUF012 - as PyYAML has it
        letter: [(tag, pattern) for tag, pattern in resolvers if tag.rpartition(":")[2] not in ("int", "float")]
        for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[typing.Hashable, object]:
        seen: set[object] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is there twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


_UniqueKeys.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"[-+]?(0|[1-9][0-9_]*)$|0x[0-9a-fA-F]+$"), list("-+0123456789")
)
_UniqueKeys.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"[-+]?(\.[0-9]+|[0-9][0-9_]*\.[0-9]*)([eE][-+]?[0-9]+)?$|[-+]?[0-9]+[eE][-+]?[0-9]+$"
        r"|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$"
    ),
    list("-+.0123456789"),
)


def parse_run_options(argv: Sequence[str], usage: str) -> RunConfig:
    """The configuration that a command line asks for; `--help` and `--print_config` print and exit.

    Raises:
        ConfigError: an unknown option, a missing or wrong value, a file that cannot be read.
        SystemExit: after --help and --print_config.
    """
    files, rest = _split(argv)
    parser = _build_parser(usage)
    from_files: dict[str, object] = {}
    for file in files:
        from_files |= read_yaml(_read(file), file)
    parser.set_defaults(values_from_mapping(from_files, ", ".join(files)))
    _check_known(rest)
    try:
        namespace = parser.parse_args(rest)
    except ArgumentError as error:
        raise ConfigError(_explain(str(error), "")) from error
    values = {name: getattr(namespace, name) for name in _TYPES}
    for argument in rest:
        if match := re.match(r"--([\w-]+)\.([\w.+-]+)", argument):
            _load_scalar(values[match[1].replace("-", "_")], match[2].split("."))
    return RunConfig.from_values(values)


def _load_scalar(mapping: object, path: Sequence[str]) -> None:
    """Make a number, a truth value or null of the text that was typed for an item of a mapping."""
    *above, last = path
    for name in above:
        mapping = mapping.get(name) if isinstance(mapping, dict) else None
    if isinstance(mapping, dict) and isinstance(text := mapping.get(last), str):
        with contextlib.suppress(yaml.YAMLError):
            value: object = yaml.load(text, Loader=_UniqueKeys)
            mapping[last] = value if value is None or isinstance(value, (bool, int, float)) else text


def read_yaml(text: str, source: str) -> dict[str, object]:
    """The keys and values of a YAML text, the keys checked.

    Raises:
        ConfigError: no YAML, no mapping, an unknown or repeated key.
    """
    try:
        loaded: object = yaml.load(text, Loader=_UniqueKeys)
    except yaml.YAMLError as error:
        raise ConfigError(f"{source} is not valid YAML: {_yaml_problem(error)}") from error
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise ConfigError(f"{source} holds {_shown(loaded)}: it must hold lines such as `batch_size: 32`")
    values: dict[str, object] = {}
    for key, value in loaded.items():
        name = str(key).replace("-", "_")
        if name == SLURM:
            continue  # read by slurm_sections, for those commands that submit
        if name in ("script", "module") and "arguments" in loaded:
            raise ConfigError(
                f"{source} is of a run of a script, not of options: give `flash-launch resume` its folder, or start "
                "the script anew with `flash-launch script`"
            )
        if name not in _TYPES and name not in (MODEL, SEED):
            raise ConfigError(f"{source}: unknown key {str(key)!r}{nearest(name, list(_TYPES))}")
        if name in values:
            raise ConfigError(f"{source}: the key {name!r} is there twice, with a dash and with an underscore")
        # The one option whose values look like numbers: an unquoted 32 is meant as it is typed at --precision.
        values[name] = str(value) if name == "precision" and type(value) is int else value
    return values


def option_names() -> list[str]:
    """Names of all options of a run, as in YAML."""
    return list(_TYPES)


def given_options(argv: Sequence[str]) -> dict[str, str]:
    """Names of the options that a command line and the YAML files it names give, each with how it stands there.

    Raises:
        ConfigError: a file that cannot be read, or holds no options.
    """
    files, rest = _split(argv)
    given = {name: f"{file}: {name}" for file in files for name in read_yaml(_read(file), file)}
    options = [re.split(r"[.=]", word, maxsplit=1)[0] for word in rest if word.startswith("--")]
    return given | {option.removeprefix("--").replace("-", "_"): option for option in options}


def slurm_sections(argv: Sequence[str]) -> list[tuple[str, Mapping[object, object]]]:
    """The `slurm:` parts of the YAML files that a command line names, each with its file.

    Raises:
        ConfigError: a file that cannot be read, or such a part that is no mapping.
    """
    found: list[tuple[str, Mapping[object, object]]] = []
    for file in _split(argv)[0]:
        text = _read(file)
        read_yaml(text, file)  # says what is wrong with it
        section = (yaml.load(text, Loader=_UniqueKeys) or {}).get(SLURM)
        if section is not None and not isinstance(section, dict):
            raise ConfigError(f"{file}: slurm holds {_shown(section)}: it must hold lines such as `partition: gpu`")
        found.append((file, section or {}))
    return found


def values_from_mapping(values: Mapping[str, object], source: str) -> dict[str, object]:
    """The values for all fields of a RunConfig, their types checked.

    Raises:
        ConfigError: a value of the wrong type. `source` begins the message.
    """
    values = taken_apart(with_options(values, source), source)
    for name, value in values.items():
        if value is None and type(None) not in typing.get_args(_TYPES[name]):
            raise ConfigError(f"{source}: {name} has no value: {_expected(name)}")
    try:
        namespace = _build_parser("").parse_object(dict(values))
    except ArgumentError as error:
        raise ConfigError(_explain(str(error), f"{source}: ")) from error
    return {name: getattr(namespace, name) for name in _TYPES}


def _build_parser(usage: str) -> ArgumentParser:
    parser = ArgumentParser(
        usage=usage,
        formatter_class=HelpFormatter,  # jsonargparse's own adds Python's types to every line
        exit_on_error=False,
        allow_abbrev=False,
        default_env=False,
        print_config="--print_config",
    )
    parser.add_argument(
        "--config", action="config", metavar="FILE", help="YAML file of options; the command line wins."
    )
    for part in RunConfig.PARTS:
        group = parser.add_argument_group(str(part.__doc__))
        texts = field_docstrings(part)
        for field in dataclasses.fields(part):
            default = {} if field.default is dataclasses.MISSING else field.default
            tell_default = default not in (None, {}) and "Default" not in texts[field.name]
            choices = f"{{{','.join(_choices(field.name))}}}" if _choices(field.name) else ""
            group.add_argument(
                option_name(field.name),
                # with dict[str, object], jsonargparse would import each class_path in it: that is for the ranks
                type=dict if typing.get_origin(_TYPES[field.name]) is dict else _TYPES[field.name],
                default=default,
                metavar=choices or field.metadata.get("metavar") or _metavar(field.name),
                help=texts[field.name] + (f" Default: {str(default).lower()}." if tell_default else ""),
            )
    return parser


def _split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The files of --config, and the other arguments: dashes for underscores, pairs as one value."""
    files: list[str] = []
    rest: list[str] = []
    arguments = list(argv)
    while arguments:
        argument = arguments.pop(0)
        if not argument.startswith("--"):
            rest.append(argument)
            continue
        match = re.fullmatch(r"([^.=]*)(.*)", argument, re.DOTALL)
        assert match is not None
        option, tail = match[1].replace("_", "-"), match[2]
        if option == "--config":
            if not tail and (not arguments or arguments[0].startswith("--")):
                raise ConfigError("--config has no value: give a YAML file, for example --config run.yaml")
            files.append(tail.removeprefix("=") or arguments.pop(0))
        elif option in _PAIRS and not tail:
            pair: list[str] = []
            while arguments and len(pair) < 2 and not arguments[0].startswith("--") and "[" not in "".join(pair):
                pair += arguments.pop(0).split()
            rest.append(f"{option}={pair[0] if '[' in ''.join(pair) else '[' + ', '.join(pair) + ']'}")
        else:
            rest.append(("--print_config" if option == "--print-config" else option) + tail)
    return files, rest


def _check_known(arguments: Sequence[str]) -> None:
    known = ["--help", "--print_config", "--config", *map(option_name, _TYPES)]
    for argument in arguments:
        option = re.split(r"[.=]", argument, maxsplit=1)[0]
        if option == f"--{SLURM}":
            raise ConfigError(f"{argument.partition('=')[0]} is for jobs: give it to `flash-launch submit`")
        if argument.startswith("--") and option not in known:
            raise ConfigError(f"unknown option {option}{nearest(option, known)}")


def nearest(given: str, known: Sequence[str]) -> str:
    """The end of a message about an unknown name: what was meant, by another's word, a longer form or the spelling."""
    plain = {name.lstrip("-").replace("_", "-"): name for name in known}
    word = given.lstrip("-").replace("_", "-").lower()
    word = _OTHER_WORDS.get(word, word)
    longer = [name for name in plain if word in name] if len(word) > 2 else []
    close = [word] if word in plain else longer[:1] or difflib.get_close_matches(word, list(plain), n=1)
    return f": did you mean {plain[close[0]]}?" if close else ": see flash-launch --help for what there is"


def _yaml_problem(error: yaml.YAMLError) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"line {error.problem_mark.line + 1}: {error.problem}"
    return " ".join(str(error).split())


def _explain(message: str, source: str) -> str:
    """jsonargparse's message in our words: the option, what was given, what is possible."""
    if unknown := re.match(r"unrecognized arguments: (\S+)", message, re.IGNORECASE):
        return f"{source}unexpected argument {unknown[1]!r}: options begin with --, see flash-launch --help"
    if missing := re.match(r"argument (--[\w-]+).*: expected", message):
        name = missing[1][2:].replace("-", "_")
        return f"{source}{missing[1]} has no value: {_expected(name)}"
    key = re.match(r'Parser key "(\w+)"', message)
    if key is None or key[1] not in _TYPES:
        return source + " ".join(message.split())
    given = re.findall(r"(?:Got|Given) value: (.*)", message)
    name = key[1] if source else option_name(key[1])
    value = given[-1] if given else "a wrong value"
    if name in _PAIRS:  # as it was typed
        value = re.sub(r"[\[\],']", "", value) or "nothing"
    return f"{source}{name} was given {value}: {_expected(key[1])}"


def _expected(name: str) -> str:
    if choices := _choices(name):
        return f"it must be one of {', '.join(choices)}"
    members = _members(name)
    words: dict[object, str] = {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "a text",
        tuple[int, int]: "two whole numbers, for example 2 5",
        tuple[int, Literal["steps", "epochs", "minutes"]]: "a whole number and a unit, for example 500 steps, 1 epochs "
        "or 30 minutes",
        dict[str, object]: "a mapping, for example {key: value}",
    }
    return f"it must be {words[next(member for member in members if member is not type(None))]}"


def _members(name: str) -> tuple[object, ...]:
    """The types that an option may have; `Literal[...] | None` is a typing.Union, `int | None` is not."""
    hint = _TYPES[name]
    union = isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
    return typing.get_args(hint) if union else (hint,)


def _choices(name: str) -> tuple[str, ...]:
    found = [member for member in _members(name) if typing.get_origin(member) is Literal]
    return typing.get_args(found[0]) if found else ()


def _metavar(name: str) -> str:
    expected = _expected(name)
    return (
        "N" if "whole" in expected else "X" if "number" in expected else "true|false" if "true" in expected else "VALUE"
    )


def _read(file: str) -> str:
    try:
        return Path(file).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--config {file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"--config {file} is not a text file in UTF-8") from error


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
