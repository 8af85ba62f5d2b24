"""Memory: how much a call takes at its peak, how much there is, and keeping what was freed.

The peak is the high-water mark of the resident set. Linux keeps one for each process and resets it on request, so not
even a buffer that lives for a microsecond escapes it. Elsewhere a thread samples the resident set every millisecond
while the call runs, which needs a call that lets go of the interpreter's lock, as the kernels and BLAS do.

Pages that the allocator keeps for later are resident already and would hide what a call allocates. They go back to
the system before each measurement.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

_SAMPLE_SECONDS = 0.001
_RESET_REQUEST = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"
_STATUS = Path("/proc/self/status")

# mallopt(3): the parameters' numbers are part of glibc's ABI.
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4


def keep_freed_pages() -> bool:
    """Ask glibc to reuse freed memory, however large the block, and say whether it will.

    Otherwise every fresh output of more than a few megabytes is mapped anew and costs a page fault for each 4 KiB:
    78,000 of them in PyTorch's convolution of 16 to 32 channels on a megapixel. Contenders that allocate their
    results would be measured by their page faults.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return False
    return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, np.iinfo(np.int32).max))


def resident_bytes() -> int:
    """Return the resident set of this process, without what the allocator keeps for later."""
    import psutil

    if hasattr(psutil, "heap_trim"):
        psutil.heap_trim()
    return psutil.Process().memory_info().rss


def peak_bytes(call: Callable[[], Any]) -> int:
    """Return the highest resident set while `call` runs once."""
    resident_bytes()
    return _kept_peak(call) if _can_reset_peak() else _sampled_peak(call)


def available_bytes() -> int:
    """Return how much this process can still allocate without swapping, within its control group's limit."""
    import psutil

    available = psutil.virtual_memory().available
    limit, used = (_control_group(name) for name in ("memory.max", "memory.current"))
    return available if limit is None or used is None else min(available, limit - used)


def _can_reset_peak() -> bool:
    try:
        _RESET_REQUEST.write_text(_RESET_PEAK)
    except OSError:
        return False
    return True


def _kept_peak(call: Callable[[], Any]) -> int:
    _RESET_REQUEST.write_text(_RESET_PEAK)
    call()
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def _sampled_peak(call: Callable[[], Any]) -> int:
    import psutil

    process = psutil.Process()
    samples = [process.memory_info().rss]
    finished = threading.Event()

    def watch() -> None:
        while not finished.wait(_SAMPLE_SECONDS):
            samples.append(process.memory_info().rss)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        call()
    finally:
        samples.append(process.memory_info().rss)
        finished.set()
        watcher.join()
    return max(samples)


def _control_group(name: str) -> int | None:
    try:
        return int(Path("/sys/fs/cgroup", name).read_text())
    except (OSError, ValueError):  # no control group, or "max"
        return None
