"""The command `plan`: show what would train when; start and write nothing."""

from collections.abc import Sequence

from flash_launch.launching import prepared, read_options

__all__ = ["main"]


def main(argv: Sequence[str]) -> int:
    """Run the preflight and print its phases."""
    config, placement = read_options(argv)
    preparation = prepared(config)
    ranks = placement.nodes * placement.procs_per_node
    print(f"{config.strategy} on {config.setup}, {ranks} rank{'s' * (ranks != 1)}, {config.max_epochs} epochs")
    for line in (*preparation.describe(), *preparation.messages):
        print(line)
    return 0
