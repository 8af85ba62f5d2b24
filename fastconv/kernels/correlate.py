"""Weight gradient as register tiles: rows are input channels, vectors are output channels, the sum goes over pixels.

Pixels are taken block by block. The block's output gradients are packed into a panel of NR channels, which all taps
and input channels then share; each tap reads its input in place, over the output rows and columns where it meets
the image. Every tile of the gradient belongs to one task, which adds the blocks in order, so the result has the same
bits for any number of threads, and its rounding error grows with the number of blocks plus the pixels of one block
rather than with all pixels.
"""

from __future__ import annotations

import functools

import numpy as np
from numba import carray
from numba.core.ccallback import CFunc

from fastconv.kernels import jit
from fastconv.kernels.params import CALL, record
from fastconv.kernels.simd import CHANNEL_START, RUN_FIELDS, multiply_tile, pointer, record_at
from fastconv.kernels.spans import end_inside, first_inside
from fastconv.kernels.target import Tile

CORRELATE = record("""
    source_n source_r source_c source_k source_group source_rows source_columns
    gradient_n gradient_r gradient_c gradient_d gradient_group
    n rows columns row_step column_step
    taps_r taps_c row_offsets column_offsets
    reduction channels
    target_a target_b target_k target_d target_group
    row_block column_block row_blocks column_blocks panels parts channel_tiles rows_adjoin
    workspace_bytes panel table targets starts buffer
""")
"""Strides and `*_group` are in bytes; `rows_adjoin` says that the gradient's images and rows follow each other with no
gap. The last line's fields are offsets into each thread's workspace."""


@jit.inline
def pack_gradient(p, REAL, ITEM, NR, gradient, panel, line, lines, column, columns, lanes):
    """Copy a block of output gradients into a panel [pixel][NR], filled up with zeros."""
    packed = carray(pointer(panel), (lines, columns, NR), REAL)
    for r in range(lines):
        image, i = (line + r) // p.rows, (line + r) % p.rows
        base = gradient + image * p.gradient_n + i * p.gradient_r + column * p.gradient_c
        if p.gradient_d == ITEM:
            for j in range(columns):
                values = carray(pointer(base + j * p.gradient_c), lanes, REAL)
                for d in range(lanes):
                    packed[r, j, d] = values[d]
                for d in range(lanes, NR):
                    packed[r, j, d] = REAL(0)
        else:
            for d in range(NR):
                for j in range(columns):
                    if d < lanes:
                        value = carray(pointer(base + j * p.gradient_c + d * p.gradient_d), 1, REAL)
                        packed[r, j, d] = value[0]
                    else:
                        packed[r, j, d] = REAL(0)


@jit.inline
def add_tile(p, REAL, ITEM, NR, buffer, target, rows, lanes):
    """Add a tile from the buffer to the weight gradient."""
    tile = carray(pointer(buffer), (rows, NR), REAL)
    if p.target_d == ITEM and lanes == NR:
        for m in range(rows):
            row = carray(pointer(target + m * p.target_k), NR, REAL)
            for d in range(NR):
                row[d] += tile[m, d]
        return
    for m in range(rows):
        for d in range(lanes):
            carray(pointer(target + m * p.target_k + d * p.target_d), 1, REAL)[0] += tile[m, d]


