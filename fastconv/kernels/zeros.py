"""Fills an array with zeros; a task is a block of its values."""

from __future__ import annotations

import functools

import numpy as np
from numba.core.ccallback import CFunc

from fastconv.kernels import jit
from fastconv.kernels.params import CALL, record
from fastconv.kernels.simd import array_at, record_at

ZEROS = record("count block")
"""Values of the target, and of a task."""


@functools.cache
def zeros(dtype: str) -> CFunc:
    """The kernel for one dtype."""
    REAL = np.dtype(dtype).type
    ITEM = np.dtype(dtype).itemsize

    def fill_zeros(address, begin, end, thread):
        call = record_at(address, CALL)
        p = record_at(call.plan, ZEROS)
        first, last = begin * p.block, min(end * p.block, p.count)
        array_at(call.target + first * ITEM, last - first, REAL)[:] = REAL(0)

    return jit.kernel(fill_zeros)
