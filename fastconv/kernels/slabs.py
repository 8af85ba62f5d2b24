"""The sum of partial gradients, in order: the same bits for any number of threads."""

from __future__ import annotations

import functools

import numpy as np
from numba.core.ccallback import CFunc

from fastconv.kernels import jit
from fastconv.kernels.params import CALL, record
from fastconv.kernels.simd import array_at, record_at

SLABS = record("slabs weights block")


@functools.cache
def add_slabs(dtype: str) -> CFunc:
    """Add partial gradients in order; a task is a block of weights."""
    REAL = np.dtype(dtype).type
    ITEM = np.dtype(dtype).itemsize

    def add_weights(address, begin, end, thread):
        call = record_at(address, CALL)
        p = record_at(call.plan, SLABS)
        for task in range(begin, end):
            first = task * p.block
            count = min(p.block, p.weights - first)
            total = array_at(call.target + first * ITEM, count, REAL)
            part = array_at(call.source + first * ITEM, count, REAL)
            for k in range(count):
                total[k] = part[k]
            for slab in range(1, p.slabs):
                part = array_at(call.source + (slab * p.weights + first) * ITEM, count, REAL)
                for k in range(count):
                    total[k] += part[k]

    return jit.kernel(add_weights)
