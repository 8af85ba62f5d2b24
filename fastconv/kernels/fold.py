"""Adds up patches that overlap ("col2im"): the input gradient of planes, from what each window gives to its pixels.

A patch has its values in the order of NCHW weights, (channel, row, column). A task takes the channels of a vector: what
each window gives to them is turned, so that channels fill the lanes, and added to a copy of the image with these
channels side by side, which is turned back in the end. Pixels that no window reads are zeros.
"""

from __future__ import annotations

import functools

import numpy as np
from numba.core.ccallback import CFunc

from fastconv.kernels import jit
from fastconv.kernels.params import CALL, record
from fastconv.kernels.simd import add_values, copy_first_lanes, copy_run, record_at, turn_row, turn_tile
from fastconv.kernels.target import vector_bytes

FOLD = record("""
    channels taps_r taps_c windows_r windows_c first_row first_column step_r step_c dilation_r dilation_c
    rows columns patches_n patch_bytes image_n plane_bytes
    workspace_bytes pixels taps
""")
"""Strides are in bytes, and those of windows and of their taps in pixels: tap (a, b) of window (i, j) is that of pixel
(i * step_r + first_row + a * dilation_r, ...), if an image of `rows` x `columns` has it. The last line's fields are
offsets into each thread's workspace."""


@functools.cache
def fold(dtype: str) -> CFunc:
    """The kernel for one dtype; its tasks are (image, vector of channels)."""
    REAL = np.dtype(dtype).type
    ITEM = np.dtype(dtype).itemsize
    VL = vector_bytes() // ITEM

    def fold_windows(address, begin, end, thread):
        call = record_at(address, CALL)
        p = record_at(call.plan, FOLD)
        own = call.workspace + thread * p.workspace_bytes
        pixels, turned = own + p.pixels, own + p.taps
        vector, count, taps = VL * ITEM, p.rows * p.columns, p.taps_r * p.taps_c
        vectors = (p.channels + VL - 1) // VL
        for task in range(begin, end):
            k = task % vectors * VL
            there = min(VL, p.channels - k)
            patch = call.source + task // vectors * p.patches_n + k * taps * ITEM
            copy_run(REAL, VL, 0, pixels, count * VL)
            for i in range(p.windows_r):
                top = i * p.step_r + p.first_row
                for j in range(p.windows_c):
                    left = j * p.step_c + p.first_column
                    if taps == 1:
                        copy_first_lanes(REAL, VL, there, patch, turned)
                    else:
                        turn_row(REAL, VL, patch, 0, there, taps * ITEM, taps, turned, vector)
                    patch += p.patch_bytes
                    for a in range(p.taps_r):
                        row = top + a * p.dilation_r
                        if row < 0 or row >= p.rows:
                            continue
                        for b in range(p.taps_c):
                            column = left + b * p.dilation_c
                            if 0 <= column < p.columns:
                                place = pixels + (row * p.columns + column) * vector
                                add_values(REAL, VL, turned + (a * p.taps_c + b) * vector, place)
            target = call.target + task // vectors * p.image_n + k * p.plane_bytes
            for first in range(0, count, VL):
                turn_tile(
                    REAL, VL, pixels + first * vector, vector, min(VL, count - first), target + first * ITEM,
                    p.plane_bytes, there, 0,
                )  # fmt: skip

    return jit.kernel(fold_windows)
