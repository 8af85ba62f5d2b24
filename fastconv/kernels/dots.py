"""Weight gradient with pixels in the lanes: for layers whose channels cannot fill a vector, or lie apart.

Every weight is a dot product over pixels: a plane of the input, moved by the weight's tap, with a plane of the output
gradient. Both are copied block by block into strips (`fastconv.kernels.strips`), and a register tile sums MR shifted
input planes against ND gradient planes at once. Each block of pixels writes its own partial gradient; the caller adds
them in order, so the result has the same bits for any number of threads.
"""

from __future__ import annotations

import functools

import numpy as np
from numba.core.ccallback import CFunc

from fastconv.kernels import jit
from fastconv.kernels.params import CALL, record
from fastconv.kernels.simd import array_at, record_at
from fastconv.kernels.strips import fill_strip
from fastconv.kernels.target import Tile
from fastconv.kernels.tiles import dot_tile

DOTS = record("""
    source_n source_r source_c source_k source_group source_rows source_columns
    gradient_n gradient_r gradient_c gradient_d gradient_group
    groups rows columns row_step column_step
    taps_r taps_c row_offsets column_offsets first_row first_column
    reduction channels row_block row_blocks strip_rows strip_columns gradient_columns
    workspace_bytes strip planes lefts rights
""")
"""Strides and `*_group` are in bytes. `partial` is an array (blocks, groups, reduction, taps_r, taps_c, channels) with
the blocks of all images."""


@functools.cache
def dots(dtype: str, tile: Tile) -> CFunc:
    """The kernel for one dtype and tile, whose NV is the number of gradient planes; tasks are (block, group)."""
    REAL = np.dtype(dtype).type
    ITEM = np.dtype(dtype).itemsize
    VL, MR, ND = tile.VL, tile.MR, tile.NV

    def dot_tiles(address, begin, end, thread):
        call = record_at(address, CALL)
        p = record_at(call.plan, DOTS)
        own = call.workspace + thread * p.workspace_bytes
        lefts = array_at(own + p.lefts, MR, np.int64)
        rights = array_at(own + p.rights, ND, np.int64)
        row_offsets = array_at(p.row_offsets, p.taps_r, np.int64)
        column_offsets = array_at(p.column_offsets, p.taps_c, np.int64)
        taps = p.taps_r * p.taps_c
        combinations = p.reduction * taps
        row_bytes = p.column_step * p.strip_columns * ITEM
        gradient_row_bytes = p.gradient_columns * ITEM
        for task in range(begin, end):
            block, group = task // p.groups, task % p.groups
            image, i = block // p.row_blocks, block % p.row_blocks * p.row_block
            rows = min(p.row_block, p.rows - i)
            fill_strip(
                REAL, ITEM, VL, own + p.strip, p.strip_rows, p.strip_columns, p.column_step, p.reduction,
                call.source + group * p.source_group + image * p.source_n, p.source_r, p.source_c, p.source_k,
                p.source_rows, p.source_columns, i * p.row_step + p.first_row, p.first_column,
                p.strip_rows - (p.row_block - rows) * p.row_step,
            )  # fmt: skip
            fill_strip(
                REAL, ITEM, VL, own + p.planes, p.row_block, p.gradient_columns, 1, p.channels,
                call.other + group * p.gradient_group + image * p.gradient_n,
                p.gradient_r, p.gradient_c, p.gradient_d, p.rows, p.columns, i, 0, rows,
            )  # fmt: skip
            size = combinations * p.channels
            partial = call.target + task * size * ITEM
            for d in range(0, p.channels, ND):
                for q in range(ND):
                    # Rows and columns of a tile past the last repeat it.
                    channel = min(d + q, p.channels - 1)
                    rights[q] = own + p.planes + channel * p.row_block * gradient_row_bytes
                for first in range(0, combinations, MR):
                    for m in range(MR):
                        combination = min(first + m, combinations - 1)
                        k, a, b = combination // taps, combination % taps // p.taps_c, combination % p.taps_c
                        column = column_offsets[b] - p.first_column
                        line = (k * p.strip_rows + row_offsets[a] - p.first_row) * p.column_step
                        line += column % p.column_step
                        lefts[m] = own + p.strip + (line * p.strip_columns + column // p.column_step) * ITEM
                    dot_tile(
                        REAL, VL, MR, ND, 0, rows, p.columns, own + p.lefts, p.row_step * row_bytes,
                        own + p.rights, gradient_row_bytes, partial + (first * p.channels + d) * ITEM,
                        p.channels * ITEM, combinations - first, p.channels - d, 0,
                    )  # fmt: skip

    return jit.kernel(dot_tiles)
