"""Copies between planes and patches, where windows lie side by side: what each window reads becomes a row of its own.

A window's row has its values in the order of NCHW weights, (channel, row, column): runs of a kernel row's columns. A
task is a row of windows of one image.
"""

from __future__ import annotations

import functools

import numpy as np
from numba.core.ccallback import CFunc

from fastconv.kernels import jit
from fastconv.kernels.params import CALL, record
from fastconv.kernels.simd import copy_values, record_at

DISJOINT = record("""
    channels kernel_rows rows columns image_n image_c image_r patches_n patches_r patch_bytes
""")
"""There are `rows` x `columns` windows of `channels` x `kernel_rows` runs. Strides are in bytes: from image to image,
channel to channel and pixel row to pixel row, and from the patches of a row of windows to those of the next."""


@functools.cache
def move(dtype: str, width: int, gathers: bool) -> CFunc:
    """Copy planes to patches if `gathers`, else patches to planes; a kernel's row is `width` columns long."""
    REAL = np.dtype(dtype).type
    ITEM = np.dtype(dtype).itemsize
    WIDTH, GATHERS = width, gathers

    def move_windows(address, begin, end, thread):
        call = record_at(address, CALL)
        p = record_at(call.plan, DISJOINT)
        images, patches = (call.source, call.target) if GATHERS else (call.target, call.source)
        for task in range(begin, end):
            n, i = task // p.rows, task % p.rows
            for c in range(p.channels):
                for a in range(p.kernel_rows):
                    pixels = images + n * p.image_n + c * p.image_c + (i * p.kernel_rows + a) * p.image_r
                    run = patches + n * p.patches_n + i * p.patches_r + (c * p.kernel_rows + a) * WIDTH * ITEM
                    for j in range(p.columns):
                        source, target = pixels + j * WIDTH * ITEM, run + j * p.patch_bytes
                        if not GATHERS:
                            source, target = target, source
                        copy_values(REAL, WIDTH, source, target)

    return jit.kernel(move_windows)
