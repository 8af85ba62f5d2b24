"""The patch matrix of im2col and its transpose: one row for each output pixel, one column for each weight.

Columns follow the order of the weights in memory (tap, channel for NHWC; channel, tap for NCHW), which the strides
`patch_tap` and `patch_c` express, so that the weights enter the matrix product as they lie.
"""

from __future__ import annotations

import functools

import numpy as np
from numba.core.ccallback import CFunc

from fastconv.kernels import jit
from fastconv.kernels.params import record
from fastconv.kernels.simd import record_at, tensor

PATCHES = record("""
    x x_i x_j x_c
    patches patch_pixel patch_tap patch_c
    first last ih iw oh ow kh kw channels
    stride_i stride_j pad_i pad_j dilation_i dilation_j
""")
"""The rows of the matrix are the output pixels `first` to `last` of the one image at `x`."""


@functools.cache
def unfold(dtype: str, unit: int) -> CFunc:
    """Fill the patch matrix; a task is one of its rows. `unit` promises that channels lie side by side in both."""
    REAL = np.dtype(dtype).type
    UNIT = int(unit)

    def unfold_rows(address, begin, end, thread):
        p = record_at(address, PATCHES)
        for task in range(begin, end):
            pixel = p.first + task
            i, j = pixel // p.ow, pixel % p.ow
            for a in range(p.kh):
                row = i * p.stride_i + a * p.dilation_i - p.pad_i
                for b in range(p.kw):
                    column = j * p.stride_j + b * p.dilation_j - p.pad_j
                    place = p.patches + task * p.patch_pixel + (a * p.kw + b) * p.patch_tap
                    patch = tensor(REAL, UNIT, place, (p.channels,), (p.patch_c,))
                    if 0 <= row < p.ih and 0 <= column < p.iw:
                        source = p.x + row * p.x_i + column * p.x_j
                        values = tensor(REAL, UNIT, source, (p.channels,), (p.x_c,))
                        for c in range(p.channels):
                            patch[c] = values[c]
                    else:
                        for c in range(p.channels):
                            patch[c] = REAL(0)

    return jit.kernel(unfold_rows)


@functools.cache
def fold(dtype: str, unit: int) -> CFunc:
    """Add a patch matrix back to the pixels it was read from; a task is one input row, so no two threads meet."""
    REAL = np.dtype(dtype).type
    UNIT = int(unit)

    def fold_rows(address, begin, end, thread):
        p = record_at(address, PATCHES)
        for row in range(begin, end):
            for a in range(p.kh):
                i = (row + p.pad_i - a * p.dilation_i) // p.stride_i
                if i < 0 or i >= p.oh or i * p.stride_i != row + p.pad_i - a * p.dilation_i:
                    continue
                line = i * p.ow
                for b in range(p.kw):
                    for pixel in range(max(line, p.first), min(line + p.ow, p.last)):
                        column = (pixel - line) * p.stride_j + b * p.dilation_j - p.pad_j
                        if column < 0 or column >= p.iw:
                            continue
                        place = p.patches + (pixel - p.first) * p.patch_pixel + (a * p.kw + b) * p.patch_tap
                        patch = tensor(REAL, UNIT, place, (p.channels,), (p.patch_c,))
                        source = p.x + row * p.x_i + column * p.x_j
                        values = tensor(REAL, UNIT, source, (p.channels,), (p.x_c,))
                        for c in range(p.channels):
                            values[c] += patch[c]

    return jit.kernel(fold_rows)