@functools.cache
def correlate(dtype: str, tile: Tile) -> CFunc:
    """The kernel for one dtype and tile; its tasks are (group, panel of output channels, part of the tiles)."""
    REAL = np.dtype(dtype).type
    ITEM = np.dtype(dtype).itemsize
    VL, MR, NV, NR = tile.VL, tile.MR, tile.NV, tile.NR

    def correlate_tiles(address, begin, end, thread):
        call = record_at(address, CALL)
        p = record_at(call.plan, CORRELATE)
        own = call.workspace + thread * p.workspace_bytes
        table = carray(pointer(own + p.table), (p.row_block, MR + RUN_FIELDS), np.int64)
        targets = carray(pointer(own + p.targets), MR, np.int64)
        for m in range(MR):
            targets[m] = own + p.buffer + m * NR * ITEM
            carray(pointer(own + p.starts), MR, np.int64)[m] = call.start
        row_offsets = carray(pointer(p.row_offsets), p.taps_r, np.int64)
        column_offsets = carray(pointer(p.column_offsets), p.taps_c, np.int64)
        combinations = p.taps_r * p.taps_c * p.channel_tiles
        scalar_step = p.column_step * p.source_c
        for task in range(begin, end):
            part = task % p.parts
            panel = task // p.parts % p.panels
            group = task // p.parts // p.panels
            lanes = min(NR, p.channels - panel * NR)
            source = call.source + group * p.source_group
            gradient = call.other + group * p.gradient_group + panel * NR * p.gradient_d
            for block in range(p.row_blocks * p.column_blocks):
                line = block // p.column_blocks * p.row_block
                lines = min(p.row_block, p.n * p.rows - line)
                column = block % p.column_blocks * p.column_block
                columns = min(p.column_block, p.columns - column)
                # Full panels of channels that lie side by side are read in place.
                in_place = p.gradient_d == ITEM and lanes == NR and p.rows_adjoin != 0
                vectors, pixel_step, row_step = own + p.panel, NR * ITEM, columns * NR * ITEM
                if in_place:
                    vectors, pixel_step, row_step = gradient + column * p.gradient_c, p.gradient_c, p.gradient_r
                    vectors += line * p.gradient_r
                else:
                    pack_gradient(p, REAL, ITEM, NR, gradient, own + p.panel, line, lines, column, columns, lanes)
                for combination in range(combinations * part // p.parts, combinations * (part + 1) // p.parts):
                    k = combination % p.channel_tiles * MR
                    a = combination // p.channel_tiles // p.taps_c
                    b = combination // p.channel_tiles % p.taps_c
                    depth = min(MR, p.reduction - k)
                    left = max(column, first_inside(column_offsets[b], p.column_step))
                    length = end_inside(column_offsets[b], p.column_step, p.source_columns, column + columns) - left
                    if length <= 0:
                        continue
                    runs = 0
                    for r in range(lines):
                        image, i = (line + r) // p.rows, (line + r) % p.rows
                        row = i * p.row_step + row_offsets[a]
                        if row < 0 or row >= p.source_rows:
                            continue
                        first = (
                            source + image * p.source_n + row * p.source_r + k * p.source_k
                            + (left * p.column_step + column_offsets[b]) * p.source_c
                        )  # fmt: skip
                        offset = r * row_step + (left - column) * pixel_step
                        if runs > 0:
                            done = table[runs - 1, MR + 2]
                            follows = first == table[runs - 1, 0] + done * scalar_step
                            if follows and offset == table[runs - 1, MR + 1] + done * pixel_step:
                                table[runs - 1, MR + 2] = done + length  # rows without padding make one run
                                continue
                        for m in range(MR):
                            # Rows past the last channel repeat it; they are not added below.
                            table[runs, m] = first + min(m, depth - 1) * p.source_k
                        table[runs, MR] = scalar_step
                        table[runs, MR + 1] = offset
                        table[runs, MR + 2] = length
                        runs += 1
                    if runs == 0:
                        continue
                    multiply_tile(
                        REAL, VL, MR, NV, CHANNEL_START, 0, runs, own + p.table, vectors, pixel_step,
                        own + p.starts, 0, REAL(-np.inf), own + p.targets, 0,
                    )  # fmt: skip
                    target = (
                        call.target + group * p.target_group + a * p.target_a + b * p.target_b
                        + k * p.target_k + panel * NR * p.target_d
                    )  # fmt: skip
                    add_tile(p, REAL, ITEM, NR, own + p.buffer, target, depth, lanes)

    return jit.kernel(correlate_tiles)
