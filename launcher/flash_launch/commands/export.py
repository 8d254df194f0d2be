"""The command `export`: write the weights of a checkpoint as one file that other tools load."""

from collections.abc import Sequence

from flash_launch.config import RunConfig
from flash_launch.console import say, usage
from flash_launch.errors import ConfigError
from flash_launch.exporting import HELP, find_export, read_export_options
from flash_launch.run_folder import RunFolder
from flash_launch.script.config import is_script

__all__ = ["main"]


def main(argv: Sequence[str]) -> int:
    """Write a checkpoint's weights as a file."""
    if not argv or any(argument in ("-h", "--help") for argument in argv):
        print(f"usage: {usage('export')}\n\n{HELP}")
        return 0
    options = read_export_options(argv)
    path = RunFolder(options.run).config_yaml
    if is_script(path):
        raise ConfigError(f"export was given {options.run}, the run of a script, which writes its own weights")
    config = RunConfig.from_yaml(path.read_text(encoding="utf-8"), str(path))
    say("checking the checkpoint")
    store, found = find_export(options)
    from flash_launch.checkpoint.export import export_weights  # imports torch

    manifest, target = found.manifest, options.target
    done = export_weights(store, manifest, config, target, lightning=options.lightning, dtype=options.dtype)
    for note in (*found.notes, *done.notes):
        say(note)
    size = f"{done.tensors:,} tensors, {done.bytes / 2**20:,.1f} MiB"
    say(f"wrote {target}: {size}, of {manifest.name} ({manifest.position}), phase {manifest.phase}")
    return 0
