"""The command `script`: run any script on every rank, as torchrun does; or go on with it, with --resume auto."""

from collections.abc import Sequence

from flash_launch.console import usage
from flash_launch.launching import launch, located
from flash_launch.options import OutputOptions, RankOptions, WandbOptions, field_docstrings, option_name
from flash_launch.script.command_line import leading_options, parse_script
from flash_launch.script.config import OPTIONS

__all__ = ["main"]

_INTRO = """Runs `python train.py ARGUMENTS` or `python -m package.module ARGUMENTS` on every rank. The environment is
torchrun's (RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR, ...), and WANDB_RUN_ID where W&B is on. What follows the script
is the script's.
A script that looks at flash_strategies.run_session.stop_requested(), saves and ends with exit code 75 can be stopped
and resumed: docs/script.md shows the lines."""


def main(argv: Sequence[str]) -> int:
    """Check the script, make the run folder, start the ranks, and tell how it ended."""
    options, rest = leading_options(argv)
    if not argv or any(option in ("-h", "--help") for option in options):
        print(f"usage: {usage('script')}\n\n{_INTRO}\n\n{_describe_options()}")
        return 0
    return launch(*located(parse_script(options, rest), options))


def _describe_options() -> str:
    texts = {
        name: text
        for part in (RankOptions, OutputOptions, WandbOptions)
        for name, text in field_docstrings(part).items()
    }
    lines = [f"  {option_name(name):<20}{' '.join(texts[name].split())}" for name in OPTIONS]
    config = "  --config            YAML file of these options; the command line wins."
    return "\n".join(["options, before the script:", config, *lines])
