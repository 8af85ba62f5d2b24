"""Partial results of equal shape, added up in fixed order: the same bits for any number of threads."""

from __future__ import annotations

import functools

import numpy as np
from numba import carray
from numba.core.ccallback import CFunc

from fastconv.kernels import jit
from fastconv.kernels.params import CALL, record
from fastconv.kernels.simd import pointer, record_at

SLABS = record("slabs values block")
"""So many slabs of so many values; a task adds a block of these."""


@functools.cache
def add_slabs(dtype: str) -> CFunc:
    """Add slabs in order; a task is a block of values."""
    REAL = np.dtype(dtype).type
    ITEM = np.dtype(dtype).itemsize

    def add_values(address, begin, end, thread):
        call = record_at(address, CALL)
        p = record_at(call.plan, SLABS)
        for task in range(begin, end):
            first = task * p.block
            count = min(p.block, p.values - first)
            total = carray(pointer(call.target + first * ITEM), count, REAL)
            part = carray(pointer(call.source + first * ITEM), count, REAL)
            for k in range(count):
                total[k] = part[k]
            for slab in range(1, p.slabs):
                part = carray(pointer(call.source + (slab * p.values + first) * ITEM), count, REAL)
                for k in range(count):
                    total[k] += part[k]

    return jit.kernel(add_values)
