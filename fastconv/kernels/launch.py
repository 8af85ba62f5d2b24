"""Runs a compiled kernel over its tasks, on one thread or on all of Numba's.

Each thread takes its own share of the tasks from a counter, neighbours in one run, so that what one pass leaves in a
core's caches the next finds there. Then it takes what is left of the others', so a thread that the operating system
stops does not hold them up. Which thread does a task never shows in the result: tasks write to disjoint places.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable
from typing import Any, cast

import numba
import numpy as np
from numba import prange, types
from numba.core.ccallback import CFunc

from fastconv.kernels import jit
from fastconv.kernels.params import CALL, FLAT, LINE, Buffer, address, fill, lend, record, take_back
from fastconv.kernels.simd import array_at, call_kernel, fetch_add, record_at


@jit.native(types.void(*[types.intp] * 3))
def _serial(entry, params, tasks):
    call_kernel(entry, params, 0, tasks, 0)


_SHARES = 8
"""Most shares of the tasks that are counted apart: their counters fill a cache line."""


@jit.native(types.void(types.intp))
def _clear(counters):
    array_at(counters, _SHARES, np.int64)[:] = 0


@jit.native(types.void(*[types.intp] * 6), parallel=True)
def _parallel(entry, params, counters, tasks, grain, threads):
    # The counters belong to the caller: an array made here would be freed before the loop, which sees its address only.
    shares = min(threads, _SHARES)
    for thread in prange(threads):
        for turn in range(shares):
            share = (thread + turn) % shares
            first, end = tasks * share // shares, tasks * (share + 1) // shares
            counter = counters + share * 8
            begin = first + fetch_add(counter, grain)
            while begin < end:
                call_kernel(entry, params, begin, min(begin + grain, end), thread)
                begin = first + fetch_add(counter, grain)


def _is_foreign() -> bool:
    """Whether Python did not start this thread: it may be one of Numba's, in a parallel loop of the caller's own."""
    return isinstance(threading.current_thread(), threading._DummyThread)


class _Pool:
    """Numba's thread pool, kept from the launches that it does not survive.

    Its "workqueue" aborts the process when two threads launch at once or one of its own launches again, and GNU OpenMP
    kills a forked child at its first launch. In these cases the work runs on the calling thread.
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

    def launch(self, entry: int, params: int, counter: int, tasks: int, grain: int, threads: int) -> bool:
        """Run the tasks on all threads and return True, or return False where that is not safe now."""
        if self._forked:
            return False
        if self._layer not in ("", "workqueue"):
            _parallel()(entry, params, counter, tasks, grain, threads)
            return True
        if _is_foreign() or not self._lock.acquire(blocking=False):
            return False
        try:
            _parallel()(entry, params, counter, tasks, grain, threads)
            self._layer = numba.threading_layer()
        finally:
            self._lock.release()
        return True


_pool = _Pool()


_SERIAL_FLOPS = 2_000_000
"""Work that one thread does about as fast as several threads are started: some 10 microseconds."""


@functools.cache
def _thread_counter() -> Callable[[], int]:
    """What tells the number of threads: Numba's own takes two locks first, 0.6 us, to see that its pool has started."""
    numba.get_num_threads()
    return getattr(numba.np.ufunc.parallel, "_get_num_threads", numba.get_num_threads)


def max_threads() -> int:
    """Threads that a launch from this Python thread may use (`numba.set_num_threads`)."""
    return _thread_counter()()


def threads_for(flops: int) -> int:
    """Threads to use for that much work."""
    return 1 if flops < _SERIAL_FLOPS else max_threads()


FLOPS_OF_BYTE = 4
"""Operations that take as long as moving a byte."""


def threads_for_bytes(count: int) -> int:
    """Threads to use where moving that many bytes is most of the work."""
    return threads_for(FLOPS_OF_BYTE * count)


