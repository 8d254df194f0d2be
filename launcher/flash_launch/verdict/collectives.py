"""Which collective a rank waits in, and from which line: read from tracebacks and from faulthandler's stacks."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from flash_launch.verdict.facts import RankEnd

__all__ = ["Waiting", "doing", "waiting_in"]


@dataclass(frozen=True)
class Waiting:
    """Where a rank waits for others."""

    collective: str
    """all_reduce, barrier, ..."""
    line: str = ""
    """The line of code that called it: "train.py:40 in training_step"."""

    def __str__(self) -> str:
        """As it stands in a sentence."""
        return f"{self.collective} ({self.line})" if self.line else self.collective


_FRAME = re.compile(r'File "(?P<path>[^"]*)", line (?P<line>\d+) in (?P<name>.+)')
_THREAD = re.compile(r"(?m)^(?=(?:Current thread|Thread) 0x)")
_LIBRARY = re.compile(r"site-packages|dist-packages|/lib/python3|<frozen|^<")
_OURS = re.compile(r"/flash_(launch|strategies)/")
_PRIVATE = re.compile(r"/flash_launch/(progress|rank_guard|telling|worker)\.py")
_OPERATIONS = {"ALLREDUCE": "all_reduce", "ALLGATHER": "all_gather", "REDUCE_SCATTER": "reduce_scatter"}


def waiting_in(end: RankEnd) -> Waiting | None:
    """The collective that a rank waits in, or gave up in; None: in none that can be told."""
    if told := re.search(
        r"at ([^,]{3,60}), (?:ranks? [\d, ]+ did not (?:come|answer)|not all ranks came)", end.error or ""
    ):
        return Waiting(f"the agreement at {told[1]}")
    frames = _frames_of(end)
    if (found := _collective(frames)) is not None:
        return found
    if told := re.search(r"OpType=(\w+)", end.log_tail if end.error is None else end.error):
        return Waiting(_OPERATIONS.get(told[1], told[1].lower()), _caller(frames))
    return None


def doing(end: RankEnd) -> str:
    """The line a rank is at, most of all the user's own; empty where nothing can be told."""
    return _line(_frames_of(end))


def _frames_of(end: RankEnd) -> list[tuple[str, int, str]]:
    """(path, line, function), outermost first: where it failed, else where its main thread was when it was asked."""
    if end.frames:
        return _parse(end.frames)
    text = end.stack or end.log_tail.rpartition("Fatal Python error: ")[2]
    blocks = [block for block in _THREAD.split(text) if "File " in block]
    # faulthandler lists the newest thread first, so the main one last; it may have answered more than once
    return _parse(blocks[-1].splitlines())[::-1] if blocks else []


def _parse(lines: Sequence[str]) -> list[tuple[str, int, str]]:
    return [
        (found["path"], int(found["line"]), found["name"].strip()) for line in lines if (found := _FRAME.search(line))
    ]


def _collective(frames: list[tuple[str, int, str]]) -> Waiting | None:
    for at, (path, _, name) in enumerate(frames):
        if re.search(r"torch/distributed/(distributed_c10d|rendezvous)\.py$", path):
            return Waiting(name, _caller(frames[:at]))
        backward = re.search(r"torch/autograd/", path) and name in ("_engine_run_backward", "backward")
        # a frame of the user's own below it is a backward or a hook of theirs, which waits for nobody
        if backward and all(_LIBRARY.search(frame[0]) for frame in frames[at + 1 :]):
            return Waiting("the gradients' all_reduce in backward", _caller(frames[:at]))
        if path.endswith("torch/nn/parallel/distributed.py") and name in ("_pre_forward", "_sync_buffers"):
            return Waiting("the broadcast of buffers before the forward pass", _caller(frames[:at]))
        if re.search(r"torch/distributed/elastic/utils/store\.py$", path):
            return Waiting("the rendezvous of agents", _caller(frames[:at]))
    return None


def _caller(frames: list[tuple[str, int, str]]) -> str:
    """Who called a collective; a line of a library says nothing to anybody."""
    return _line([frame for frame in frames if not _LIBRARY.search(frame[0])])


def _line(frames: list[tuple[str, int, str]]) -> str:
    """The innermost line of the user's, else of ours, else of all."""
    shown = [frame for frame in frames if not _PRIVATE.search(frame[0])]
    own = [frame for frame in shown if not _LIBRARY.search(frame[0]) and not _OURS.search(frame[0])]
    ours = [frame for frame in shown if _OURS.search(frame[0])]
    for choice in (own, ours, shown):
        if choice:
            path, line, name = choice[-1]
            return f"{path.rpartition('/')[2]}:{line} in {name}"
    return ""
