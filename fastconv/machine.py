"""The machine's limits: the peak of its multiply-adds, and how fast bytes come from memory and from its last cache."""

from __future__ import annotations

import functools
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numba.core.registry import cpu_target

from fastconv.kernels import calibrate as kernels
from fastconv.kernels import launch
from fastconv.kernels.params import address, fill
from fastconv.kernels.target import tile, vector_bytes

_SECONDS = 0.15
"""Time to repeat a measurement for: another process seldom keeps a core for that long without a gap."""
_PEAK_STEPS = 1 << 14
_MEMORY_BYTES = 256 << 20
_CACHE_BYTES = 8 << 20
"""An array that the last cache level keeps, but no core's own caches."""
_STREAM_BLOCK = 1 << 14


@dataclass(frozen=True)
class Machine:
    """The limits of this machine for one dtype and number of threads.

    Attributes
    ----------
    cpu : str
        The CPU that Numba compiles for.
    threads : int
        Threads that the figures hold for, all together.
    dtype : str
        What the multiply-adds compute in.
    peak_flops : float
        Floating-point operations per second of register-tile multiply-adds whose operands stay in the first cache.
    bandwidth : float
        Bytes per second of reading an array much larger than a core's caches.
    vector_bytes : int
        Bytes of one vector register.
    cache_bandwidth : float
        Bytes per second of reading an array that the last cache level keeps: one thread's, times the threads.
    usual_share : float
        Share of `peak_flops` that half of the measurement's runs reached: other programs and the clock take the rest.
    """

    cpu: str
    threads: int
    dtype: str
    peak_flops: float
    bandwidth: float
    vector_bytes: int
    cache_bandwidth: float
    usual_share: float


def _seconds(work: Callable[[], None]) -> tuple[float, float]:
    """The shortest time of several runs, as interruptions only ever make one longer, and the median."""
    work()
    times: list[float] = []
    while sum(times) < _SECONDS:
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times), statistics.median(times)


def _peak(dtype: str, threads: int) -> tuple[float, float]:
    """The peak, and the share of it that half of the runs reach."""
    shape = tile(dtype, 1 << 20, 1 << 20)
    source, weights = np.zeros(1, dtype), np.zeros(shape.NR, dtype)
    table = np.array([address(source)] * shape.MR + [0, 0, _PEAK_STEPS], np.int64)
    starts = np.full(shape.MR, address(weights), np.int64)
    results = np.zeros((threads, shape.MR, shape.NR), dtype)
    targets = results.ctypes.data + np.arange(threads * shape.MR, dtype=np.int64) * shape.NR * source.itemsize
    params = fill(
        kernels.PEAK, table=address(table), weights=address(weights), starts=address(starts),
        targets=address(targets),
    )  # fmt: skip
    kernel = kernels.peak(dtype, shape)
    tasks = 4 * threads
    seconds, usual = _seconds(lambda: launch.run(kernel, params, tasks, threads=threads))
    return 2 * tasks * _PEAK_STEPS * shape.MR * shape.NR / seconds, seconds / usual


def _bandwidth(size: int, dtype: str, threads: int) -> float:
    """Bytes a second of reading an array of `size` bytes again and again."""
    values = np.zeros(size // np.dtype(dtype).itemsize, dtype)
    values.fill(1)  # else every page would be the one page of zeros
    sums = np.zeros((threads, 64), dtype)
    params = fill(kernels.STREAM, values=address(values), sums=address(sums), block=_STREAM_BLOCK, item=values.itemsize)
    kernel = kernels.stream(dtype)
    tasks = values.size // _STREAM_BLOCK
    seconds, _ = _seconds(lambda: launch.run(kernel, params, tasks, threads=threads, grain=4))
    return values.nbytes / seconds


def _resolve_threads(threads: int | None) -> int:
    available = launch.max_threads()
    if threads is None:
        return available
    if not 1 <= threads <= available:
        raise ValueError(f"threads must be between 1 and the {available} that numba may use now, got {threads}")
    return threads


def cpu_name() -> str:
    """The CPU that Numba compiles for."""
    return cpu_target.target_context.codegen().magic_tuple()[1]


def calibrate(threads: int | None = None, dtype: str = "float32") -> Machine:
    """Measure the machine now, in about two thirds of a second; nothing is read from or written to the disk cache."""
    threads = _resolve_threads(threads)
    peak, usual_share = _peak(dtype, threads)
    memory = _bandwidth(_MEMORY_BYTES, dtype, threads)
    # Several threads would measure how they wait for each other: in a call they read what they read in the one before.
    cache = max(memory, threads * _bandwidth(_CACHE_BYTES, dtype, 1))
    return Machine(cpu_name(), threads, dtype, peak, memory, vector_bytes(), cache, usual_share)


def cache_path() -> Path:
    """The file that keeps calibrations; FASTCONV_CACHE_DIR moves its folder."""
    if "FASTCONV_CACHE_DIR" in os.environ:
        return Path(os.environ["FASTCONV_CACHE_DIR"]) / "machine.json"
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "fastconv" / "machine.json"


def _read_cache() -> dict[str, dict[str, object]]:
    try:
        stored = json.loads(cache_path().read_text())
    except (OSError, ValueError):
        return {}
    return stored if isinstance(stored, dict) else {}


def _write_cache(stored: dict[str, dict[str, object]]) -> None:
    """Replace the cache file in one step; a disk that cannot be written only costs the next process a calibration."""
    path = cache_path()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".json", delete=False) as file:
            json.dump(stored, file, indent=1)
        os.replace(file.name, path)
    except OSError:
        return


def current(threads: int | None = None, dtype: str = "float32") -> Machine:
    """The machine's limits: from memory, else from the disk cache, else calibrated now and kept in both."""
    return _current(_resolve_threads(threads), dtype, cpu_name())


@functools.cache
def _current(threads: int, dtype: str, cpu: str) -> Machine:
    key = f"{cpu} {os.cpu_count()} cores {8 * vector_bytes()} bit {threads} threads {dtype}"
    try:
        return Machine(**_read_cache()[key])  # type: ignore[arg-type]
    except (KeyError, TypeError):
        machine = calibrate(threads, dtype)
        _write_cache(_read_cache() | {key: asdict(machine)})
        return machine
