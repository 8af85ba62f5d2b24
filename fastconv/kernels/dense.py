"""The fully connected layer for one x: every weight is read once, in order, so memory sets the time.

A task is a strip of units. Sums run over blocks of features, and the blocks are added after, so that a sum over
10^6 features keeps the rounding error of a few thousand terms.
"""

from __future__ import annotations

import functools

import numpy as np
from numba.core.ccallback import CFunc

from fastconv.kernels import jit
from fastconv.kernels.params import record
from fastconv.kernels.simd import record_at, tensor

DENSE = record("x w y start sums features units strip item")
"""`start` is what y begins with (the bias or zeros); `sums` has a strip for each thread."""

FEATURE_BLOCK = 1024


@functools.cache
def forward(dtype: str) -> CFunc:
    """Y = start + x @ w; a task is a strip of units."""
    REAL = np.dtype(dtype).type

    def dense_forward(address, begin, end, thread):
        p = record_at(address, DENSE)
        x = tensor(REAL, 1, p.x, (p.features,), (p.item,))
        y = tensor(REAL, 1, p.y, (p.units,), (p.item,))
        start = tensor(REAL, 1, p.start, (p.units,), (p.item,))
        sums = tensor(REAL, 1, p.sums + thread * p.strip * p.item, (p.strip,), (p.item,))
        for task in range(begin, end):
            first = task * p.strip
            width = min(p.strip, p.units - first)
            for u in range(width):
                y[first + u] = start[first + u]
            for block in range(0, p.features, FEATURE_BLOCK):
                stop = min(block + FEATURE_BLOCK, p.features)
                sums[:] = REAL(0)
                # Four features at a time: the sums then pass through the cache once for four weights.
                for f in range(block, stop - 3, 4):
                    place = p.w + (f * p.units + first) * p.item
                    w = tensor(REAL, 1, place, (4, p.units), (p.units * p.item, p.item))
                    x0, x1, x2, x3 = x[f], x[f + 1], x[f + 2], x[f + 3]
                    for u in range(width):
                        sums[u] += x0 * w[0, u] + x1 * w[1, u] + x2 * w[2, u] + x3 * w[3, u]
                for f in range(block + (stop - block) // 4 * 4, stop):
                    w1 = tensor(REAL, 1, p.w + (f * p.units + first) * p.item, (p.units,), (p.item,))
                    for u in range(width):
                        sums[u] += x[f] * w1[u]
                for u in range(width):
                    y[first + u] += sums[u]

    return jit.kernel(dense_forward)


CHANNEL_SUM = record("values sums blocks block n pixels channels values_n values_c values_pixel item")


@functools.cache
def channel_sum(dtype: str, unit: int) -> CFunc:
    """Sum over pixels for each channel, in float64; a task is a block of pixels with a row of sums of its own."""
    REAL = np.dtype(dtype).type
    UNIT = int(unit)

    def sum_channels(address, begin, end, thread):
        p = record_at(address, CHANNEL_SUM)
        shape = (p.n, p.pixels, p.channels)
        values = tensor(REAL, UNIT, p.values, shape, (p.values_n, p.values_pixel, p.values_c))
        sums = tensor(np.float64, 1, p.sums, (p.blocks, p.channels), (p.channels * 8, 8))
        for task in range(begin, end):
            sums[task, :] = 0.0
            first = task * p.block
            last = min(first + p.block, p.n * p.pixels)
            if UNIT:
                for pixel in range(first, last):
                    n, q = pixel // p.pixels, pixel % p.pixels
                    for c in range(p.channels):
                        sums[task, c] += values[n, q, c]
            else:
                for c in range(p.channels):
                    total = 0.0
                    for pixel in range(first, last):
                        total += values[pixel // p.pixels, pixel % p.pixels, c]
                    sums[task, c] = total

    return jit.kernel(sum_channels)
