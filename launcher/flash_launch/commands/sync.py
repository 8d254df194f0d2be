"""The command `sync`: upload what runs recorded offline to Weights & Biases."""

import os
from collections.abc import Sequence
from pathlib import Path

from flash_launch.console import say, usage
from flash_launch.errors import ConfigError
from flash_launch.tracking.syncing import SyncError, check_server, find_waiting, run_folders, upload

__all__ = ["main"]

_HELP = """RUN is a run folder, or a folder of run folders, such as that of a sweep. What was recorded there without a
network, by one attempt or several, is uploaded as one run each, with wandb's own `wandb sync`; what was uploaded
already is left out. It needs a key: WANDB_API_KEY, or `wandb login`."""


def main(argv: Sequence[str]) -> int:
    """Upload all that waits."""
    if not argv or any(argument in ("-h", "--help") for argument in argv):
        print(f"usage: {usage('sync')}\n\n{_HELP}")
        return 0
    if options := [argument for argument in argv if argument.startswith("-")]:
        raise ConfigError(f"sync has no option {options[0]}: it takes run folders, flash-launch sync RUN ...")
    folders = [folder for path in argv for folder in run_folders(Path(path))]
    waiting = find_waiting(folders)
    if not waiting:
        say("everything is uploaded already")
        return 0
    try:
        host = check_server(os.environ)
        say(f"uploading {len(waiting)} recording{'s' * (len(waiting) != 1)} to {host}")
        for one in waiting:
            done = upload(one, os.environ)
            cut = "" if done.whole else " as far as it goes (the attempt was killed, or is still running)"
            url = f", {done.url}" if done.url else ""
            say(f"{os.path.relpath(one.folder.path)}: {one.number} of {one.of} uploaded{cut}{url}")
    except SyncError as error:
        say(f"error: {error}", error=True)
        return 1
    return 0
