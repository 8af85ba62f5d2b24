"""The conditions of a run: how many threads everyone gets, how fast the machine is, what is installed."""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from importlib import metadata
from typing import Any

import numba

from bench import memory
from fastconv import machine

_PACKAGES = (
    "fastconv",
    "numpy",
    "numba",
    "llvmlite",
    "scipy",
    "torch",
    "onnxruntime",
    "openvino",
    "jax",
    "jaxlib",
    "opencv-python",
    "opencv-python-headless",
)
_CALIBRATIONS = 3
_STEADY = 0.15


@dataclass(frozen=True)
class Environment:
    """What a run was measured on, and with.

    Attributes
    ----------
    machine
        The machine's limits, calibrated at the beginning of this run.
    reuses_freed_pages
        Whether the allocator was told to, see `bench.memory.keep_freed_pages`.
    """

    machine: machine.Machine
    reuses_freed_pages: bool

    def facts(self) -> dict[str, Any]:
        """Return everything that a reader of the figures may want to know, ready for JSON."""
        return {
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "system": platform.platform(),
            "python": platform.python_version(),
            "packages": _versions(),
            "blas": _blas(),
            "numba_threading_layer": _threading_layer(),
            "cpus": os.cpu_count(),
            "calibration": asdict(self.machine),
            "reuses_freed_pages": self.reuses_freed_pages,
        }

    def headline(self) -> str:
        """Return one line for a person: the processor, its threads and its limits."""
        limits = self.machine
        return (
            f"{limits.cpu}, {limits.threads} thread{'s' * (limits.threads > 1)}: peak "
            f"{limits.peak_flops / 1e9:.0f} GFLOP/s, memory {limits.bandwidth / 1e9:.0f} GB/s (calibrated in this run)"
        )

    def warnings(self, plans: bool = True) -> Iterator[str]:
        """Calibrate again, and yield what speaks against citing the run; `plans` if it shows predictions of plans."""
        now = _calibrate(self.machine.threads, self.machine.dtype)
        if moved := _differences(now, self.machine):
            yield f"The machine changed its speed during this run ({moved}): repeat it before citing it."
        if plans and (moved := _differences(machine.current(self.machine.threads, self.machine.dtype), self.machine)):
            yield f"The modelled times rest on an earlier calibration, which differs from this run's ({moved})."


def prepare(threads: int | None = None, dtype: str = "float32") -> Environment:
    """Give every library the same number of threads, set up the allocator and calibrate the machine."""
    from threadpoolctl import threadpool_limits

    reuses_freed_pages = memory.keep_freed_pages()
    count = threads or numba.get_num_threads()
    numba.set_num_threads(count)
    threadpool_limits(count)
    return Environment(_calibrate(count, dtype), reuses_freed_pages)


def best(runs: Sequence[machine.Machine]) -> machine.Machine:
    """Take the best of some calibrations: what else runs on the machine only ever lowers one."""
    peak, bandwidth = max(run.peak_flops for run in runs), max(run.bandwidth for run in runs)
    return replace(runs[0], peak_flops=peak, bandwidth=bandwidth)


def _calibrate(threads: int, dtype: str) -> machine.Machine:
    return best([machine.calibrate(threads, dtype) for _ in range(_CALIBRATIONS)])


def _differences(one: machine.Machine, other: machine.Machine) -> str:
    """Name the limits of one calibration that are not those of the other."""
    changes = {
        "peak": one.peak_flops / other.peak_flops - 1,
        "memory bandwidth": one.bandwidth / other.bandwidth - 1,
    }
    return ", ".join(f"{name} {change:+.0%}" for name, change in changes.items() if abs(change) > _STEADY)


def thread_count(text: str) -> int:
    """Parse ``--threads``: from 1 to the threads that Numba started with."""
    most = numba.config.NUMBA_NUM_THREADS
    if text.isdecimal() and 1 <= int(text) <= most:
        return int(text)
    raise argparse.ArgumentTypeError(f"takes 1 to {most}, got {text!r} (NUMBA_NUM_THREADS=N raises the limit)")


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _blas() -> list[str]:
    from threadpoolctl import threadpool_info

    pools = (pool for pool in threadpool_info() if pool["user_api"] == "blas")
    return [f"{pool['internal_api']} {pool['version']} ({pool['num_threads']} threads)" for pool in pools]


def _threading_layer() -> str | None:
    try:
        return numba.threading_layer()
    except ValueError:  # nothing ran in parallel yet
        return None
