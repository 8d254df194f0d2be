"""ScriptConfig: what `flash-launch script` was asked to start, and the config.yaml that keeps it."""

import dataclasses
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml

from flash_launch.config import RunConfig
from flash_launch.errors import ConfigError
from flash_launch.options import RankOptions, WandbOptions, option_name
from flash_launch.run_folder import RunFolder

__all__ = ["OPTIONS", "AnyConfig", "ScriptConfig", "describes_script", "is_script", "read_config"]

OPTIONS = (
    *(field.name for field in dataclasses.fields(RankOptions)),
    *("output_dir", "resume"),
    *(field.name for field in dataclasses.fields(WandbOptions) if field.name != "wandb_artifact"),
)
"""The options of a run that a script has, too."""


@dataclass(frozen=True)
class ScriptConfig(WandbOptions, RankOptions):
    """A script, its arguments, and the options of its ranks."""

    script: str = ""
    """Path of the file, as it was given; empty: `module` is run."""
    module: str = ""
    """The module, as python -m takes it."""
    arguments: tuple[str, ...] = ()
    """What follows the script or module."""
    directory: str = ""
    """Absolute path of the folder that the command was given in, where the script runs."""
    output_dir: str | None = None
    """Run folder."""
    resume: Literal["never", "auto"] = "never"
    """auto: go on with the run in --output-dir, if there is one."""

    user_code = True

    @property
    def name(self) -> str:
        """What it is called in the names of folders and jobs."""
        return Path(self.script).stem if self.script else self.module

    @property
    def command(self) -> str:
        """The script and its arguments, as a shell takes them."""
        return shlex.join([*(("-m", self.module) if self.module else (self.script,)), *self.arguments])

    @property
    def worker(self) -> tuple[str, ...]:
        """What each rank runs, as arguments of `python -m flash_launch.rank_guard`."""
        what = ("-m", self.module) if self.module else (self.script,)
        return ("--script", self.directory, *what, *self.arguments)

    def replace(self, **changes: object) -> "ScriptConfig":
        """A copy with other values in some fields."""
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]

    def placed(self, nodes: int, procs_per_node: int, accelerator: str) -> "ScriptConfig":
        """A copy that says where it runs."""
        return self.replace(nodes=nodes, procs_per_node=procs_per_node, accelerator=accelerator)

    def check(self) -> None:
        """Nothing: `check_program` has looked at the script."""

    def option_arguments(self) -> list[str]:
        """The options as a command line that gives them again."""
        values = {name: getattr(self, name) for name in OPTIONS}
        return [f"{option_name(name)}={value}" for name, value in values.items() if value is not None]

    def to_yaml(self) -> str:
        """This configuration as YAML, a key per field."""
        values = {"script": self.script} if self.script else {"module": self.module}
        options = {name: getattr(self, name) for name in OPTIONS}
        more = {"arguments": list(self.arguments), "directory": self.directory}
        return yaml.safe_dump({**values, **more, **options}, sort_keys=False, allow_unicode=True)

    @classmethod
    def from_yaml(cls, text: str, source: str) -> "ScriptConfig":
        """The configuration in a run folder.

        Raises:
            ConfigError: it is none. `source` begins the message.
        """
        try:
            read = yaml.safe_load(text)
            values = dict(read) if isinstance(read, dict) else {}
            what = {name: str(values.pop(name, "") or "") for name in ("script", "module", "directory")}
            arguments = values.pop("arguments", [])
            if not isinstance(arguments, list) or bool(what["script"]) == bool(what["module"]):
                raise ValueError("it needs a script or a module, and a list of arguments")
            if unknown := [name for name in values if name not in OPTIONS]:
                raise ValueError(f"unknown key {unknown[0]!r}")
        except (yaml.YAMLError, ValueError) as error:
            why = " ".join(str(error).split())
            raise ConfigError(f"{source} is not what `flash-launch script` wrote: {why}") from error
        shared = RunConfig.from_yaml(yaml.safe_dump(values), source)
        return cls.of(shared, **what, arguments=tuple(map(str, arguments)))

    @classmethod
    def of(
        cls,
        shared: RunConfig,
        *,
        script: str = "",
        module: str = "",
        arguments: Sequence[str] = (),
        directory: str | None = None,
    ) -> "ScriptConfig":
        """From the options that runs and scripts share, as they were read and checked for a run."""
        options: Mapping[str, object] = {name: getattr(shared, name) for name in OPTIONS}
        where = os.getcwd() if directory is None else directory
        what = {"script": script, "module": module, "arguments": tuple(arguments), "directory": where}
        return cls(**what, **options)  # type: ignore[arg-type]


AnyConfig = RunConfig | ScriptConfig
"""What a run folder's config.yaml holds."""


def read_config(folder: RunFolder) -> AnyConfig:
    """The configuration of the run in a folder.

    Raises:
        ConfigError: it is none.
    """
    kind = ScriptConfig if is_script(folder.config_yaml) else RunConfig
    return kind.from_yaml(folder.config_yaml.read_text(encoding="utf-8"), str(folder.config_yaml))


def is_script(config_yaml: Path) -> bool:
    """Whether a run folder's config.yaml is that of a script."""
    try:
        read = yaml.safe_load(config_yaml.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return False
    return describes_script(read)


def describes_script(values: object) -> bool:
    """Whether what a config.yaml holds is of a script, and not of flash-launch's own training."""
    return isinstance(values, Mapping) and ("script" in values or "module" in values)
