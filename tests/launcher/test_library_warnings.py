"""Warnings of libraries reach the user, once, unless this design answers them."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import logging, sys, warnings
from flash_launch.library_warnings import show_library_warnings

show_library_warnings(int(sys.argv[1]))
def say(text, module, category=UserWarning):
    warnings.warn_explicit(text, category, f"/site-packages/{module}.py", 7, module=module)
for _ in range(2):
    with warnings.catch_warnings():  # as libraries do; Python forgets what it has shown
        warnings.simplefilter("default")
    say("the batch size is ambiguous", "pytorch_lightning.utilities.data")
    say("You are losing gradients", "torch.autograd")
    say("my own", "my_task")
    say("It is recommended to use `self.log('x', ..., sync_dist=True)` when logging on epoch level in distributed", "m")
    say("`torch.distributed.all_gather_into_tensor` is deprecated", "torch.distributed.c10d_logger", FutureWarning)
handler = logging.StreamHandler(sys.stderr)
logging.getLogger("DeepSpeed").addHandler(handler)
logging.getLogger("DeepSpeed").warning("**** You are using ZeRO with an untested optimizer, proceed with caution")
logging.getLogger("DeepSpeed").warning("pinned memory is short")
"""


def shown(rank: int) -> str:
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(rank)], capture_output=True, text=True, check=True)
    return done.stderr


def test_rank_0_shows_each_once() -> None:
    text = shown(0)
    for message in ("the batch size is ambiguous", "You are losing gradients", "my own"):
        assert text.count(message) == 1, message
    assert "pinned memory is short" in text
    for message in ("sync_dist", "all_gather_into_tensor", "untested optimizer"):
        assert message not in text


def test_other_ranks_show_those_of_the_users_code() -> None:
    text = shown(1)
    assert "my own" in text
    for message in ("ambiguous", "losing gradients", "pinned memory"):
        assert message not in text
