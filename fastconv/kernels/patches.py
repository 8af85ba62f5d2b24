"""The patch matrix of im2col and its transpose: one row for each output pixel, one column for each weight.

Columns follow the order of the weights in memory, (a, b, c) for NHWC and (c, a, b) for NCHW, so that the weights enter
the matrix product as they lie. Both are `outer` x kh x kw x `inner` with the channels in one of the two.
"""

from __future__ import annotations

import functools

import numpy as np
from numba.core.ccallback import CFunc

from fastconv.kernels import jit
from fastconv.kernels.params import record
from fastconv.kernels.simd import record_at, tensor
from fastconv.kernels.spans import end_inside, first_inside

PATCHES = record("""
    x x_outer x_i x_j patches first last ih iw oh ow kh kw outer inner
    stride_i stride_j pad_i pad_j dilation_i dilation_j
""")
"""The rows of the matrix are the output pixels `first` to `last` of the one image at `x`. Strides are in bytes; the
`inner` values of a pixel lie side by side."""


@functools.cache
def unfold(dtype: str) -> CFunc:
    """Fill the patch matrix; a task is one of its rows."""
    REAL = np.dtype(dtype).type
    ITEM = np.dtype(dtype).itemsize

    def unfold_rows(address, begin, end, thread):
        p = record_at(address, PATCHES)
        kh, kw, inner = p.kh, p.kw, p.inner
        # Taps that touch lie side by side like their channels, and are copied in one piece.
        touching = p.dilation_j == 1 and p.x_j == inner * ITEM
        for task in range(begin, end):
            i, j = (p.first + task) // p.ow, (p.first + task) % p.ow
            left = j * p.stride_j - p.pad_j
            b0 = first_inside(left, p.dilation_j)
            b1 = max(end_inside(left, p.dilation_j, p.iw, kw), min(b0, kw))
            b0 = min(b0, kw)
            place = p.patches + task * p.outer * kh * kw * inner * ITEM
            for c in range(p.outer):
                for a in range(kh):
                    line = place
                    patch = tensor(REAL, 1, line, (kw * inner,), (ITEM,))
                    place += kw * inner * ITEM
                    row = i * p.stride_i + a * p.dilation_i - p.pad_i
                    if row < 0 or row >= p.ih:
                        patch[:] = REAL(0)
                        continue
                    source = p.x + c * p.x_outer + row * p.x_i + left * p.x_j
                    for q in range(b0 * inner):
                        patch[q] = REAL(0)
                    for q in range(b1 * inner, kw * inner):
                        patch[q] = REAL(0)
                    # Taps that touch are one run. Indices count from 0: else loops are not vectorised.
                    together = max(1, b1 - b0) if touching else 1
                    count = together * inner
                    for b in range(b0, b1, together):
                        values = tensor(REAL, 1, source + b * p.dilation_j * p.x_j, (count,), (ITEM,))
                        copied = tensor(REAL, 1, line + b * inner * ITEM, (count,), (ITEM,))
                        for q in range(count):
                            copied[q] = values[q]

    return jit.kernel(unfold_rows)


@functools.cache
def fold(dtype: str) -> CFunc:
    """Add a patch matrix back to the pixels it was read from; a task is one input row, so no two threads meet."""
    REAL = np.dtype(dtype).type
    ITEM = np.dtype(dtype).itemsize

    def fold_rows(address, begin, end, thread):
        p = record_at(address, PATCHES)
        kh, kw, inner = p.kh, p.kw, p.inner
        patch_bytes = p.outer * kh * kw * inner * ITEM
        for row in range(begin, end):
            for a in range(kh):
                i = (row + p.pad_i - a * p.dilation_i) // p.stride_i
                if i < 0 or i >= p.oh or i * p.stride_i != row + p.pad_i - a * p.dilation_i:
                    continue
                for b in range(kw):
                    left = b * p.dilation_j - p.pad_j
                    j0 = max(p.first - i * p.ow, first_inside(left, p.stride_j))
                    j1 = min(p.last - i * p.ow, end_inside(left, p.stride_j, p.iw, p.ow))
                    for c in range(p.outer):
                        place = p.patches + (i * p.ow - p.first) * patch_bytes
                        place += ((c * kh + a) * kw + b) * inner * ITEM
                        source = p.x + c * p.x_outer + row * p.x_i + left * p.x_j
                        for j in range(j0, j1):
                            patch = tensor(REAL, 1, place + j * patch_bytes, (inner,), (ITEM,))
                            values = tensor(REAL, 1, source + j * p.stride_j * p.x_j, (inner,), (ITEM,))
                            for q in range(inner):
                                values[q] += patch[q]

    return jit.kernel(fold_rows)
