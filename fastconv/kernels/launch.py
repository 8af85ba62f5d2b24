"""Runs a compiled kernel over its tasks, on one thread or on all of Numba's.

Threads take tasks from a shared counter, so a thread that the operating system stops does not hold up the others.
Which thread does a task never shows in the result: tasks write to disjoint places.
"""

from __future__ import annotations

import os
import threading
from typing import cast

import numba
import numpy as np
from numba import prange, types
from numba.core.ccallback import CFunc

from fastconv.kernels import jit
from fastconv.kernels.params import address, scratch
from fastconv.kernels.simd import call_kernel, fetch_add


@jit.native(types.void(*[types.intp] * 3))
def _serial(entry, params, tasks):
    call_kernel(entry, params, 0, tasks, 0)


@jit.native(types.void(*[types.intp] * 6), parallel=True)
def _parallel(entry, params, counter, tasks, grain, threads):
    # The counter belongs to the caller: an array made here would be freed before the loop, which sees its address only.
    for thread in prange(threads):
        begin = fetch_add(counter, grain)
        while begin < tasks:
            call_kernel(entry, params, begin, min(begin + grain, tasks), thread)
            begin = fetch_add(counter, grain)


class _Pool:
    """Numba's thread pool, kept from the two launches that it does not survive.

    Its "workqueue" aborts the process when two threads launch at once, and GNU OpenMP kills a forked child at its
    first launch. In both cases the work runs on the calling thread.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._layer = ""
        self._forked = False
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._after_fork)

    def _after_fork(self) -> None:
        self._lock = threading.Lock()
        try:
            numba.threading_layer()
            self._forked = True
        except ValueError:  # nobody has launched yet
            pass

    def launch(self, entry: int, params: int, tasks: int, grain: int, threads: int) -> bool:
        """Run the tasks on all threads and return True, or return False where that is not safe now."""
        if self._forked:
            return False
        if self._layer not in ("", "workqueue"):
            self._launch(entry, params, tasks, grain, threads)
            return True
        if not self._lock.acquire(blocking=False):
            return False
        try:
            self._launch(entry, params, tasks, grain, threads)
            self._layer = numba.threading_layer()
        finally:
            self._lock.release()
        return True

    @staticmethod
    def _launch(entry: int, params: int, tasks: int, grain: int, threads: int) -> None:
        counter = np.zeros(1, np.int64)
        _parallel()(entry, params, address(counter), tasks, grain, threads)


_pool = _Pool()


_SERIAL_FLOPS = 1_000_000
"""Work that one thread does about as fast as several threads are started: some 10 microseconds."""


def max_threads() -> int:
    """Threads that a launch from this Python thread may use (`numba.set_num_threads`)."""
    return numba.get_num_threads()


def threads_for(flops: int) -> int:
    """Threads to use for that much work."""
    return 1 if flops < _SERIAL_FLOPS else max_threads()


def run(kernel: CFunc, params: np.ndarray, tasks: int, *, threads: int, grain: int = 1) -> None:
    """Run tasks 0 to `tasks` of a kernel on at most `threads` threads; `params` is its record."""
    if tasks <= 0:
        return
    threads = min(threads, -(-tasks // grain))
    entry, record = cast(int, kernel.address), params.ctypes.data
    if threads > 1 and _pool.launch(entry, record, tasks, grain, threads):
        return
    _serial()(entry, record, tasks)


def run_template(kernel: CFunc, template: np.ndarray, tasks: int, *, threads: int, **fields: int) -> None:
    """Run a planned launch: a record but for the `fields` of this call, and a workspace for each thread."""
    params = template.copy()
    for name, value in fields.items():
        params[name] = value
    with scratch("workspace", (threads, int(params["workspace_bytes"][0])), "uint8") as own:
        params["workspace"] = address(own)
        run(kernel, params, tasks, threads=threads)
