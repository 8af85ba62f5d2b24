"""The fully connected layer for one x: every weight is read once, in order, so memory sets the time.

A task is a strip of units. Sums run over blocks of features, and the blocks are added after, so that a sum over
10^6 features keeps the rounding error of a few thousand terms.
"""

from __future__ import annotations

import functools

import numpy as np
from numba.core.ccallback import CFunc

from fastconv.kernels import jit, target
from fastconv.kernels.params import CALL, record
from fastconv.kernels.runs import sum_runs
from fastconv.kernels.simd import array_at, record_at, tensor

DENSE = record("features units strip workspace_bytes")
"""A thread's workspace holds the sums of a strip."""

FEATURE_BLOCK = 1024


@functools.cache
def forward(dtype: str) -> CFunc:
    """Y = start + x @ w; a task is a strip of units."""
    REAL = np.dtype(dtype).type
    ITEM = np.dtype(dtype).itemsize

    def dense_forward(address, begin, end, thread):
        call = record_at(address, CALL)
        p = record_at(call.plan, DENSE)
        x = tensor(REAL, 1, call.source, (p.features,), (ITEM,))
        y = tensor(REAL, 1, call.target, (p.units,), (ITEM,))
        start = tensor(REAL, 1, call.start, (p.units,), (ITEM,))
        sums = tensor(REAL, 1, call.workspace + thread * p.workspace_bytes, (p.strip,), (ITEM,))
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
                    place = call.other + (f * p.units + first) * ITEM
                    w = tensor(REAL, 1, place, (4, p.units), (p.units * ITEM, ITEM))
                    x0, x1, x2, x3 = x[f], x[f + 1], x[f + 2], x[f + 3]
                    for u in range(width):
                        sums[u] += x0 * w[0, u] + x1 * w[1, u] + x2 * w[2, u] + x3 * w[3, u]
                for f in range(block + (stop - block) // 4 * 4, stop):
                    w1 = tensor(REAL, 1, call.other + (f * p.units + first) * ITEM, (p.units,), (ITEM,))
                    for u in range(width):
                        sums[u] += x[f] * w1[u]
                for u in range(width):
                    y[first + u] += sums[u]

    return jit.kernel(dense_forward)


CHANNEL_SUM = record("block n pixels channels shared workspace_bytes")
"""`shared` neighbouring pixels of few channels are summed like one of many, in the workspace. The target has a row of
float64 for each task."""


@functools.cache
def channel_sum(dtype: str, side_by_side: int) -> CFunc:
    """Sum over pixels for each channel, in float64; a task is a block of pixels with a row of sums of its own."""
    REAL = np.dtype(dtype).type
    ITEM = np.dtype(dtype).itemsize
    VL = target.vector_bytes() // ITEM

    def sum_pixels(address, begin, end, thread):
        call = record_at(address, CALL)
        p = record_at(call.plan, CHANNEL_SUM)
        width = p.shared * p.channels
        place = call.workspace + thread * p.workspace_bytes
        wide = array_at(place, width, np.float64)
        for task in range(begin, end):
            sums = array_at(call.target + task * p.channels * 8, p.channels, np.float64)
            first = task * p.block
            last = min(first + p.block, p.n * p.pixels)
            rows = (last - first) // p.shared
            sum_runs(REAL, VL, rows, call.source + first * p.channels * ITEM, width * ITEM, width, place)
            sums[:] = 0.0
            for c in range(width):
                sums[c % p.channels] += wide[c]
            first += rows * p.shared
            rest = array_at(call.source + first * p.channels * ITEM, (last - first, p.channels), REAL)
            for pixel in range(last - first):
                for c in range(p.channels):
                    sums[c] += rest[pixel, c]

    def sum_planes(address, begin, end, thread):
        call = record_at(address, CALL)
        p = record_at(call.plan, CHANNEL_SUM)
        for task in range(begin, end):
            sums = array_at(call.target + task * p.channels * 8, p.channels, np.float64)
            first = task * p.block
            last = min(first + p.block, p.n * p.pixels)
            sums[:] = 0.0
            while first < last:
                image, pixel = first // p.pixels, first % p.pixels
                count = min(last - first, p.pixels - pixel)
                for c in range(p.channels):
                    place = call.source + ((image * p.channels + c) * p.pixels + pixel) * ITEM
                    values = array_at(place, count, REAL)
                    total = 0.0
                    for k in range(count):
                        total += values[k]
                    sums[c] += total
                first += count

    return jit.kernel(sum_pixels if side_by_side else sum_planes)
