"""Weight gradient as register tiles: rows are input channels, vectors are output channels, the sum goes over pixels.

Pixels are taken block by block. A block's input is packed so that the MR channels of a tile lie side by side, pixel
after pixel, once for all taps; its output gradients are packed into panels of NR channels, once for all taps and
input channels. Both then come from the second cache level in a straight line, whatever the layout. A tap reads the
packed rows where it meets the image, so padding is never multiplied.

Every tile of the gradient belongs to one task, which adds the blocks in order, so the result has the same bits for any
number of threads, and its rounding error grows with the number of blocks plus the pixels of one block rather than with
all pixels.
"""

from __future__ import annotations

import functools

import numpy as np
from numba import carray
from numba.core.ccallback import CFunc

from fastconv.kernels import jit
from fastconv.kernels.params import CALL, record
from fastconv.kernels.simd import CHANNEL_START, RUN_FIELDS, copy_lanes, pitched_tile, pointer, record_at
from fastconv.kernels.spans import end_inside, first_inside
from fastconv.kernels.target import Tile

CORRELATE = record("""
    source_n source_r source_c source_k source_group source_rows source_columns
    gradient_n gradient_r gradient_c gradient_d gradient_group
    n rows columns row_step column_step
    taps_r taps_c row_offsets column_offsets first_row first_column
    reduction channels
    target_a target_b target_k target_d target_group
    image_block row_block column_block image_blocks row_blocks column_blocks
    panels panel_parts channel_tiles channel_parts tap_parts
    packed_rows packed_columns packed_row_step packed_column_step tile_bytes
    workspace_bytes packed panel table buffer
""")
"""Strides and `*_group` are in bytes. Packed rows and columns are those of the input in steps of `packed_*_step`;
`tile_bytes` are those of the packed channels of a tile. The last line's fields are offsets into each thread's
workspace."""


