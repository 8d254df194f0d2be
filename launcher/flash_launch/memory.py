"""Peak memory of a rank over a stretch of time: of the GPU where there is one, else of the process."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import torch

_CLEAR = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")


def reset_peak() -> None:
    """Begin anew; where the kernel does not let a process reset its peak, the old one stays."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return
    try:
        _CLEAR.write_text("5")  # proc(5): resets VmHWM to the present resident size
    except OSError:
        return


def peak_bytes() -> int:
    """Bytes at the peak since `reset_peak`: allocated on the GPU, else resident in the process."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    try:
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:  # not Linux: the peak since the process began
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
