"""The command `run`: finetune, as the options say; or go on, with --resume auto."""

from collections.abc import Sequence
from pathlib import Path

from flash_launch import __version__
from flash_launch.errors import ConfigError
from flash_launch.launching import go_on, read_options, start
from flash_launch.run_folder import RunFolder

__all__ = ["main"]


def main(argv: Sequence[str]) -> int:
    """Prepare, make the run folder, start the ranks, and tell how it ended."""
    if "--version" in argv:
        print(__version__)
        return 0
    config, placement = read_options(argv)
    if config.resume == "auto":
        if config.output_dir is None:
            raise ConfigError("--resume auto needs --output-dir: the folder of the run to start or to go on with")
        if RunFolder(Path(config.output_dir).absolute()).config_yaml.exists():
            return go_on(config, placement, Path(config.output_dir))
    return start(config, placement)
