"""The command `sync`: upload what runs recorded offline to Weights & Biases."""

import os
from collections.abc import Sequence
from pathlib import Path

from flash_launch.console import say, usage
from flash_launch.errors import ConfigError
from flash_launch.history import State, read_history
from flash_launch.run_folder import RunFolder
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
    running = {folder.path for folder in folders if _runs(folder)}
    for path in sorted({one.folder.path for one in waiting} & running):
        say(f"{os.path.relpath(path)}: it is running; what it records now can be uploaded when it has ended")
    waiting = [one for one in waiting if one.number < one.of or one.folder.path not in running]
    if not waiting:
        say("everything is uploaded already")
        return 0
    try:
        host = check_server(os.environ)
    except SyncError as error:
        say(f"error: {error}", error=True)
        return 1
    say(f"uploading {len(waiting)} recording{'s' * (len(waiting) != 1)} to {host}")
    failed: set[Path] = set()
    for one in waiting:
        if one.folder.path in failed:  # its recordings belong in their order
            continue
        try:
            done = upload(one, os.environ)
        except SyncError as error:
            say(f"error: {error}", error=True)
            failed.add(one.folder.path)
            continue
        cut = "" if done.whole else " as far as it goes (the attempt was killed)"
        url = f", {done.url}" if done.url else ""
        say(f"{os.path.relpath(one.folder.path)}: {one.number} of {one.of} uploaded{cut}{url}")
    return 1 if failed else 0


def _runs(folder: RunFolder) -> bool:
    stories = read_history(folder)
    return bool(stories) and stories[-1].state is State.RUNNING
