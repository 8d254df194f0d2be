"""Takes away, in every Python that finds this on its path, what Linux has and macOS has not.

Calls that no library needs are gone for all; /proc, /sys and prctl for our own code only, since the libraries here are
those for Linux. Processes are spawned and not forked, as is macOS's way.
"""

import builtins
import ctypes
import functools
import io
import multiprocessing
import os
import signal
import sys
from types import FrameType

_GONE = {
    os: (
        *("sched_getaffinity", "sched_setaffinity", "waitid", "P_PID", "P_PGID", "P_ALL", "WNOWAIT", "WEXITED"),
        *("CLD_EXITED", "CLD_KILLED", "CLD_DUMPED", "pidfd_open", "memfd_create", "eventfd", "pipe2", "splice"),
        *("posix_fadvise", "posix_fallocate", "fdatasync", "copy_file_range", "getrandom"),
    ),
    signal: ("sigwaitinfo", "sigtimedwait"),
}
for _module, _names in _GONE.items():
    for _name in _names:
        _module.__dict__.pop(_name, None)
_OURS = ("flash_launch", "flash_strategies")
multiprocessing.set_start_method("spawn")


def _asked_by_us() -> bool:
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and frame.f_code.co_filename.endswith(("pathlib.py", "sitecustomize.py")):
        frame = frame.f_back
    return frame is not None and any(
        f"/{one}/" in frame.f_code.co_filename for one in ("flash_launch", "flash_strategies")
    )


def _without_proc(function):
    @functools.wraps(function)
    def missing(path=".", *args, **kwargs):
        if isinstance(path, (str, os.PathLike)) and os.fspath(path).startswith(("/proc", "/sys")) and _asked_by_us():
            raise FileNotFoundError(2, "No such file or directory", os.fspath(path))
        return function(path, *args, **kwargs)

    return missing


builtins.open = io.open = _without_proc(open)
for _name in ("open", "stat", "lstat", "listdir", "scandir", "statvfs"):
    setattr(os, _name, _without_proc(getattr(os, _name)))

_function_of = ctypes.CDLL.__getattr__


def _without_prctl(self, name):
    if name == "prctl" and _asked_by_us():
        raise AttributeError(name)
    return _function_of(self, name)


ctypes.CDLL.__getattr__ = _without_prctl
