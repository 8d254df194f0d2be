"""Peak memory of a stretch of code: resident memory on Linux, allocated memory on CUDA."""

from __future__ import annotations

import ctypes
import gc
from pathlib import Path

import torch

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_SMALLEST_MAPPED = 1 << 18


def return_freed_memory() -> None:
    """Make malloc map every buffer of 256 KiB or more by itself, so that freeing it shows at once.

    Costs time (each such buffer is faulted in anew), so it comes after whatever is timed in the process.
    """
    libc = ctypes.CDLL(None)
    libc.mallopt(_M_MMAP_THRESHOLD, _SMALLEST_MAPPED)
    libc.mallopt(_M_TRIM_THRESHOLD, _SMALLEST_MAPPED)


class PeakMemory:
    """Bytes above a starting point: `begin`, then `peak` as often as wanted."""

    def __init__(self, device: torch.device) -> None:
        """Choose how to measure: the allocator's peak on CUDA, else the kernel's high-water mark of the process."""
        self._cuda = device.type == "cuda"
        self._before = 0

    def begin(self) -> None:
        """Free what is garbage, and take the present use as the starting point."""
        gc.collect()
        if self._cuda:
            torch.cuda.synchronize()
            self._before = torch.cuda.memory_allocated()
        else:
            ctypes.CDLL(None).malloc_trim(0)
            self._before = _status("VmRSS")
        self.restart()

    def restart(self) -> None:
        """Forget the peak so far, keep the starting point."""
        if self._cuda:
            torch.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5")  # proc(5): sets the high-water mark to the present use

    def peak(self) -> int:
        """Greatest use since `begin` or `restart`, above the starting point, in bytes."""
        if self._cuda:
            torch.cuda.synchronize()
            return torch.cuda.max_memory_allocated() - self._before
        return _status("VmHWM") - self._before

    def now(self) -> int:
        """Present use above the starting point, in bytes."""
        return (torch.cuda.memory_allocated() if self._cuda else _status("VmRSS")) - self._before


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {key}; peak memory can be measured on Linux or CUDA only")