def run(kernel: CFunc, params: np.ndarray, tasks: int, *, threads: int, grain: int = 1) -> None:
    """Run tasks 0 to `tasks` of a kernel on at most `threads` threads; `params` is its record."""
    if tasks <= 0:
        return
    threads = min(threads, -(-tasks // grain))
    entry, record = cast(int, kernel.address), params.ctypes.data
    if threads > 1:
        counter = np.zeros(_SHARES, np.int64)
        if _pool.launch(entry, record, address(counter), tasks, grain, threads):
            return
    _serial()(entry, record, tasks)


HEAD = 5 * LINE
"""Bytes before the threads' workspaces: the call's record, the tasks' counters, settings, a line of notes."""
COUNTER = 2 * LINE
SETTINGS = 3 * LINE


def spread(entry: int, record: int, tasks: int, threads: int, grain: int = 1) -> None:
    """Run the tasks of a kernel whose record lies at an address, with room for counters at their place behind it."""
    if threads > 1:
        _clear()(record + COUNTER)
    _spread(entry, record, tasks, threads, grain)


def _spread(entry: int, record: int, tasks: int, threads: int, grain: int = 1) -> None:
    if threads == 1 or not _pool.launch(entry, record, record + COUNTER, tasks, grain, threads):
        _serial()(entry, record, tasks)


@jit.inline
def forget(workspace, threads, apart):
    """Clear the notes before each thread's workspace, where a kernel says what it keeps there from task to task."""
    for thread in range(threads):
        array_at(workspace + thread * apart - LINE, 1, np.int64)[0] = 0


_LAUNCH = record("entry plan serial_tasks keeping apart")
"""What all calls of a launch have in common: the addresses of its kernel and of its plan's record, the tasks that the
calling thread does itself, how many workspaces are noted in, and the bytes from one to the next."""


def _call(common, end, source, other, start, target, buffer):
    # Taking the arrays themselves saves Python from asking each for its address, which takes 1.7 us an array.
    own = buffer.ctypes.data
    launch, call = record_at(common, _LAUNCH), record_at(own, CALL)
    call.plan = launch.plan
    call.relu, call.activation, call.failed = end
    call.source, call.other = source.ctypes.data, other.ctypes.data
    call.start, call.target = start.ctypes.data, target.ctypes.data
    call.workspace = own + HEAD
    forget(call.workspace, launch.keeping, launch.apart)
    array_at(own + COUNTER, _SHARES, np.int64)[:] = 0
    call_kernel(launch.entry, own, 0, launch.serial_tasks, 0)
    return own


NO_END = (0, 0, 0)
"""The end of sums that are stored as they are; else whether ReLU is applied, then the address of a compiled activation
and that of where it notes a failure."""


@functools.cache
def _caller(dtype: str) -> Any:
    """The compiled `_call` for arrays of one dtype, whatever their strides."""

    def array(rank: int) -> types.Array:
        return types.Array(numba.from_dtype(np.dtype(dtype)), rank, "A", readonly=True)

    end, buffer = types.UniTuple(types.intp, len(NO_END)), types.Array(types.uint8, 1, "C")
    return jit.native(types.intp(types.intp, end, array(4), array(4), array(1), array(4), buffer))(_call)()


GAP_BYTES = 1 << 16
"""Left free between the workspaces of two threads: a core asks beforehand for lines that lie so far after those that it
uses, and takes them from the core that writes there (docs/experiments.md)."""


Bound = Callable[[np.ndarray, np.ndarray, np.ndarray], None]
"""What does again and again for other operands and results what else is fixed."""


_Ready = tuple[Any, int, np.ndarray]
"""What calls a launch, the address of the record of what its calls have in common, and the record, kept alive."""


class Launch:
    """A kernel and the record of its plan, ready to be called with arrays.

    `source` is what windows are read from, `other` the second operand, `start` what sums begin with and `target` the
    result. They have four axes (`start` has one) and the kernel's dtype; a kernel need not use them all. One that
    `keeps` something in a thread's workspace from task to task notes that in the line before it, which begins as zeros.
    """

    __slots__ = (
        "_apart", "_bytes", "_compile", "_dtype", "_entry", "_own_bytes", "_ready", "grain", "keeps", "plan", "tasks",
        "threads", "workspace_bytes",
    )  # fmt: skip

    def __init__(
        self, compile_: Callable[[], CFunc], dtype: str, plan: np.ndarray, tasks: int, threads: int,
        workspace_bytes: int = 0, grain: int = 1, keeps: bool = False,
    ) -> None:  # fmt: skip
        self._compile = compile_
        self._dtype = dtype
        self.plan = plan
        self.tasks = tasks
        self.grain = grain
        self.threads = max(1, min(threads, -(-tasks // grain)))
        self._own_bytes = workspace_bytes
        if self.threads > 1 and workspace_bytes:
            plan["workspace_bytes"] = workspace_bytes = workspace_bytes + GAP_BYTES
        self.workspace_bytes = self.threads * workspace_bytes
        self.keeps = keeps
        self._apart = workspace_bytes
        self._entry = 0
        self._ready: _Ready | None = None
        self._bytes = HEAD + self.workspace_bytes

    @property
    def entry(self) -> int:
        """The address of the kernel, which is compiled now if it was not before."""
        if not self._entry:
            self._entry = cast(int, self._compile().address)
        return self._entry

    def on(self, threads: int) -> Launch:
        """The same launch on at most so many threads."""
        return Launch(
            self._compile, self._dtype, self.plan, self.tasks, threads, self._own_bytes, self.grain, self.keeps
        )

    def __call__(
        self, source: np.ndarray, other: np.ndarray, start: np.ndarray, target: np.ndarray,
        end: tuple[int, int, int] = NO_END,
    ) -> None:  # fmt: skip
        """Run all tasks; `end` is what happens to sums before they are stored (`NO_END`)."""
        ready = self._ready or self._made_ready()
        buffer = lend(self._bytes)
        try:
            own = ready[0](ready[1], end, source, other, start, target, buffer)
            if self.threads > 1:
                _spread(self.entry, own, self.tasks, self.threads, self.grain)
        finally:
            take_back(buffer)

    def bound(self, start: np.ndarray, end: tuple[int, int, int] = NO_END) -> Bound:
        """What calls this again and again with the same `start` and `end`, with little else to do."""
        if self.threads > 1:
            return lambda source, other, target: self(source, other, start, target, end)
        ready, size = self._ready or self._made_ready(), self._bytes
        call = ready[0]

        def run(source: np.ndarray, other: np.ndarray, target: np.ndarray) -> None:
            buffer = lend(size)
            try:
                call(ready[1], end, source, other, start, target, buffer)
            finally:
                take_back(buffer)

        return run

    def _made_ready(self) -> _Ready:
        """Compile the kernel, and put together what calls it; two threads may do so at once."""
        record = fill(
            _LAUNCH, entry=self.entry, plan=self.plan.ctypes.data, serial_tasks=self.tasks if self.threads == 1 else 0,
            keeping=self.threads if self.keeps else 0, apart=self._apart,
        )  # fmt: skip
        ready = self._ready = _caller(self._dtype), address(record.view(np.int64)), record
        return ready


NO_SETTINGS = (0.0,) * 6
"""The settings of a kernel that has none."""


def _call_flat(entry, tasks, block, first, second, third, fourth, settings, buffer):
    own = buffer.ctypes.data
    call = record_at(own, FLAT)
    call.first, call.second = first.ctypes.data, second.ctypes.data
    call.third, call.fourth = third.ctypes.data, fourth.ctypes.data
    call.count, call.block, call.settings = first.size, block, own + SETTINGS
    given = array_at(own + SETTINGS, len(settings), np.float64)
    for i in range(len(settings)):
        given[i] = settings[i]
    array_at(own + COUNTER, _SHARES, np.int64)[:] = 0
    call_kernel(entry, own, 0, tasks, 0)
    return own


@functools.cache
def _flat_caller(dtype: str) -> Any:
    """The compiled `_call_flat` for arrays of one dtype."""
    values = types.Array(numba.from_dtype(np.dtype(dtype)), 1, "C", readonly=True)
    settings, buffer = types.UniTuple(types.float64, len(NO_SETTINGS)), types.Array(types.uint8, 1, "C")
    return jit.native(types.intp(*[types.intp] * 3, *[values] * 4, settings, buffer))(_call_flat)()


_FLAT_BLOCK = 1 << 12
"""Values that a thread takes at a time."""


def run_flat(
    kernel: CFunc, dtype: str, first: np.ndarray, second: np.ndarray, third: np.ndarray, fourth: np.ndarray,
    settings: tuple[float, ...] = NO_SETTINGS,
) -> None:  # fmt: skip
    """Run a kernel that goes once through contiguous arrays of one size, a block of values as a task."""
    tasks = -(-first.size // _FLAT_BLOCK)
    if not tasks:
        return
    arrays = first.reshape(-1), second.reshape(-1), third.reshape(-1), fourth.reshape(-1)
    threads = min(threads_for_bytes(3 * first.nbytes), tasks)
    entry = cast(int, kernel.address)
    with Buffer(HEAD) as buffer:
        own = _flat_caller(dtype)(entry, tasks if threads == 1 else 0, _FLAT_BLOCK, *arrays, settings, buffer)
        if threads > 1:
            _spread(entry, own, tasks, threads)