@jit.inline
def pack_source(p, REAL, ITEM, MR, source, packed, image, images, i, j, first_tile, end_tile):
    """Copy the inputs of a block, MR channels side by side; what lies in the padding is left as it is."""
    top, left = i * p.row_step + p.first_row, j * p.column_step + p.first_column
    for slot in range(images):
        for r in range(p.packed_rows):
            row = top + r * p.packed_row_step
            if row < 0 or row >= p.source_rows:
                continue
            begin = first_inside(left, p.packed_column_step)
            end = end_inside(left, p.packed_column_step, p.source_columns, p.packed_columns)
            line = source + (image + slot) * p.source_n + row * p.source_r + left * p.source_c
            place = packed + (slot * p.packed_rows + r) * p.packed_columns * MR * ITEM
            step = p.packed_column_step * p.source_c
            lists = first_tile
            if p.source_k == ITEM:
                lists = min(end_tile, p.reduction // MR)
                for c in range(begin, end):
                    pixel, target = line + c * step, place + c * MR * ITEM
                    for t in range(first_tile, lists):
                        copy_lanes(REAL, MR, pixel + t * MR * ITEM, target + (t - first_tile) * p.tile_bytes)
            for t in range(max(lists, first_tile), end_tile):
                depth = min(MR, p.reduction - t * MR)
                for m in range(MR):
                    # Rows past the last channel repeat it; they are not added to the result.
                    channel = line + (t * MR + min(m, depth - 1)) * p.source_k
                    target = place + (t - first_tile) * p.tile_bytes + m * ITEM
                    for c in range(begin, end):
                        value = carray(pointer(channel + c * step), 1, REAL)[0]
                        carray(pointer(target + c * MR * ITEM), 1, REAL)[0] = value


@jit.inline
def pack_gradient(p, REAL, ITEM, VL, NV, gradient, panel, images, lines, columns, lanes):
    """Copy a block of output gradients into a panel [pixel][NR], filled up with zeros."""
    NR = VL * NV
    for r in range(images * lines):
        base = gradient + r // lines * p.gradient_n + r % lines * p.gradient_r
        place = panel + r * columns * NR * ITEM
        if p.gradient_d == ITEM and lanes == NR:
            for j in range(columns):
                for v in range(NV):
                    part = v * VL * ITEM
                    copy_lanes(REAL, VL, base + j * p.gradient_c + part, place + j * NR * ITEM + part)
            continue
        packed = carray(pointer(place), (columns, NR), REAL)
        for d in range(NR):
            for j in range(columns):
                value = REAL(0)
                if d < lanes:
                    value = carray(pointer(base + j * p.gradient_c + d * p.gradient_d), 1, REAL)[0]
                packed[j, d] = value


@jit.inline
def trace_tap(p, REAL, ITEM, MR, NR, table_at, a, b, images, i, j, lines, columns):
    """Write the runs of a tap over a block, as offsets into the packed channels of a tile; the number of runs."""
    row_offsets = carray(pointer(p.row_offsets), p.taps_r, np.int64)
    column_offsets = carray(pointer(p.column_offsets), p.taps_c, np.int64)
    table = carray(pointer(table_at), (images * lines, 1 + RUN_FIELDS), np.int64)
    left = max(j, first_inside(column_offsets[b], p.column_step))
    length = end_inside(column_offsets[b], p.column_step, p.source_columns, j + columns) - left
    if length <= 0:
        return 0
    pixel, step = MR * ITEM, p.column_step // p.packed_column_step * MR * ITEM
    column = ((left - j) * p.column_step + column_offsets[b] - p.first_column) // p.packed_column_step
    runs = 0
    for r in range(images * lines):
        slot, line = r // lines, r % lines
        row = (i + line) * p.row_step + row_offsets[a]
        if row < 0 or row >= p.source_rows:
            continue
        row = (line * p.row_step + row_offsets[a] - p.first_row) // p.packed_row_step
        first = ((slot * p.packed_rows + row) * p.packed_columns + column) * pixel
        offset = (r * columns + left - j) * NR * ITEM
        if runs > 0:
            done = table[runs - 1, 3]
            if first == table[runs - 1, 0] + done * step and offset == table[runs - 1, 2] + done * NR * ITEM:
                table[runs - 1, 3] = done + length  # rows that follow each other make one run
                continue
        table[runs, 0], table[runs, 1], table[runs, 2], table[runs, 3] = first, step, offset, length
        runs += 1
    return runs


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
    """The kernel for one dtype and tile; tasks are (group, part of the input channels, of the taps, of the panels)."""
    REAL = np.dtype(dtype).type
    ITEM = np.dtype(dtype).itemsize
    VL, MR, NV, NR = tile.VL, tile.MR, tile.NV, tile.NR

    def correlate_tiles(address, begin, end, thread):
        call = record_at(address, CALL)
        p = record_at(call.plan, CORRELATE)
        own = call.workspace + thread * p.workspace_bytes
        for task in range(begin, end):
            panel_part = task % p.panel_parts
            tap_part = task // p.panel_parts % p.tap_parts
            part = task // p.panel_parts // p.tap_parts % p.channel_parts
            group = task // p.panel_parts // p.tap_parts // p.channel_parts
            taps = p.taps_r * p.taps_c
            first_tile = p.channel_tiles * part // p.channel_parts
            end_tile = p.channel_tiles * (part + 1) // p.channel_parts
            source = call.source + group * p.source_group
            for block in range(p.image_blocks * p.row_blocks * p.column_blocks):
                image = block // p.column_blocks // p.row_blocks * p.image_block
                i = block // p.column_blocks % p.row_blocks * p.row_block
                j = block % p.column_blocks * p.column_block
                images, lines = min(p.image_block, p.n - image), min(p.row_block, p.rows - i)
                columns = min(p.column_block, p.columns - j)
                pack_source(p, REAL, ITEM, MR, source, own + p.packed, image, images, i, j, first_tile, end_tile)
                first_panel = p.panels * panel_part // p.panel_parts
                for panel in range(first_panel, p.panels * (panel_part + 1) // p.panel_parts):
                    lanes = min(NR, p.channels - panel * NR)
                    gradient = call.other + group * p.gradient_group + panel * NR * p.gradient_d
                    gradient += image * p.gradient_n + i * p.gradient_r + j * p.gradient_c
                    pack_gradient(p, REAL, ITEM, VL, NV, gradient, own + p.panel, images, lines, columns, lanes)
                    for tap in range(taps * tap_part // p.tap_parts, taps * (tap_part + 1) // p.tap_parts):
                        a, b = tap // p.taps_c, tap % p.taps_c
                        runs = trace_tap(p, REAL, ITEM, MR, NR, own + p.table, a, b, images, i, j, lines, columns)
                        if runs == 0:
                            continue
                        target = call.target + group * p.target_group + panel * NR * p.target_d
                        target += a * p.target_a + b * p.target_b
                        for t in range(first_tile, end_tile):
                            pitched_tile(
                                REAL, VL, MR, NV, CHANNEL_START, 0, ITEM, runs, own + p.table,
                                own + p.packed + (t - first_tile) * p.tile_bytes, 0, own + p.panel, NR * ITEM, 1,
                                call.start, REAL(-np.inf), own + p.buffer, NR * ITEM, NR,
                            )  # fmt: skip
                            depth = min(MR, p.reduction - t * MR)
                            add_tile(p, REAL, ITEM, NR, own + p.buffer, target + t * MR * p.target_k, depth, lanes)

    return jit.kernel(correlate_tiles)
