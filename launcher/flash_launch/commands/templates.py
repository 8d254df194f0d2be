"""The command `templates`: list the setups, or show one."""

import json
from collections.abc import Sequence

from flash_launch.console import usage
from flash_launch.errors import ConfigError
from flash_launch.setups import load_setup, setup_names

__all__ = ["main"]


def main(argv: Sequence[str]) -> int:
    """List the setups that --setup takes, or print one's template."""
    if any(argument in ("-h", "--help") for argument in argv):
        print(usage("templates"))
        return 0
    if len(argv) > 1 or any(argument.startswith("-") for argument in argv):
        raise ConfigError(
            f"templates was given {' '.join(argv)}: it takes at most one name, of {', '.join(setup_names())}"
        )
    if argv:
        print(json.dumps(load_setup(argv[0]).template, indent=2, default=dict))
        return 0
    for name in setup_names():
        setup = load_setup(name)
        print(f"{name:<16}{'DDP' if setup.engine == 'ddp' else f'DeepSpeed, ZeRO stage {setup.stage}'}")
    return 0
