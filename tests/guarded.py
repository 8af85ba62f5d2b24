"""Arrays between pages that fault when touched: a kernel that leaves an array by one byte ends the process.

Inside `guarded` NumPy takes the memory of every new array from here: operands, results, tables, packed weights and
workspaces. Each lies flush against a page without access, before it or behind it, and its pages go back at once when
it is freed, so that a kernel which still reads it faults too. The callbacks are Python's: a process that used this has
to end by `os._exit`, before the interpreter that they need is gone.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import math
import mmap
import random
import sys
from collections.abc import Iterator
from types import ModuleType

import numpy as np

from fastconv.kernels import params

AVAILABLE = sys.platform in ("linux", "darwin")
_PAGE = mmap.PAGESIZE
_NONE, _READ_WRITE = 0, mmap.PROT_READ | mmap.PROT_WRITE if AVAILABLE else 0
_FAILED = ctypes.c_void_p(-1).value
_CANARY = 0xA5
_NOT_A_NUMBER = 0xFF
"""What fresh memory is filled with, byte by byte: kernels must not count on the zeros of fresh pages."""
_MARKED_BYTES = 1 << 24
_SCALAR_BYTES = 8
"""NumPy makes scalars of this size by the million: their pages are used again instead of given back."""
_FAILING_BYTES = 64
"""Smallest allocation that `fail_at` counts: NumPy forgets to raise MemoryError for scalars of its own."""

_MALLOC = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
_CALLOC = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t)
_REALLOC = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
_FREE = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
_SET_HANDLER = 304
"""Index of PyDataMem_SetHandler in NumPy's table of C functions, fixed by its stable ABI."""


class _Handler(ctypes.Structure):
    """NumPy's PyDataMem_Handler, version 1 (NEP 49)."""

    _fields_ = (
        ("name", ctypes.c_char * 127),
        ("version", ctypes.c_uint8),
        ("ctx", ctypes.c_void_p),
        ("malloc", _MALLOC),
        ("calloc", _CALLOC),
        ("realloc", _REALLOC),
        ("free", _FREE),
    )


class Guard:
    """NumPy's allocator while it is installed."""

    def __init__(self) -> None:
        self._random = random.Random()
        self._blocks: dict[int, tuple[int, int, int]] = {}
        self._slack: list[tuple[np.ndarray, int]] = []
        self._scalars: list[int] = []
        self.fail_at = 0
        """The allocation of some size, counted from 1 on, that fails as if memory were used up; 0 for none."""
        self.allocations = 0
        libc = self._libc = ctypes.CDLL(None, use_errno=True)
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
        libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
        self._handler = _Handler(
            b"guarded", 1, None, _MALLOC(self._malloc), _CALLOC(self._calloc), _REALLOC(self._realloc),
            _FREE(self._free),
        )  # fmt: skip
        new_capsule = ctypes.pythonapi.PyCapsule_New
        new_capsule.restype = ctypes.py_object
        new_capsule.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
        self.capsule = new_capsule(ctypes.addressof(self._handler), b"mem_handler", None)

    def _malloc(self, _ctx, size: int) -> int | None:
        if size >= _FAILING_BYTES:
            self.allocations += 1
            if self.allocations == self.fail_at:
                return None
        if size == _SCALAR_BYTES and self._scalars:
            return self._scalars.pop()
        inside = max(-(-size // _PAGE), 1) * _PAGE
        total = inside + 2 * _PAGE
        base = self._libc.mmap(None, total, _NONE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
        if base == _FAILED:
            return None
        if self._libc.mprotect(base + _PAGE, inside, _READ_WRITE):
            self._libc.munmap(base, total)
            return None
        if inside <= _MARKED_BYTES:
            ctypes.memset(base + _PAGE, _NOT_A_NUMBER, inside)
        behind = self._random.random() < 0.75  # most slips are tails
        first = base + _PAGE + (inside - size if behind else 0)
        self._blocks[first] = base, total, size
        return first

    def _calloc(self, ctx, count: int, size: int) -> int | None:
        first = self._malloc(ctx, count * size)
        if first:
            ctypes.memset(first, 0, count * size)
        return first

    def _realloc(self, ctx, old: int | None, size: int) -> int | None:
        new = self._malloc(ctx, size)
        if old and new:
            ctypes.memmove(new, old, min(size, self._blocks[old][2]))
            self._free(ctx, old, 0)
        return new

    def _free(self, _ctx, first: int | None, _size: int) -> None:
        if not first:
            return
        base, total, size = self._blocks[first]
        if size == _SCALAR_BYTES:
            self._scalars.append(first)
            return
        del self._blocks[first]
        self._libc.munmap(base, total)

    def restart(self, seed: int) -> None:
        """Choose sides by this seed from now on, and count allocations from 0."""
        self._random.seed(seed)
        self._slack.clear()
        self.allocations = self.fail_at = 0

    def aligned(self, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        """Take `params.aligned`'s place: flush where the size is whole cache lines, else with a marked rest."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        memory = np.empty(-(-size // params.LINE) * params.LINE, np.uint8)
        memory[size:] = _CANARY
        self._slack.append((memory, size))
        return memory[:size].view(dtype).reshape(shape)

    def check(self) -> None:
        """Fail if a kernel wrote into the rest of a line behind an aligned array; call it after each problem."""
        for memory, size in self._slack:
            assert (memory[size:] == _CANARY).all(), f"bytes behind an array of {size} bytes were written"
        self._slack.clear()


def _install(capsule: object) -> object:
    """Give NumPy another allocator; return the one before."""
    table = ctypes.pythonapi.PyCapsule_GetPointer
    table.restype = ctypes.POINTER(ctypes.c_void_p)
    table.argtypes = [ctypes.py_object, ctypes.c_char_p]
    functions = table(np._core._multiarray_umath._ARRAY_API, None)
    set_handler = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.py_object)(functions[_SET_HANDLER])
    return set_handler(capsule)


@functools.cache
def _the_guard() -> Guard:
    """One for the process: arrays outlive the block that they were made in, and are freed through it."""
    return Guard()


@functools.lru_cache(maxsize=1)
def _users_of_aligned(_modules: int) -> list[ModuleType]:
    """Return the modules that took `params.aligned` by name; looked for again when more modules are imported."""
    ours = [module for name, module in sys.modules.items() if name.startswith("fastconv")]
    return [module for module in ours if getattr(module, "aligned", None) is params.aligned]


@contextlib.contextmanager
def guarded(seed: int) -> Iterator[Guard]:
    """Guard all arrays made inside, and lend every kernel a workspace of just its size."""
    guard = _the_guard()
    guard.restart(seed)
    plain, users = params.aligned, _users_of_aligned(len(sys.modules))
    kept = params._MOST_KEPT
    params._kept.clear()
    params._MOST_KEPT = 0
    for module in users:
        module.aligned = guard.aligned
    before = _install(guard.capsule)
    try:
        yield guard
    finally:
        _install(before)
        for module in users:
            module.aligned = plain
        params._MOST_KEPT = kept
